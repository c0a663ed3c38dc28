"""Fuse: search the weights of original, object and part by k-fold cross-validation on val.

Run by itself: ``python stages/fuse.py``.
"""

from pathlib import Path

import numpy as np

from opam.artifacts import read_table, write_json
from opam.config import read_params
from opam.fusion import BRANCHES, FusionParams, search_weights
from opam.stage import run

SCORES = Path("data/scores")
FUSION = Path("data/fusion.json")


def main() -> None:
    """Write data/fusion.json."""
    seed = read_params("seed", int)
    params = read_params("fusion", FusionParams)
    tables = [read_table(SCORES / f"{branch}.parquet", "scores") for branch in BRANCHES]
    val = [table[table["split"] == "val"] for table in tables]
    scores = np.stack([np.stack(table["probabilities"].to_list()) for table in val])
    labels = val[0]["label"].to_numpy()

    fusion = search_weights(scores, labels, params.folds, params.step, seed, params.criterion)
    folds = [
        {"fold": fold, "weights": dict(zip(BRANCHES, weights, strict=True)), "accuracy": accuracy}
        for fold, (weights, accuracy) in enumerate(
            zip(fusion.fold_weights, fusion.fold_accuracy, strict=True)
        )
    ]
    write_json(
        FUSION,
        {
            "weights": dict(zip(BRANCHES, fusion.weights, strict=True)),
            "temperatures": dict(zip(BRANCHES, fusion.temperatures, strict=True)),
            "accuracy": fusion.accuracy,
            "folds": folds,
        },
    )


if __name__ == "__main__":
    run(main)
