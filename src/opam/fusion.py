"""Fusion (paper, section III-E): one weighted mean of what original, object and parts say."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from pydantic import Field

from opam.config import Params
from opam.errors import OpamError

Criterion = Literal["accuracy", "likelihood"]
BRANCHES = ("original", "object", "part")
"""What is fused: the probabilities by the whole photograph, by its object, by its parts."""


class FusionParams(Params):
    """The search for the weights."""

    step: float = Field(0.1, gt=0, le=1, description="spacing of the grid of weights")
    folds: int = Field(5, ge=2, description="folds of the cross-validation on val")
    criterion: Criterion = Field(
        "likelihood",
        description="likelihood: the weights under which the labels are most probable, which a few "
        "photographs do not upset; accuracy: those that are right most often, as in the paper",
    )


@dataclass(frozen=True)
class Fusion:
    """What the search found.

    Attributes:
        weights: one a branch, summing to 1, best on all images.
        fold_accuracy: accuracy on each held-out fold of the weights chosen on the others.
        fold_weights: those weights.
        accuracy: share of all images that are right when held out; what to expect of the
            chosen way of choosing, where the accuracy of ``weights`` themselves would flatter.
    """

    weights: tuple[float, ...]
    fold_accuracy: tuple[float, ...]
    fold_weights: tuple[tuple[float, ...], ...]
    accuracy: float


def fuse(scores: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Weighted sum over branches: M x N x C scores to float64 N x C."""
    return np.tensordot(np.asarray(weights, dtype=np.float64), np.asarray(scores), axes=1)


def weight_grid(branches: int, step: float) -> np.ndarray:
    """All weights on a grid that sum to 1, float64 G x branches, in lexicographic order."""
    parts = max(1, round(1 / step))
    points = [p for p in product(range(parts + 1), repeat=branches) if sum(p) == parts]
    return np.array(points, dtype=np.float64) / parts


def fold_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A stratified fold 0..folds-1 for each image: classes are dealt out in turn, shuffled."""
    order = np.random.default_rng(seed).permutation(len(labels))
    dealt = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[dealt] = np.arange(len(labels)) % folds
    return fold


def search_weights(
    scores: np.ndarray,
    labels: np.ndarray,
    folds: int,
    step: float,
    seed: int,
    criterion: Criterion = "accuracy",
) -> Fusion:
    """Search fusion weights on a grid, with k-fold cross-validation.

    By accuracy, the weights that are right most often win; among equals those of the least mean
    negative log-likelihood, then those closest to equal weights. By likelihood, the first two
    change places.

    Args:
        scores: float M x N x C, each branch's class probabilities.
        labels: int N, 0..C-1.
        folds: number k of folds, 2..N.
        step: spacing of the grid, 0..1; rounded to one over a whole number.
        seed: of the folds.
        criterion: what the best weights are best at.

    Raises:
        OpamError: fewer images than folds.
    """
    if len(labels) < folds:
        raise OpamError(
            f"fusion.folds: {folds} folds of {len(labels)} val images; lower it or raise "
            "prepare.val_fraction"
        )
    grid = weight_grid(len(scores), step)
    rows = np.arange(len(labels))
    correct = np.empty((len(grid), len(labels)), dtype=bool)
    loss = np.empty((len(grid), len(labels)))
    for point, weights in enumerate(grid):
        fused = fuse(scores, weights)
        correct[point] = fused.argmax(1) == labels
        loss[point] = -np.log(np.maximum(fused[rows, labels], 1e-12))
    distance = np.square(grid - 1 / len(scores)).sum(1)

    def best(chosen: np.ndarray) -> int:
        keys = [loss[:, chosen].mean(1), -correct[:, chosen].mean(1)]
        if criterion == "likelihood":
            keys.reverse()
        return int(np.lexsort((distance, *keys))[0])

    fold = fold_of(np.asarray(labels), folds, seed)
    points = [best(fold != held_out) for held_out in range(folds)]
    held_out_right = correct[np.array(points)[fold], rows]
    return Fusion(
        weights=tuple(grid[best(rows >= 0)].tolist()),
        fold_accuracy=tuple(float(held_out_right[fold == f].mean()) for f in range(folds)),
        fold_weights=tuple(tuple(grid[point].tolist()) for point in points),
        accuracy=float(held_out_right.mean()),
    )
