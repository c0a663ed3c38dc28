"""Linear discriminant analysis: what features say of classes before anything is fine-tuned.

A network fine-tuned on a few photographs of each class knows them by heart and is unsure of others.
Linear discriminant analysis (Fisher 1936) has less to learn: a mean for each class, and one
covariance for all, which is drawn to a multiple of the identity (Friedman, "Regularized
Discriminant Analysis", JASA 1989). It is computed, not trained: the same photographs give the same
answer. What the covariance should know is how much a class varies, so every box is seen several
times, cut a little differently each time.

With the classes' means m_c, their common covariance S and a shrinkage a, the logits of x are, but
for a scale,

    x . W m_c - m_c . W m_c / 2,  W = ((1 - a) S + a (trace S / D) I)^-1

>>> generator = np.random.default_rng(0)
>>> labels = np.repeat([0, 1], 20)
>>> features = generator.normal(3.0 * labels[:, None, None], size=(40, 3, 2))  # three views each
>>> found = fit_discriminant(features, labels, classes=2, seed=0)
>>> (np.array([[0.0, 0.0], [3.0, 3.0]]) @ found.weights.T + found.bias).argmax(1).tolist()
[0, 1]
"""

from dataclasses import dataclass

import numpy as np
import torch

from opam.photographs.folds import fold_of

FOLDS = 5
"""Of the training photographs, for shrinkage and scale."""
SHRINKAGES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
SCALES = np.geomspace(0.01, 2.0, 40)


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
class _Statistics:
    """Class means and pooled within-class covariance, in the covariance's eigenvectors.

    Attributes:
        values: eigenvalues, float64 D.
        vectors: eigenvectors, float64 D x D, a column each.
        means: float64 C x D, on the eigenvectors.
    """

    values: np.ndarray
    vectors: np.ndarray
    means: np.ndarray


def fit_discriminant(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    seed: int,
    groups: np.ndarray | None = None,
) -> Discriminant:
    """Linear discriminant analysis of all views of all boxes.

    Shrinkage of the covariance and scale of the logits are those under which the labels of
    photographs that were left out are most probable, by cross-validation on the photographs given.
    A class that was left out as a whole says nothing of that, and counts only where all were.

    Args:
        features: float N x V x D, the views of N boxes; the first view is the box itself.
        labels: int N, 0..classes-1.
        classes: number C of classes; one that has no box gets the mean of all.
        seed: of the folds.
        groups: N, of any type: boxes that are left out together, such as those of one photograph;
            None: each by itself.
    """
    count, _, width = features.shape
    flat = features.reshape(-1, width)
    centre, spread = flat.mean(0, dtype=np.float64), flat.std(0, dtype=np.float64)
    spread[spread == 0] = 1.0
    standard = ((features - centre) / spread).astype(np.float32)

    fold = fold_of(labels, FOLDS, seed, groups)
    logits = np.zeros((len(SHRINKAGES), count, classes))
    known = np.zeros(count, dtype=bool)
    for number in np.unique(fold):
        held = fold == number
        if held.all():
            continue  # a single photograph
        known[held] = np.isin(labels[held], labels[~held])
        statistics = _statistics(standard[~held], labels[~held], classes)
        for place, shrinkage in enumerate(SHRINKAGES):
            weights, bias = _discriminant(statistics, shrinkage)
            logits[place, held] = standard[held, 0] @ weights.T + bias
    asked = np.flatnonzero(known) if known.any() else np.arange(count)
    truth, own = labels[asked], np.arange(len(asked))
    losses = np.array(
        [
            [-_log_softmax(scale * each[asked])[own, truth].mean() for scale in SCALES]
            for each in logits
        ]
    )
    best, scale = np.unravel_index(losses.argmin(), losses.shape)
    weights, bias = _discriminant(_statistics(standard, labels, classes), SHRINKAGES[best])
    weights = SCALES[scale] * weights / spread
    bias = SCALES[scale] * bias - weights @ centre
    accuracy = float((logits[best, asked].argmax(1) == truth).mean())
    held_out = np.exp(_log_softmax(SCALES[scale] * logits[best])).astype(np.float32)
    return Discriminant(weights, bias, SHRINKAGES[best], accuracy, held_out, known)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).log_softmax(1).numpy()


def _statistics(features: np.ndarray, labels: np.ndarray, classes: int) -> _Statistics:
    """Of float32 N x V x D features."""
    count, views, width = features.shape
    means = np.zeros((classes, width))
    np.add.at(means, labels, features.mean(1, dtype=np.float64))
    means /= np.maximum(np.bincount(labels, minlength=classes), 1)[:, None]
    covariance = np.zeros((width, width))
    for label in np.unique(labels):  # class by class, for memory
        apart = features[labels == label].reshape(-1, width) - means[label]
        covariance += apart.T @ apart
    values, vectors = np.linalg.eigh(covariance / (count * views))
    return _Statistics(np.maximum(values, 0), vectors, means @ vectors)


def _discriminant(statistics: _Statistics, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights, float64 C x D, and bias, float64 C, of equally probable classes."""
    level = statistics.values.mean() or 1.0
    shrunk = (1 - shrinkage) * statistics.values + shrinkage * level
    projected = statistics.means / shrunk
    bias = -0.5 * (projected * statistics.means).sum(1)
    return projected @ statistics.vectors.T, bias
