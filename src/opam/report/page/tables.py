"""The figures of the page that no stage writes: per class, per pair of classes, per bin."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from opam.evaluation.metrics import box_iou, wilson_interval
from opam.method.fusion import FUSED, branch_shares
from opam.pipeline.artifacts import BOX, GT_BOX


def class_accuracy(
    labels: np.ndarray, predicted: Mapping[str, np.ndarray], classes: int
) -> pd.DataFrame:
    """Accuracy of every branch on the photographs of each class.

    Args:
        labels: int N.
        predicted: int N for each branch.
        classes: how many there are.

    Returns:
        A row a class, those with no photograph too: ``label, photographs``, a column a branch, NaN
        without photographs, and ``low`` and ``high``, the 95% interval of the last one.
    """
    photographs = np.bincount(labels, minlength=classes)
    table = pd.DataFrame({"label": np.arange(classes), "photographs": photographs})
    for branch, found in predicted.items():
        right = np.bincount(labels[found == labels], minlength=classes)
        share = np.full(classes, np.nan)
        table[branch] = np.divide(right, photographs, out=share, where=photographs > 0)
        table["low"], table["high"] = wilson_interval(right, photographs)
    return table


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Int64 C x C: photographs of the row's class that were given the column's."""
    cells = np.bincount(labels * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


def confused_pairs(
    labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, most: int, shown: int
) -> list[dict[str, Any]]:
    """The commonest mistakes.

    Args:
        labels: int N.
        predicted: int N.
        confidence: float N.
        most: so many pairs at most.
        shown: so many photographs a side at most.

    Returns:
        For each pair, most photographs first: ``actual``, ``predicted`` (labels), ``count``,
        ``wrong`` (photographs of actual given predicted, most confident first) and ``right``
        (photographs of predicted that were recognised), as positions.
    """
    wrong = pd.DataFrame({"actual": labels, "predicted": predicted})[labels != predicted]
    counts = wrong.value_counts(sort=False).reset_index(name="count")
    counts = counts.sort_values(["count", "actual", "predicted"], ascending=[False, True, True])
    order = np.argsort(-confidence, kind="stable")
    pairs = []
    for actual, answer in counts.head(most)[["actual", "predicted"]].to_numpy().tolist():
        given = order[(labels[order] == actual) & (predicted[order] == answer)]
        known = order[(labels[order] == answer) & (predicted[order] == answer)]
        pairs.append(
            {
                "actual": actual,
                "predicted": answer,
                "count": len(given),
                "wrong": given[:shown].tolist(),
                "right": known[:shown].tolist(),
            }
        )
    return pairs


def reliability_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """How often a confidence is right.

    Args:
        confidence: float N, 0..1.
        correct: bool N.
        bins: of equal width.

    Returns:
        A row a bin that holds photographs: ``low, high, photographs, confidence, accuracy``,
        the last two means.
    """
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": bin_of, "confidence": confidence, "accuracy": correct})
    groups = table.groupby("bin")
    found = groups[["confidence", "accuracy"]].mean()
    found.insert(0, "photographs", groups.size())
    found.insert(0, "high", (found.index + 1) / bins)
    found.insert(0, "low", found.index / bins)
    return found.reset_index(drop=True)


def fusion_rows(fusion: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How much each branch counts, and the least, mean and greatest over the folds.

    Args:
        fusion: what data/fusion.json holds.
    """
    by_fold = [branch_shares(fold["weights"]) for fold in fusion["folds"]]
    rows = []
    for branch, share in branch_shares(fusion["weights"][FUSED]).items():
        folds = [shares[branch] for shares in by_fold]
        rows.append(
            {
                "branch": branch,
                "weight": share,
                "low": min(folds),
                "mean": sum(folds) / len(folds),
                "high": max(folds),
            }
        )
    return rows


def fusion_weights(fusion: Mapping[str, Any]) -> str:
    """In a line: the weight of each score in what all say together.

    Args:
        fusion: what data/fusion.json holds.
    """
    weights = fusion["weights"][FUSED].items()
    return ", ".join(f"{name}: {weight:.2f}" for name, weight in weights)


def most_exciting(
    parts: pd.DataFrame, positions: Mapping[str, int], shown: int
) -> dict[int, list[dict[str, Any]]]:
    """The parts that excite each cluster's neurons most, no two of one photograph.

    Args:
        parts: an aligned-parts table, indexed by image_id.
        positions: of the photographs that the page shows, by image_id.
        shown: so many parts a cluster.

    Returns:
        By cluster, highest first: ``photograph`` (its position), ``part``, ``activation``.
    """
    shown_parts = parts[parts.index.isin(list(positions))].reset_index()
    ordered = shown_parts.sort_values(
        ["activation", "image_id", "part"], ascending=[False, True, True]
    )
    best = ordered.drop_duplicates(["cluster", "image_id"]).groupby("cluster").head(shown)
    found: dict[int, list[dict[str, Any]]] = {}
    for cluster, image_id, part, activation in zip(
        best["cluster"], best["image_id"], best["part"], best["activation"], strict=True
    ):
        found.setdefault(int(cluster), []).append(
            {
                "photograph": positions[image_id],
                "part": int(part),
                "activation": round(float(activation), 3),
            }
        )
    return found


def choose_training(manifest: pd.DataFrame, most: int) -> list[str]:
    """Photographs of the train split to show: the first of each of ``most`` classes at most."""
    train = manifest[manifest["split"] == "train"]
    first = train.drop_duplicates("label").sort_values("label")["image_id"].tolist()
    step = max(1, -(-len(first) // most))
    return first[::step]


def strongest_and_weakest(patches: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most ``most`` of a photograph's patches: those of highest and of lowest confidence."""
    ordered = patches.sort_values(["confidence", "rank"], ascending=[False, True])
    if len(ordered) <= most:
        return ordered
    return pd.concat([ordered.head(most // 2), ordered.tail(most - most // 2)])


def count_shares(batches: Iterable[np.ndarray], bins: int) -> np.ndarray:
    """Int64 bins: how many of the shares 0..1, given in batches, fall into each bin."""
    counts = np.zeros(bins, dtype=np.int64)
    for shares in batches:
        counts += np.histogram(shares, bins=bins, range=(0, 1))[0]
    return counts


def count_ious(photographs: pd.DataFrame, objects: pd.DataFrame, bins: int) -> np.ndarray | None:
    """How many photographs have which IoU of object box and true box.

    Args:
        photographs: rows of the manifest.
        objects: an objects table, indexed by image_id.
        bins: of equal width.

    Returns:
        int64 bins; None where no photograph has a true box.
    """
    boxed = photographs.dropna(subset=GT_BOX)
    if boxed.empty:
        return None
    found = objects.loc[boxed["image_id"], BOX].to_numpy(np.float64)
    return count_shares([box_iou(found, boxed[GT_BOX].to_numpy(np.float64))], bins)


def location_rows(locations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a named location: ``location`` and ``shares``, one a cluster.

    Args:
        locations: rows of data/plots/part_locations.csv.
    """
    if not locations:
        return []
    wide = pd.DataFrame(locations).pivot(index="location", columns="cluster", values="share")
    return [
        {"location": name, "shares": shares}
        for name, shares in zip(wide.index, wide.to_numpy().tolist(), strict=True)
    ]
