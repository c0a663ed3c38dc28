"""The tables of scores, as fusion takes them."""

from pathlib import Path

import numpy as np
import pandas as pd

from opam.method.fusion import PROBE
from opam.pipeline.artifacts import read_table


def read_scores(folder: Path) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """What the networks and the probes say of each photograph of val and test.

    Args:
        folder: with the tables that `stages/score_images.py` writes.

    Returns:
        ``image_id``, ``split``, ``label`` of the N photographs; and the probabilities, float32
        N x C, by name: "original", "object", "cluster 0", "cluster 1", ..., and the same names
        with `PROBE` behind them.

    Raises:
        OpamError: as `read_table`.
    """
    tables = {
        name: read_table(folder / f"{name}.parquet", "scores") for name in ("original", "object")
    }
    clusters = read_table(folder / "clusters.parquet", "cluster_scores")
    tables |= {f"cluster {cluster}": own for cluster, own in clusters.groupby("cluster")}
    probes = dict(iter(read_table(folder / "probes.parquet", "probe_scores").groupby("name")))
    tables |= {name + PROBE: probes[name] for name in [*tables]}
    scores = {name: np.stack(table["probabilities"].to_list()) for name, table in tables.items()}
    return tables["original"][["image_id", "split", "label"]], scores
