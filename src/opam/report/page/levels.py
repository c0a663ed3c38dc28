"""What the page says of parents: accuracy at each level, wrong answers within and between them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from opam.evaluation.hierarchy import parent_indices
from opam.evaluation.metrics import wilson_interval

MOST = 20
"""Rows of a table of confusions."""


def levels(
    labels: np.ndarray, answers: np.ndarray, parents: Sequence[Sequence[str]], classes: list[str]
) -> dict[str, Any] | None:
    """The tables of wrong answers within and between the parents of the finest level.

    Args:
        labels: int N.
        answers: int N, the most probable classes.
        parents: of each level the parent of each class, as in data/parents.json.
        classes: their names.

    Returns:
        ``parents``, ``between`` and ``within``, rows of tables; None where classes have no parents.
    """
    if not parents:
        return None
    names, of_class = parent_indices(parents[0])
    counts = confused(labels, answers).assign(
        actual_parent=lambda rows: of_class[rows["actual"]],
        answer_parent=lambda rows: of_class[rows["answer"]],
    )
    crossed = counts["actual_parent"] != counts["answer_parent"]
    sizes = np.bincount(of_class[labels], minlength=len(names))
    pairs = ["actual_parent", "answer_parent"]
    between = counts[crossed].groupby(pairs)["photographs"].sum().reset_index()
    return {
        "parents": parent_rows(labels, answers, of_class, names),
        "between": [
            {
                "actual": names[row["actual_parent"]],
                "answer": names[row["answer_parent"]],
                "photographs": row["photographs"],
                "share": row["photographs"] / sizes[row["actual_parent"]],
            }
            for row in most(between)
        ],
        "within": [
            {
                **row,
                "parent": names[row["actual_parent"]],
                "actual_name": classes[row["actual"]],
                "answer_name": classes[row["answer"]],
            }
            for row in most(counts[~crossed])
        ],
    }


def confused(labels: np.ndarray, answers: np.ndarray) -> pd.DataFrame:
    """``actual, answer, photographs`` of every pair of two classes that were confused."""
    pairs = pd.DataFrame({"actual": labels, "answer": answers})[labels != answers]
    return pairs.groupby(["actual", "answer"]).size().reset_index(name="photographs")


def most(counts: pd.DataFrame) -> list[dict[str, Any]]:
    """At most `MOST` rows, those of most ``photographs`` first."""
    ordered = counts.sort_values("photographs", ascending=False, kind="stable").head(MOST)
    rows: list[Any] = ordered.to_dict("records")
    return rows


def parent_rows(
    labels: np.ndarray, answers: np.ndarray, of_class: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a parent: what became of the photographs of its classes.

    Args:
        labels: int N.
        answers: int N.
        of_class: int C, 0..P-1.
        names: of the P parents.

    Returns:
        ``name``, how many ``classes`` and ``photographs``; of these the share that got the right
        class, another class of the parent (``within``), and one of another (``between``), NaN
        without photographs; ``kept``, the first two together, and their 95% interval.
    """
    actual = of_class[labels]
    sizes = np.bincount(actual, minlength=len(names))
    right = np.bincount(actual[answers == labels], minlength=len(names))
    kept = np.bincount(actual[of_class[answers] == actual], minlength=len(names))
    low, high = wilson_interval(kept, sizes)
    counts = {"right": right, "within": kept - right, "between": sizes - kept, "kept": kept}
    shares = {
        name: np.divide(each, sizes, out=np.full(len(names), np.nan), where=sizes > 0)
        for name, each in counts.items()
    }
    table = pd.DataFrame(
        {
            "name": list(names),
            "classes": np.bincount(of_class, minlength=len(names)),
            "photographs": sizes,
            **shares,
            "low": low,
            "high": high,
        }
    )
    rows: list[Any] = table.to_dict("records")
    return rows


def level_rows(metrics: Mapping[str, Any], classes: int) -> list[dict[str, Any]]:
    """A row a level, that of the classes first: its ``name``, how many ``names``, the figures.

    Args:
        metrics: what data/metrics.json holds.
        classes: how many there are.
    """
    fused = metrics["fused"]
    interval = {name: fused[name] for name in ("accuracy_low", "accuracy_high")}
    finest = {"name": "classes", "names": classes, "accuracy": metrics["accuracy"]["fused"]}
    coarser = metrics.get("levels", {}).items()
    return [
        {**finest, **interval, "errors_within": None, "errors_between": None},
        *({"name": name.replace("_", " "), **figures} for name, figures in coarser),
    ]
