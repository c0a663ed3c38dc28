"""A finished run's tables as text, for a terminal and for docs/results.md: headings and rows."""

from collections.abc import Sequence

import pandas as pd

Cells = tuple[list[str], list[list[str]]]
"""Headings, and the rows under them."""

SYSTEM_COLUMNS: dict[str, tuple[str, str]] = {
    "system": ("system", "{}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "interval": ("95% interval", "{}"),
    "macro_f1": ("macro F1", "{:.3f}"),
    "mcnemar_p": ("McNemar's p", "{:.2g}"),
    "pointing": ("pointing", "{:.1%}"),
    "parameters": ("parameters", "{:.1f} M"),
    "gflops": ("GFLOPs", "{:.2f}"),
    "training_seconds": ("training", "{:.0f} s"),
    "images_a_second": ("photographs/s", "{:.1f}"),
}
"""Columns of the comparison: heading, and how a value is written."""


def system_cells(comparison: pd.DataFrame, columns: Sequence[str]) -> Cells:
    """A row a system.

    Args:
        comparison: data/comparison.csv.
        columns: names of `SYSTEM_COLUMNS`; those that were not measured of any system are left
            out, and a figure that was not measured of one is empty.
    """
    table = comparison.assign(interval=_intervals(comparison))
    if "parameters" in table:
        table["parameters"] = table["parameters"] / 1e6
    shown = {name: SYSTEM_COLUMNS[name] for name in columns if name in table}
    rows = [
        ["" if pd.isna(row[name]) else form.format(row[name]) for name, (_, form) in shown.items()]
        for row in table.to_dict("records")
    ]
    return [heading for heading, _ in shown.values()], rows


def branch_cells(ablation: pd.DataFrame) -> Cells:
    """A row a branch, a pair and all three, of data/plots/ablation.csv."""
    rows = [
        [
            str(row.branches).replace("+", " + "),
            f"{row.accuracy:.1%}",
            interval,
            f"{row.val_accuracy:.1%}",
            f"{row.top5:.1%}",
            f"{row.calibration_error:.3f}",
        ]
        for row, interval in zip(ablation.itertuples(), _intervals(ablation), strict=True)
    ]
    return ["branches", "accuracy", "95% interval", "held out", "top-5", "calibration error"], rows


def location_cells(locations: pd.DataFrame) -> Cells:
    """A row a named location, a column a cluster, of data/plots/part_locations.csv."""
    wide = locations.pivot(index="location", columns="cluster", values="share")
    rows = [[str(name), *(f"{share:.0%}" for share in shares)] for name, shares in wide.iterrows()]
    return ["location", *(f"cluster {each}" for each in wide.columns)], rows


def _intervals(table: pd.DataFrame) -> list[str]:
    return [f"{row.accuracy_low:.1%} to {row.accuracy_high:.1%}" for row in table.itertuples()]
