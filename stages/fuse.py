"""Fuse: search the weights of original, object and parts by k-fold cross-validation.

On the photographs that no network was trained on: those of val, and those of train whose scores
are out of fold, as a discriminant's are.

Run by itself: ``python stages/fuse.py``.
"""

from itertools import combinations
from pathlib import Path

import numpy as np

from opam.evaluation.scores import read_scores
from opam.method.fusion import BRANCHES, FusionParams, by_branch, search_weights
from opam.pipeline.artifacts import read_table, write_json
from opam.pipeline.params import read_params
from opam.pipeline.stage import run

MANIFEST = Path("data/manifest.parquet")
SCORES = Path("data/scores")
FUSION = Path("data/fusion.json")


def main() -> None:
    """Write data/fusion.json: the weights of each branch, each pair and all three."""
    seed = read_params("seed", int)
    params = read_params("fusion", FusionParams)
    images, scores = read_scores(SCORES, params.scores)
    ours = (images["split"] != "test").to_numpy()
    labels = images.loc[ours, "label"].to_numpy()
    group_of = read_table(MANIFEST, "manifest").set_index("image_id")["group"]
    groups = group_of[images.loc[ours, "image_id"]].to_numpy()
    made_of = by_branch(scores)

    weights, accuracy, folds = {}, {}, []
    for count in range(1, len(BRANCHES) + 1):
        for chosen in combinations(BRANCHES, count):
            # A mean is of branches, all of one alike; a product weighs every score by itself.
            items = [made_of[branch] for branch in chosen]
            if params.rule == "product":
                items = [[name] for names in items for name in names]
            stacked = np.stack(
                [np.mean([scores[name][ours] for name in each], 0) for each in items]
            )
            found = search_weights(
                stacked, labels, params.folds, params.step, seed, params.rule, groups
            )
            combination = "+".join(chosen)
            weights[combination] = by_name(items, found.weights)
            accuracy[combination] = found.accuracy
            folds = [
                {"fold": fold, "weights": by_name(items, each), "accuracy": right}
                for fold, (each, right) in enumerate(
                    zip(found.fold_weights, found.fold_accuracy, strict=True)
                )
            ]
    write_json(
        FUSION,
        {
            "rule": params.rule,
            "weights": weights,
            "accuracy": accuracy,
            "folds": folds,
        },
    )


def by_name(items: list[list[str]], weights: tuple[float, ...]) -> dict[str, float]:
    """The weight of each score; those of one item share its weight alike."""
    return {
        name: weight / len(item)
        for item, weight in zip(items, weights, strict=True)
        for name in item
    }


if __name__ == "__main__":
    run(main)
