"""The tables of scores, as fusion takes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from opam.method.fusion import FUSED, PROBE, fuse_named
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


def held_out_answers(
    folder: Path, of: Literal["all", "networks", "probes"], fusion: Mapping[str, Any]
) -> tuple[pd.DataFrame, np.ndarray]:
    """What is said of photographs of train and val by what was not fitted on them.

    Fused where networks are discriminants; the probes', alike, where networks were trained on
    train; of val alone where there are no probes, either. Of test none.

    Args:
        folder: as of `read_scores`.
        of: whose scores are fused.
        fusion: what data/fusion.json holds.

    Returns:
        N photographs as `read_scores` gives them; probabilities, float64 N x C.

    Raises:
        OpamError: as `read_table`.
    """
    images, scores = read_scores(folder, of)
    weights, rule = fusion["weights"][FUSED], fusion["rule"]
    if not (images["split"] == "train").any():
        of_probes, by_probes = read_scores(folder, "probes")
        if by_probes and (of_probes["split"] == "train").any():
            images, scores, rule = of_probes, by_probes, "product"
            weights = dict.fromkeys(scores, 1 / len(scores))
    ours = (images["split"] != "test").to_numpy()
    own = {name: each[ours] for name, each in scores.items()}
    return images[ours].reset_index(drop=True), fuse_named(own, weights, rule)
