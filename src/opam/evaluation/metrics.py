"""Figures: accuracy with intervals, calibration, localisation, what the parts hold."""

import numpy as np
import pandas as pd
from pydantic import Field

from opam.pipeline.params import Params


class EvaluationParams(Params):
    """How sure the figures are."""

    bootstrap_samples: int = Field(
        1000, ge=100, le=1_000_000, description="resamplings behind an interval"
    )


def accuracy(probabilities: np.ndarray, labels: np.ndarray, top: int = 1) -> float:
    """Share of images whose label is among the ``top`` most probable classes."""
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return float((ranked == labels[:, None]).any(1).mean())


def macro_f1(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of F1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, probabilities.argmax(1), average="macro"))


def balanced_accuracy(correct: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that have photographs of the share that is right.

    Args:
        correct: bool N.
        labels: int N.
    """
    counts = np.bincount(labels)
    shares = np.bincount(labels, weights=correct)[counts > 0] / counts[counts > 0]
    return float(shares.mean())


def wilson_interval(right: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% intervals of shares, which hold for five photographs too (Wilson, JASA 1927).

    Args:
        right: int K.
        counts: int K; where it is 0, nothing is known: 0 to 1.

    Returns:
        Low and high, float K, 0..1.
    """
    z = 1.959964
    n = np.maximum(counts, 1)
    middle = (right + z**2 / 2) / (n + z**2)
    half = z * np.sqrt(right * (n - right) / n + z**2 / 4) / (n + z**2)
    known = counts > 0
    low, high = np.where(known, middle - half, 0.0), np.where(known, middle + half, 1.0)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over equal bins."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def bootstrap_interval(values: np.ndarray, samples: int, seed: int) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of one value an image."""
    rng = np.random.default_rng(seed)
    count, shares = len(values), np.full(len(values), 1 / len(values))
    # One resampling after the other: all at once they take samples x images of memory.
    sums = [rng.multinomial(count, shares) @ values for _ in range(samples)]
    means = np.array(sums, dtype=np.float64) / count
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def ablation_row(
    probabilities: np.ndarray, labels: np.ndarray, samples: int, seed: int
) -> dict[str, float]:
    """All figures of one combination of branches.

    Args:
        probabilities: float N x C.
        labels: int N.
        samples: resamplings of the interval.
        seed: of the resampling.
    """
    correct = probabilities.argmax(1) == labels
    low, high = bootstrap_interval(correct, samples, seed)
    return {
        "accuracy": float(correct.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "balanced_accuracy": balanced_accuracy(correct, labels),
        "top5": accuracy(probabilities, labels, top=5),
        "macro_f1": macro_f1(probabilities, labels),
        "calibration_error": calibration_error(probabilities, labels),
    }


def mcnemar_p(correct: np.ndarray, other_correct: np.ndarray) -> float:
    """McNemar's exact two-sided p that two classifiers are right equally often.

    Args:
        correct: bool N.
        other_correct: bool N, the other classifier on the same images.
    """
    from scipy.stats import binomtest

    only = int((correct & ~other_correct).sum())
    other_only = int((~correct & other_correct).sum())
    return float(binomtest(only, only + other_only).pvalue) if only + other_only else 1.0


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Row-wise intersection over union of N x 4 boxes, float64 N; 0 for two empty boxes."""
    low = np.maximum(boxes[:, :2], others[:, :2])
    shared = (np.minimum(boxes[:, 2:], others[:, 2:]) - low).clip(0).prod(1)
    areas = [(b[:, 2:] - b[:, :2]).clip(0).prod(1) for b in (boxes, others)]
    union = areas[0] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros(len(boxes)), where=union > 0)


def corloc(iou: np.ndarray, threshold: float = 0.5) -> float:
    """Share of images whose object box has at least this IoU with the true one."""
    return float((iou >= threshold).mean())


def pointing_accuracy(boxes: np.ndarray, gt_boxes: np.ndarray) -> float:
    """Share of images whose box has its centre inside the true box.

    Args:
        boxes: N x 4, one an image.
        gt_boxes: N x 4.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = (centre >= gt_boxes[:, :2]) & (centre < gt_boxes[:, 2:])
    return float(inside.all(1).mean())


def visible_locations(parts: pd.DataFrame, keypoints: pd.DataFrame) -> pd.DataFrame:
    """Every part with each visible named location of its photograph.

    Args:
        parts: a table with ``image_id`` and a box.
        keypoints: named locations of the same photographs.

    Returns:
        The columns of ``parts``, ``location, x, y`` and bool ``holds``: is it in the box?
    """
    visible = keypoints[keypoints["visible"]].rename(columns={"part": "location"})
    both = parts.merge(visible, on="image_id")
    both["holds"] = both["x"].between(both["x0"], both["x1"], inclusive="left") & both["y"].between(
        both["y0"], both["y1"], inclusive="left"
    )
    return both


def part_locations(parts: pd.DataFrame, keypoints: pd.DataFrame) -> pd.DataFrame:
    """What each cluster's parts hold.

    Args:
        parts: an aligned-parts table.
        keypoints: named locations of the same photographs; invisible ones do not count.

    Returns:
        A row per cluster and location: ``cluster, location, photographs, share``. Share is
        that of the photographs with a part of the cluster and the location visible, in which
        the part holds the location.
    """
    columns = ["cluster", "location", "photographs", "share"]
    both = visible_locations(parts, keypoints)
    if both.empty:
        return pd.DataFrame(columns=columns)
    keys = ["cluster", "location"]
    a_photograph = both.groupby([*keys, "image_id"])["holds"].any()
    grouped = a_photograph.groupby(level=keys)
    table = pd.DataFrame({"photographs": grouped.size(), "share": grouped.mean()})
    return table.reset_index()[columns]
