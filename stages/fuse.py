"""Fuse: search the weights of original, object and parts by k-fold cross-validation on val.

Run by itself: ``python stages/fuse.py``.
"""

from pathlib import Path

import numpy as np

from opam.artifacts import read_table, write_json, write_table
from opam.config import read_params
from opam.fusion import BRANCHES, FusionParams, calibrate, fuse, part_shares, search_weights
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
    whole = np.stack([np.stack(table["probabilities"].to_list()) for table in (original, objects)])
    clusters = np.stack(
        [np.stack(own["probabilities"].to_list()) for _, own in parts.groupby("cluster")]
    )
    alike = clusters.mean(0, keepdims=True)
    searched = alike if params.criterion == "accuracy" else clusters
    val = (original["split"] == "val").to_numpy()
    scores = np.concatenate([whole, searched])
    labels = original.loc[val, "label"].to_numpy()

    found = search_weights(
        scores[:, val], labels, params.folds, params.step, seed, params.criterion
    )
    weights, shares = part_shares(found.weights)
    temperatures = found.temperatures[2:]
    if params.criterion == "accuracy":
        shares, temperatures = [1 / len(clusters)] * len(clusters), (1.0,) * len(clusters)
    probabilities = fuse(calibrate(clusters, temperatures), shares).astype(np.float32)
    table = original.assign(probabilities=list(probabilities))
    write_table(SCORES / "part.parquet", "scores", table)
    folds = [
        {"fold": fold, "weights": part_shares(each)[0], "accuracy": accuracy}
        for fold, (each, accuracy) in enumerate(
            zip(found.fold_weights, found.fold_accuracy, strict=True)
        )
    ]
    write_json(
        FUSION,
        {
            "weights": weights,
            # The part branch is a mean of clusters that have temperatures of their own.
            "temperatures": dict(zip(BRANCHES, (*found.temperatures[:2], 1.0), strict=True)),
            "clusters": {"weights": shares, "temperatures": temperatures},
            "accuracy": found.accuracy,
            "folds": folds,
        },
    )


if __name__ == "__main__":
    run(main)
