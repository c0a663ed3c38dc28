"""Fusion (paper, section III-E): one weighted mean of what original, object and parts say.

A network trained with label smoothing is less sure than it is right, and not all branches alike.
One temperature a branch makes them comparable first (Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017). Nor do all parts say as much: a bird's head tells its species more often
than its back. So the part branch is itself a weighted mean, of the clusters of parts; what it says
of val when the branches are weighed is by the weights of other folds, as in stacking (Wolpert,
"Stacked Generalization", Neural Networks 1992).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from opam.config import Params
from opam.errors import OpamError

Criterion = Literal["accuracy", "likelihood"]
SHARPEST = 10.0
"""One over the least temperature, and the greatest: a few photographs say no more."""
BRANCHES = ("original", "object", "part")
"""What is fused: the probabilities by the whole photograph, by its object, by its parts."""


class FusionParams(Params):
    """The search for the weights."""

    step: float = Field(0.1, gt=0, le=1, description="spacing of the grid of weights")
    folds: int = Field(5, ge=2, description="folds of the cross-validation on val")
    criterion: Criterion = Field(
        "likelihood",
        description="likelihood: the temperatures, and then the weights of the clusters of parts "
        "and of the branches, under which the labels are most probable, which a few photographs "
        "do not upset; accuracy: the weights that are right most often, without temperatures, and "
        "all clusters alike, as in the paper",
    )


@dataclass(frozen=True)
class Fusion:
    """What the search found.

    Attributes:
        weights: one an item of what was searched, summing to 1, best on all images.
        temperatures: one an item, best on all images; for `calibrate`.
        fold_accuracy: accuracy on each held-out fold of the weights chosen on the others.
        fold_weights: those weights.
        held_out: float64 N x C, each image fused by what its fold was held out from.
        accuracy: share of images that ``held_out`` has right; what to expect of the chosen way
            of choosing, where the accuracy of ``weights`` themselves would flatter.
    """

    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    fold_accuracy: tuple[float, ...]
    fold_weights: tuple[tuple[float, ...], ...]
    held_out: np.ndarray
    accuracy: float


def fuse(scores: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Weighted sum over branches: M x N x C scores to float64 N x C."""
    return np.tensordot(np.asarray(weights, dtype=np.float64), np.asarray(scores), axes=1)


def calibrate(scores: np.ndarray, temperatures: Sequence[float] | np.ndarray) -> np.ndarray:
    """Every branch's probabilities at its own temperature: the softmax of their logs over it.

    Args:
        scores: float M x N x C, probabilities.
        temperatures: M, above 0; 1 changes nothing.

    Returns:
        float64 M x N x C.
    """
    divisor = np.asarray(temperatures, dtype=np.float64)[:, None, None]
    return softmax(np.log(np.maximum(scores, 1e-12, dtype=np.float64)) / divisor, axis=2)


def temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which the labels are most probable, 0.1..10.

    Args:
        scores: float N x C, one branch's probabilities.
        labels: int N, 0..C-1.
    """
    logs = np.log(np.maximum(scores, 1e-12, dtype=np.float64))
    rows = np.arange(len(labels))

    def loss(inverse: float) -> float:  # convex in one over the temperature
        return -float(log_softmax(logs * inverse, axis=1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=(1 / SHARPEST, SHARPEST), method="bounded")
    return 1 / float(found.x)


def weight_grid(branches: int, step: float) -> np.ndarray:
    """All weights on a grid that sum to 1, float64 G x branches, in lexicographic order."""
    parts = max(1, round(1 / step))
    # A point for each way to set branches - 1 bars among the parts, which they share out.
    bars = np.array(list(combinations(range(parts + branches - 1), branches - 1)), dtype=np.int64)
    ends = np.pad(bars, ((0, 0), (1, 1)), constant_values=((-1, -1), (-1, parts + branches - 1)))
    return (np.diff(ends) - 1) / parts


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
    change places, and each branch is calibrated first.

    Args:
        scores: float M x N x C, class probabilities of each branch, or cluster of parts.
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
    scores, labels = np.asarray(scores), np.asarray(labels)
    grid = weight_grid(len(scores), step)
    distance = np.square(grid - 1 / len(scores)).sum(1)

    def best(chosen: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Weights and temperatures on the chosen images."""
        own, truth = scores[:, chosen], labels[chosen]
        temperatures = (1.0,) * len(scores)
        if criterion == "likelihood":
            temperatures = tuple(temperature(branch, truth) for branch in own)
        own = calibrate(own, temperatures)
        wrong, loss = np.empty((2, len(grid)))
        for point, weights in enumerate(grid):
            fused = fuse(own, weights)
            wrong[point] = (fused.argmax(1) != truth).mean()
            loss[point] = -np.log(np.maximum(fused[np.arange(len(truth)), truth], 1e-12)).mean()
        keys = (loss, wrong) if criterion == "accuracy" else (wrong, loss)
        return tuple(grid[np.lexsort((distance, *keys))[0]].tolist()), temperatures

    fold = fold_of(labels, folds, seed)
    found = [best(fold != number) for number in range(folds)]
    held_out = np.empty(scores.shape[1:])
    for number, (weights, temperatures) in enumerate(found):
        own = fold == number
        held_out[own] = fuse(calibrate(scores[:, own], temperatures), weights)
    right = held_out.argmax(1) == labels
    weights, temperatures = best(np.ones(len(labels), dtype=bool))
    return Fusion(
        weights=weights,
        temperatures=temperatures,
        fold_accuracy=tuple(float(right[fold == f].mean()) for f in range(folds)),
        fold_weights=tuple(each for each, _ in found),
        held_out=held_out,
        accuracy=float(right.mean()),
    )
