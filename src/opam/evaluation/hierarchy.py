"""Classes in their parents: what a parent is given, accuracy at each level, answers sure enough.

A level names the parent of each class. The probability of a parent is that of its classes
together:

    p(parent|x) = sum of p(k|x) over the classes k of the parent

so that a photograph whose class is not sure may still have a parent that is.

>>> by_level = probabilities_by_level(np.array([0.5, 0.4, 0.1]), ["gull", "tern", "wren"],
...                                   [["seabird", "seabird", "songbird"]])
>>> sure_answer(by_level, 0.8)
('seabird', 1, 0.9)
"""

from collections.abc import Mapping, Sequence

import numpy as np

from opam.evaluation.metrics import bootstrap_interval

DIGITS = 6
"""Of a probability that is told; what is told is what is compared."""


def parent_indices(parents: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The names of one level, by name, and which of them each class has (int C).

    Args:
        parents: of each class one, as in data/parents.json.
    """
    names, of_class = np.unique(np.array(parents, dtype=object), return_inverse=True)
    return names.tolist(), of_class


def parent_probabilities(probabilities: np.ndarray, of_class: np.ndarray) -> np.ndarray:
    """Sums of the probabilities of each parent's classes.

    Args:
        probabilities: float N x C.
        of_class: int C, 0..P-1, each of which some class has.

    Returns:
        Float64 N x P.
    """
    probabilities = probabilities.astype(np.float64)
    sums = [probabilities[:, of_class == parent].sum(1) for parent in range(of_class.max() + 1)]
    return np.stack(sums, axis=1)


def level_figures(
    probabilities: np.ndarray, labels: np.ndarray, parents: Sequence[str], samples: int, seed: int
) -> dict[str, float | int | None]:
    """How often the parent is right, and where wrong answers go.

    Args:
        probabilities: float N x C of the classes.
        labels: int N.
        parents: of each class one.
        samples: resamplings of the interval.
        seed: of the resampling.

    Returns:
        ``names``, how many parents there are; ``accuracy`` of the parent that is given most, with
        its 95% interval; and of the photographs whose most probable class is wrong the share whose
        class has the right parent (``errors_within``) and another (``errors_between``), None where
        none is wrong.
    """
    names, of_class = parent_indices(parents)
    right = parent_probabilities(probabilities, of_class).argmax(1) == of_class[labels]
    low, high = bootstrap_interval(right, samples, seed)
    answers = probabilities.argmax(1)
    wrong = answers != labels
    within = of_class[answers[wrong]] == of_class[labels[wrong]]
    return {
        "names": len(names),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "errors_within": float(within.mean()) if wrong.any() else None,
        "errors_between": float((~within).mean()) if wrong.any() else None,
    }


def probabilities_by_level(
    probabilities: np.ndarray, classes: Sequence[str], levels: Sequence[Sequence[str]]
) -> list[dict[str, float]]:
    """The probability of each class, and of each parent at every level, by name.

    Args:
        probabilities: float C.
        classes: their names.
        levels: of each class its parent, from the finest level.
    """
    found = [dict(zip(classes, probabilities.tolist(), strict=True))]
    for parents in levels:
        names, of_class = parent_indices(parents)
        [sums] = parent_probabilities(probabilities[None], of_class)
        found.append(dict(zip(names, sums.tolist(), strict=True)))
    return found


def sure_answer(
    by_level: Sequence[Mapping[str, float]], sure: float
) -> tuple[str, int | None, float | None]:
    """The most probable name of the finest level at which it is sure enough.

    Args:
        by_level: of `probabilities_by_level`.
        sure: probability that it has at least, 0..1; it is compared in `DIGITS` digits.

    Returns:
        The name, its level (0: a class) and its probability; of several alike the first. An empty
        name, None and None where no level is sure enough.
    """
    for level, probabilities in enumerate(by_level):
        name = max(probabilities, key=probabilities.__getitem__)
        probability = round(probabilities[name], DIGITS)
        if probability >= sure:
            return name, level, probability
    return "", None, None
