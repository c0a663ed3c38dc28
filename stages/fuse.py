"""Fuse: search the weights of original, object and parts by k-fold cross-validation on val.

Run by itself: ``python stages/fuse.py``.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from opam.artifacts import read_table, write_json, write_table
from opam.config import read_params
from opam.fusion import BRANCHES, Fusion, FusionParams, calibrate, fuse, search_weights
from opam.stage import run

SCORES = Path("data/scores")
FUSION = Path("data/fusion.json")


def main() -> None:
    """Write data/fusion.json, and data/scores/part.parquet: what all parts say together."""
    seed = read_params("seed", int)
    params = read_params("fusion", FusionParams)
    original = read_table(SCORES / "original.parquet", "scores")
    objects = read_table(SCORES / "object.parquet", "scores")
    parts = read_table(SCORES / "clusters.parquet", "cluster_scores")
    clusters = np.stack([stacked(own) for _, own in parts.groupby("cluster")])
    val = (original["split"] == "val").to_numpy()
    labels = original.loc[val, "label"].to_numpy()

    def search(scores: np.ndarray) -> Fusion:
        return search_weights(scores, labels, params.folds, params.step, seed, params.criterion)

    if params.criterion == "accuracy":
        shares, temperatures = (1 / len(clusters),) * len(clusters), (1.0,) * len(clusters)
        part_on_val = clusters[:, val].mean(0)
    else:
        own = search(clusters[:, val])
        shares, temperatures, part_on_val = own.weights, own.temperatures, own.held_out
    part = fuse(calibrate(clusters, temperatures), shares).astype(np.float32)
    write_table(SCORES / "part.parquet", "scores", original.assign(probabilities=list(part)))

    whole = [stacked(table)[val] for table in (original, objects)]
    scores = dict(zip(BRANCHES, (*whole, part_on_val), strict=True))
    found = {
        chosen: search(np.stack([scores[branch] for branch in chosen]))
        for count in range(1, len(BRANCHES) + 1)
        for chosen in combinations(BRANCHES, count)
    }
    fused = found[BRANCHES]
    write_json(
        FUSION,
        {
            "weights": dict(zip(BRANCHES, fused.weights, strict=True)),
            "temperatures": dict(zip(BRANCHES, fused.temperatures, strict=True)),
            "clusters": {"weights": shares, "temperatures": temperatures},
            "accuracy": fused.accuracy,
            "folds": [
                {
                    "fold": fold,
                    "weights": dict(zip(BRANCHES, weights, strict=True)),
                    "accuracy": each,
                }
                for fold, (weights, each) in enumerate(
                    zip(fused.fold_weights, fused.fold_accuracy, strict=True)
                )
            ],
            "combinations": [
                {"weights": dict(zip(chosen, each.weights, strict=True)), "accuracy": each.accuracy}
                for chosen, each in found.items()
            ],
        },
    )


def stacked(table: pd.DataFrame) -> np.ndarray:
    """Probabilities float32 N x C of a table of scores."""
    return np.stack(table["probabilities"].to_list())


if __name__ == "__main__":
    run(main)
