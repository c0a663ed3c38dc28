"""The tables of scores, as fusion takes them."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from opam.method.fusion import PROBE
from opam.pipeline.artifacts import read_table


def read_scores(
    folder: Path, of: Literal["all", "networks", "probes"] = "all"
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """What the networks and the probes say of each photograph.

    Args:
        folder: with the tables that `stages/score_images.py` writes.
        of: whose scores.

    Returns:
        ``image_id``, ``split``, ``label`` of the N photographs that all of them speak of: val and
        test, and train where each is out of fold; and the probabilities, float32 N x C, by name:
        "original", "object", "cluster 0", "cluster 1", ..., and the same names with `PROBE`
        behind them.

    Raises:
        OpamError: as `read_table`.
    """
    tables = {
        name: read_table(folder / f"{name}.parquet", "scores") for name in ("original", "object")
    }
    clusters = read_table(folder / "clusters.parquet", "cluster_scores")
    tables |= {f"cluster {cluster}": own for cluster, own in clusters.groupby("cluster")}
    probes = dict(iter(read_table(folder / "probes.parquet", "probe_scores").groupby("name")))
    tables |= {name + PROBE: probes[name] for name in [*tables] if name in probes}
    chosen = {
        name: table.set_index("image_id")
        for name, table in tables.items()
        if of == "all" or name.endswith(PROBE) == (of == "probes")
    }
    # Where there are no probes, there is nothing to intersect.
    known = next(iter(chosen.values()), tables["original"].set_index("image_id")).reset_index()
    for table in chosen.values():
        known = known[known["image_id"].isin(table.index)]
    images = known[["image_id", "split", "label"]].reset_index(drop=True)
    scores = {
        name: np.stack(table["probabilities"][images["image_id"]].to_list())
        for name, table in chosen.items()
    }
    return images, scores
