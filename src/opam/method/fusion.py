"""Fusion (paper, section III-E): one answer from what original, object and parts say.

The paper's is a weighted mean of probabilities. What a mean can become is as sure as the surest at
best; parts are different evidence, and where the bill and the wing bar each leave two species, only
both together leave one. So by default probabilities are multiplied, each to a power of its own (a
logarithmic opinion pool; Genest and Zidek, "Combining Probability Distributions", Statistical
Science 1986). The powers are weights and temperatures in one: a network trained with label
smoothing is less sure than it is right, and gets a greater one.

With the probabilities p_b of the branches b, and weights w_b:

    mean: p = sum over b of w_b p_b;  product: p proportional to the product of p_b^(w_b)

>>> bill, wing = [[0.5, 0.5, 0.0]], [[0.0, 0.5, 0.5]]  # each leaves two species
>>> fuse(np.array([bill, wing]), [1.0, 1.0], "product").round(2).tolist()
[[0.0, 1.0, 0.0]]
>>> fuse(np.array([bill, wing]), [0.5, 0.5], "mean").tolist()
[[0.25, 0.5, 0.25]]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from opam.photographs.folds import fold_of, usable_folds
from opam.pipeline.params import Params

Rule = Literal["product", "mean"]
PENALTY = 4.0
"""Of squared distances of powers from equal ones that sum to 1, against negative log-likelihoods:
a normal distribution about these, of standard deviation 0.35. It keeps a few photographs of val,
all of them right, from making a branch sure without bounds."""
BRANCHES = ("original", "object", "part")
"""What is fused: the probabilities by the whole photograph, by its object, by its parts."""
FUSED = "+".join(BRANCHES)
PROBE = " probe"
"""Behind the name of a score: it is the probe's, not the fine-tuned network's (`probes`)."""


class FusionParams(Params):
    """The search for the weights."""

    rule: Rule = Field(
        "product",
        description="product: of powers of the probabilities by original, object and each cluster "
        "of parts, the powers under which the labels are most probable; mean: weighted, as in the "
        "paper, of original, object and the mean of all parts, the weights that are right most "
        "often",
    )
    scores: Literal["all", "networks", "probes"] = Field(
        "all",
        description="what is fused: networks, as in the paper: what those fine-tuned say; probes: "
        "what linear discriminants of the pretrained backbone's features say; all: both",
    )
    folds: int = Field(5, ge=2, le=1000, description="folds of the cross-validation on val")
    step: float = Field(
        0.1, ge=0.001, le=1, description="rule mean: spacing of the grid of weights"
    )


@dataclass(frozen=True)
class Fusion:
    """What the search found.

    Attributes:
        weights: one an item of what was searched, best on all images; of a mean they sum to 1.
        fold_accuracy: accuracy on each held-out fold of the weights chosen on the others.
        fold_weights: those weights.
        accuracy: share of all images that are right when held out; what to expect of the
            chosen way of choosing, where the accuracy of ``weights`` themselves would flatter.
    """

    weights: tuple[float, ...]
    fold_accuracy: tuple[float, ...]
    fold_weights: tuple[tuple[float, ...], ...]
    accuracy: float


def fuse(scores: np.ndarray, weights: Sequence[float] | np.ndarray, rule: Rule) -> np.ndarray:
    """What all items say together: probabilities, float64 N x C.

    Args:
        scores: float M x N x C, each item's probabilities.
        weights: M, 0 or more; of a mean they sum to 1.
        rule: how they are put together.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if rule == "mean":
        return np.tensordot(weights, np.asarray(scores), axes=1)
    return softmax(np.tensordot(weights, logarithms(scores), axes=1), axis=1)


def fuse_named(
    scores: Mapping[str, np.ndarray], weights: Mapping[str, float], rule: Rule
) -> np.ndarray:
    """`fuse` of those of the named ``scores`` that have a weight."""
    return fuse(np.stack([scores[name] for name in weights]), [*weights.values()], rule)


def branch_answers(
    scores: Mapping[str, np.ndarray], weights: Mapping[str, Mapping[str, float]], rule: Rule
) -> dict[str, np.ndarray]:
    """What each branch says, and all of them: float64 N x C, by branch and by "fused".

    Args:
        scores: float N x C, by name.
        weights: of each branch and of `FUSED`, by the names of scores.
        rule: how they are put together.
    """
    combinations = dict(zip((*BRANCHES, "fused"), (*BRANCHES, FUSED), strict=True))
    return {name: fuse_named(scores, weights[each], rule) for name, each in combinations.items()}


def branch_of(name: str) -> str:
    """Which of `BRANCHES` a score belongs to, by its name; clusters are parts."""
    name = name.removesuffix(PROBE)
    return name if name in BRANCHES else "part"


def by_branch(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of scores of each of `BRANCHES`."""
    names = list(names)
    return {branch: [name for name in names if branch_of(name) == branch] for branch in BRANCHES}


def logarithms(scores: np.ndarray) -> np.ndarray:
    """float64; of probabilities that are 0 or nearly so, that of 1e-12."""
    return np.log(np.maximum(scores, 1e-12, dtype=np.float64))


def weight_grid(branches: int, step: float) -> np.ndarray:
    """All weights on a grid that sum to 1, float64 G x branches, in lexicographic order."""
    parts = max(1, round(1 / step))
    # A point for each way to set branches - 1 bars among the parts, which they share out.
    bars = np.array(list(combinations(range(parts + branches - 1), branches - 1)), dtype=np.int64)
    ends = np.pad(bars, ((0, 0), (1, 1)), constant_values=((-1, -1), (-1, parts + branches - 1)))
    return (np.diff(ends) - 1) / parts


def most_accurate(scores: np.ndarray, labels: np.ndarray, step: float) -> np.ndarray:
    """The weights on a grid whose mean is right most often.

    Among equals those of the least mean negative log-likelihood win, then those closest to equal
    weights.

    Args:
        scores: float M x N x C, probabilities.
        labels: int N, 0..C-1.
        step: spacing of the grid, 0..1; rounded to one over a whole number.

    Returns:
        float64 M, 0..1, summing to 1.
    """
    grid = weight_grid(len(scores), step)
    distance = np.square(grid - 1 / len(scores)).sum(1)
    wrong, loss = np.empty((2, len(grid)))
    for point, weights in enumerate(grid):
        fused = fuse(scores, weights, "mean")
        wrong[point] = (fused.argmax(1) != labels).mean()
        loss[point] = -logarithms(fused[np.arange(len(labels)), labels]).mean()
    return grid[np.lexsort((distance, loss, wrong))[0]]


def most_probable(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The powers under whose product the labels are most probable, less the `PENALTY`.

    Args:
        scores: float M x N x C, probabilities.
        labels: int N, 0..C-1.

    Returns:
        float64 M, 0 or more.
    """
    logs = logarithms(scores)
    of_labels = logs[:, np.arange(len(labels)), labels].sum(1)
    equal = np.full(len(scores), 1 / len(scores))

    def loss(powers: np.ndarray) -> tuple[float, np.ndarray]:  # convex, with its gradient
        total = np.tensordot(powers, logs, axes=1)
        apart = powers - equal
        value = logsumexp(total, axis=1).sum() - powers @ of_labels + PENALTY * apart @ apart
        expected = np.tensordot(logs, softmax(total, axis=1), axes=2)
        return value, expected - of_labels + 2 * PENALTY * apart

    return minimize(loss, equal, jac=True, bounds=[(0, None)] * len(equal)).x


def search_weights(
    scores: np.ndarray,
    labels: np.ndarray,
    folds: int,
    step: float,
    seed: int,
    rule: Rule,
    groups: np.ndarray | None = None,
) -> Fusion:
    """Search fusion weights, with k-fold cross-validation.

    Args:
        scores: float M x N x C, class probabilities of each item.
        labels: int N, 0..C-1.
        folds: number k of folds, 2..N; fewer where there are fewer groups.
        step: as for `most_accurate`, which finds the weights of a mean.
        seed: of the folds.
        rule: product: the weights are those of `most_probable`.
        groups: N, of any type: images that are in one fold; None: each by itself.

    Raises:
        OpamError: as `opam.photographs.folds.usable_folds`.
    """
    folds = usable_folds(folds, len(labels), len(labels if groups is None else np.unique(groups)))
    scores, labels = np.asarray(scores), np.asarray(labels)

    def best(chosen: np.ndarray) -> tuple[float, ...]:
        own, truth = scores[:, chosen], labels[chosen]
        found = most_accurate(own, truth, step) if rule == "mean" else most_probable(own, truth)
        return tuple(found.tolist())

    fold = fold_of(labels, folds, seed, groups)
    found = tuple(best(fold != number) for number in range(folds))
    right = np.empty(len(labels), dtype=bool)
    for number, weights in enumerate(found):
        own = fold == number
        right[own] = fuse(scores[:, own], weights, rule).argmax(1) == labels[own]
    return Fusion(
        weights=best(np.ones(len(labels), dtype=bool)),
        fold_accuracy=tuple(float(right[fold == number].mean()) for number in range(folds)),
        fold_weights=found,
        accuracy=float(right.mean()),
    )


def branch_shares(weights: Mapping[str, float]) -> dict[str, float]:
    """How much each branch counts, 0..1: the weights of its scores, of all weights.

    Args:
        weights: by name.
    """
    total = sum(weights.values()) or 1.0
    shares = dict.fromkeys(BRANCHES, 0.0)
    for name, weight in weights.items():
        shares[branch_of(name)] += weight / total
    return shares
