"""Linear discriminant analysis: what features say of classes before anything is fine-tuned.

A network fine-tuned on a few photographs of each class knows them by heart and is unsure of others.
Linear discriminant analysis (Fisher 1936) has less to learn: a mean for each class, and one
covariance for all, which is drawn to a multiple of the identity (Friedman, "Regularized
Discriminant Analysis", JASA 1989). It is computed, not trained: the same photographs give the same
answer. What the covariance should know is how much a class varies, so every box is seen several
times, cut a little differently each time. Photographs come one after the other and only sums over
them stay in memory.

With the classes' means m_c, their common covariance S and a shrinkage a, the logits of x are, but
for a scale,

    x . W m_c - m_c . W m_c / 2,  W = ((1 - a) S + a (trace S / D) I)^-1

>>> generator = np.random.default_rng(0)
>>> labels = np.repeat([0, 1], 20)
>>> features = generator.normal(3.0 * labels[:, None, None], size=(40, 3, 2))  # three views each
>>> found = fit_discriminant(lambda: [features], labels, classes=2, seed=0)
>>> (np.array([[0.0, 0.0], [3.0, 3.0]]) @ found.weights.T + found.bias).argmax(1).tolist()
[0, 1]
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from opam.photographs.folds import fold_of

FOLDS = 5
"""Of the training photographs, for shrinkage and scale."""
SHRINKAGES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
SCALES = np.geomspace(0.01, 2.0, 40)
TINY = 1e-6
"""Spread of a feature over its mean that is rounding."""
CPU = torch.device("cpu")

Features = Callable[[], Iterable[np.ndarray]]
"""Begins anew each time: float32 n x V x D of the first boxes, then of the next ones, and so on."""


@dataclass(frozen=True)
class Discriminant:
    """A linear layer on features, and how it was chosen.

    Attributes:
        weights: float64 C x D.
        bias: float64 C.
        shrinkage: of the covariance, 0..1.
        accuracy: share of training photographs that are right when held out, 0..1.
        held_out: float32 N x C, probabilities of each box by a layer that was fitted without its
            group.
        known: bool N, whether there was another group of its class to fit that layer on.
    """

    weights: np.ndarray
    bias: np.ndarray
    shrinkage: float
    accuracy: float
    held_out: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class _Moments:
    """Of views of boxes, about a centre.

    Attributes:
        counts: of each class, float64 C.
        sums: of each class, float64 C x D.
        products: sum of outer products of all, float64 D x D.
    """

    counts: torch.Tensor
    sums: torch.Tensor
    products: torch.Tensor

    def without(self, other: "_Moments") -> "_Moments":
        return _Moments(
            self.counts - other.counts, self.sums - other.sums, self.products - other.products
        )


@dataclass(frozen=True)
class Statistics:
    """Class means and pooled within-class covariance, in the covariance's eigenvectors.

    Attributes:
        values: eigenvalues, D.
        vectors: eigenvectors, D x D, a column each.
        means: C x D, on the eigenvectors.
        there: bool C, the classes that have boxes.
    """

    values: torch.Tensor
    vectors: torch.Tensor
    means: torch.Tensor
    there: torch.Tensor

    def shrunk(self, shrinkage: float) -> torch.Tensor:
        """Eigenvalues drawn to their mean."""
        level = self.values.mean()
        level = torch.where(level > 0, level, 1.0)
        return (1 - shrinkage) * self.values + shrinkage * level

    def layer(self, shrinkage: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights on the eigenvectors, C x D, and bias, C, of equally probable classes."""
        weights = self.means / self.shrunk(shrinkage)
        return weights, -0.5 * (weights * self.means).sum(1)


@dataclass(frozen=True)
class Held:
    """Statistics by which boxes can be judged that these know nothing of.

    Features are taken from ``centre`` and divided by ``spread`` first.

    Attributes:
        fold: int N, of each box.
        known: bool N, whether its class is in another fold, too.
        centre: float64 D.
        spread: float64 D.
        without: by fold, of the boxes of all others; on the device.
        whole: of all boxes, float64, on the CPU.
    """

    fold: np.ndarray
    known: np.ndarray
    centre: torch.Tensor
    spread: torch.Tensor
    without: dict[int, Statistics]
    whole: Statistics

    def first_views(
        self, features: Iterable[np.ndarray], device: torch.device
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows, and the features of the boxes themselves, float32 n x D, as statistics are of."""
        for rows, views in _with_rows(features):
            boxes = torch.from_numpy(views[:, 0]).to(device)
            yield rows, ((boxes - self.centre.to(boxes)) / self.spread.to(boxes)).float()


def fit_discriminant(
    features: Features,
    labels: np.ndarray,
    classes: int,
    seed: int,
    groups: np.ndarray | None = None,
    device: torch.device = CPU,
) -> Discriminant:
    """Linear discriminant analysis of all views of all boxes.

    Shrinkage of the covariance and scale of the logits are those under which the labels of
    photographs that were left out are most probable, by cross-validation on the photographs given.
    Each class counts alike in this, however many photographs it has; one that was left out as a
    whole says nothing, and counts only where all were. The features are gone through three times.

    Args:
        features: of V views of N boxes, in their order; the first view is the box itself.
        labels: int N, 0..classes-1.
        classes: number C of classes; one that has no box gets the mean of all.
        seed: of the folds.
        groups: N, of any type: boxes that are left out together, such as those of one photograph;
            None: each by itself.
        device: of the products, float32; what is made of their sums is float64 on the CPU.
    """
    labels = np.array(labels)  # torch wants its own
    held = hold_out(features, labels, classes, seed, groups, device)
    fold, known = held.fold, held.known
    asked = known if known.any() else np.ones(len(labels), dtype=bool)
    share = asked / np.bincount(labels[asked], minlength=classes).clip(min=1)[labels]

    def held_out(shrinkages: tuple[float, ...]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows, and logits by layers that were fitted without their folds, float32 S x n x C."""
        for rows, boxes in held.first_views(features(), device):
            logits = torch.zeros(len(shrinkages), len(boxes), classes, device=device)
            for number in np.unique(fold[rows]):
                if number not in held.without:
                    continue  # a single photograph
                own = torch.from_numpy(fold[rows] == number).to(device)
                turned = boxes[own] @ held.without[number].vectors
                for place, shrinkage in enumerate(shrinkages):
                    weights, bias = held.without[number].layer(shrinkage)
                    logits[place, own] = turned @ weights.T + bias
            yield rows, logits

    losses = np.zeros((len(SHRINKAGES), len(SCALES)))
    right = np.zeros(len(SHRINKAGES))
    for rows, logits in held_out(SHRINKAGES):
        truth = torch.from_numpy(labels[rows]).to(device)
        own = torch.from_numpy(share[rows]).to(device)
        right += ((logits.argmax(2) == truth) & (own > 0)).sum(1).cpu().numpy()
        for place, scale in enumerate(SCALES):
            found = (scale * logits).log_softmax(2)[:, torch.arange(len(truth)), truth]
            losses[:, place] -= (found * own).sum(1).cpu().numpy()
    best, scale = np.unravel_index(losses.argmin(), losses.shape)
    probabilities = [
        (SCALES[scale] * logits[0]).softmax(1).cpu().numpy()
        for _, logits in held_out((SHRINKAGES[best],))
    ]

    weights, bias = held.whole.layer(SHRINKAGES[best])
    weights = SCALES[scale] * (weights @ held.whole.vectors.T) / held.spread
    bias = SCALES[scale] * bias - weights @ held.centre
    accuracy = float(right[best] / asked.sum())
    layer = weights.numpy(), bias.numpy(), SHRINKAGES[best], accuracy
    return Discriminant(*layer, np.concatenate(probabilities), known)


def hold_out(
    features: Features,
    labels: np.ndarray,
    classes: int,
    seed: int,
    groups: np.ndarray | None,
    device: torch.device,
) -> Held:
    """Statistics of all boxes, and of those without each fold; arguments as `fit_discriminant`."""
    fold = fold_of(labels, FOLDS, seed, groups)
    there = np.zeros((FOLDS, classes), dtype=np.int64)
    np.add.at(there, (fold, labels), 1)
    known = (there.sum(0) - there)[fold, labels] > 0
    centre, moments = _moments(features(), labels, fold, classes, device)
    every = _summed(moments)
    mean = every.sums.sum(0) / every.counts.sum()
    spread = (every.products.diagonal() / every.counts.sum() - mean**2).clamp(min=0).sqrt()
    spread[spread <= TINY * (centre + mean).abs()] = 1.0  # of a constant there is nothing but noise
    without = {
        number: _on_device(_statistics(every.without(own), mean, spread), device)
        for number, own in enumerate(moments)
        if (every.counts > own.counts).any()
    }
    return Held(fold, known, centre + mean, spread, without, _statistics(every, mean, spread))


def _with_rows(features: Iterable[np.ndarray]) -> Iterator[tuple[slice, np.ndarray]]:
    start = 0
    for piece in features:
        yield slice(start, start + len(piece)), piece
        start += len(piece)


def _moments(
    features: Iterable[np.ndarray],
    labels: np.ndarray,
    fold: np.ndarray,
    classes: int,
    device: torch.device,
) -> tuple[torch.Tensor, list[_Moments]]:
    """A centre, float64 D, that is near the mean, and the moments of each fold about it."""
    centre: torch.Tensor | None = None
    found: list[_Moments] = []
    for rows, block in _with_rows(features):
        views, width = block.shape[1:]
        if centre is None:
            centre = torch.from_numpy(block.mean((0, 1)))
            found = [_no_moments(classes, width) for _ in range(FOLDS)]
        apart = (torch.from_numpy(block) - centre).to(device)
        for number in np.unique(fold[rows]):
            own = fold[rows] == number
            theirs = torch.from_numpy(labels[rows][own])
            flat = apart[torch.from_numpy(own).to(device)]
            sums = flat.sum(1).double().cpu()
            flat = flat.reshape(-1, width)
            into = found[number]
            into.counts.index_add_(0, theirs, torch.full_like(sums[:, 0], views))
            into.sums.index_add_(0, theirs, sums)
            into.products.add_((flat.T @ flat).double().cpu())
    assert centre is not None
    return centre.double(), found


def _no_moments(classes: int, width: int) -> _Moments:
    sizes = (classes,), (classes, width), (width, width)
    return _Moments(*(torch.zeros(size, dtype=torch.float64) for size in sizes))


def _summed(moments: list[_Moments]) -> _Moments:
    counts, sums, products = zip(*((m.counts, m.sums, m.products) for m in moments), strict=True)
    return _Moments(*(torch.stack(each).sum(0) for each in (counts, sums, products)))


def _statistics(moments: _Moments, mean: torch.Tensor, spread: torch.Tensor) -> Statistics:
    """Of features from which ``mean`` (about the moments' centre) is taken, over ``spread``."""
    counts = moments.counts[:, None]
    means = moments.sums / counts.clamp(min=1)
    covariance = moments.products - moments.sums.T @ means  # of every class about its mean
    covariance = covariance / counts.sum() / spread / spread[:, None]
    values, vectors = torch.linalg.eigh(covariance)
    means = torch.where(counts > 0, means - mean, 0) / spread
    return Statistics(values.clamp(min=0), vectors, means @ vectors, moments.counts > 0)


def _on_device(statistics: Statistics, device: torch.device) -> Statistics:
    values, vectors, means = statistics.values, statistics.vectors, statistics.means
    values, vectors, means = (each.float().to(device) for each in (values, vectors, means))
    return Statistics(values, vectors, means, statistics.there.to(device))
