"""Labels that the photographs argue against: what was answered without having seen them.

Confident learning (Northcutt, Jiang and Chuang, JAIR 2021). p(k|x) is what a classifier that was
not fitted on photograph x says of class k; how sure it is of a class where that is the label,
on average, is the class's threshold:

    t_k = mean of p(k|x) over all x that are labelled k

A photograph labelled i that is another class j with p(j|x) >= t_j is doubted for good reason. The
worst are those that speak least for their label: with the least p(i|x) - p(j|x).

>>> said = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.95, 0.05]])
>>> doubtful_labels(said, np.array([0, 0, 1, 1]))  # the last is labelled 1, and looks like 0
   row  suggested  own_probability  suggested_probability  above_threshold
0    3          0             0.05                   0.95             True
"""

import numpy as np
import pandas as pd

from opam.method.fusion import logarithms


def doubtful_labels(probabilities: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Photographs whose most probable class is not their label, worst first.

    Args:
        probabilities: float N x C, of classifiers that were fitted without the photograph.
        labels: int N, 0..C-1.

    Returns:
        ``row`` of the photograph, the ``suggested`` class, ``own_probability`` of the label,
        ``suggested_probability``, and whether that is ``above_threshold``, as it is where the
        suggested class is the label.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    suggested = probabilities.argmax(1)
    found = probabilities[rows, suggested]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, weights=own, minlength=probabilities.shape[1])
    # A class that no label names has no threshold: none is reached.
    thresholds = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    table = pd.DataFrame(
        {
            "row": rows,
            "suggested": suggested,
            "own_probability": own,
            "suggested_probability": found,
            "above_threshold": found >= thresholds[suggested],
        }
    )
    worst = np.argsort(own - found, kind="stable")
    return table.iloc[worst][suggested[worst] != labels[worst]].reset_index(drop=True)


def most_alike(probabilities: np.ndarray, row: int, among: np.ndarray, most: int) -> np.ndarray:
    """Photographs that were answered most like one, nearest first.

    Nearest by Aitchison's distance (The Statistical Analysis of Compositional Data, 1986): between
    logarithms of probabilities less their mean over the classes. A linear classifier's logits are
    these, so it looks at all that the classifier told classes by, not at its first answer alone.

    Args:
        probabilities: float N x C.
        row: of the one.
        among: int M, rows of those that are compared; the one itself is left out.
        most: so many at most.

    Returns:
        Rows, int of at most ``most``.
    """
    among = among[among != row]
    logs = logarithms(probabilities[[row, *among]])
    logs -= logs.mean(1, keepdims=True)
    distances = np.square(logs[1:] - logs[0]).sum(1)
    return among[np.argsort(distances, kind="stable")[:most]]
