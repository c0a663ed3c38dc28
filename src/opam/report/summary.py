"""The result table of a finished run, and where everything lies.

Run: ``python -m opam.report.summary``.
"""

from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console
from rich.table import Table

from opam.pipeline.artifacts import read_json
from opam.pipeline.errors import OpamError, run
from opam.report.page.tables import fusion_weights
from opam.report.tables import branch_cells, location_cells, system_cells

DATA = Path("data")
COMPARISON = DATA / "comparison.csv"
REPORT = DATA / "report/index.html"
DOUBTFUL = DATA / "doubtful_labels.csv"
BUNDLE = DATA / "bundle"
OF_SYSTEMS = ("system", "accuracy", "interval", "mcnemar_p", "pointing", "training_seconds")
"""Columns of the comparison that fit 80 characters."""


def terminal_table(title: str, headings: list[str], rows: list[list[str]]) -> Table:
    """A table, its first column to the left, the others to the right."""
    table = Table(title=title)
    for heading in headings:
        side: Literal["left", "right"] = "left" if heading == headings[0] else "right"
        table.add_column(heading, justify=side, no_wrap=heading == "95% interval")
    for row in rows:
        table.add_row(*row)
    return table


def level_words(level: dict[str, Any]) -> str:
    """The figures of one level of parents in words, as metrics.json has them."""
    words = f"{level['names']} parents, accuracy {level['accuracy']:.1%}"
    if level["errors_within"] is None:
        return words
    return f"{words}; {level['errors_within']:.0%} of the wrong classes are of the right parent"


def main() -> None:
    """Print the tables."""
    metrics = read_json(DATA / "metrics.json")
    fusion = read_json(DATA / "fusion.json")
    try:
        ablation = pd.read_csv(DATA / "plots/ablation.csv")
        locations = pd.read_csv(DATA / "plots/part_locations.csv")
    except FileNotFoundError as error:
        raise OpamError(f"{error.filename}: not found; run `dvc repro` to make it") from None
    console = Console()
    title = f"Test split, {metrics['images']} photographs"
    console.print(terminal_table(title, *branch_cells(ablation)))
    if len(locations):
        title = "Share of photographs in which a cluster's part holds the location"
        console.print(terminal_table(title, *location_cells(locations)))
    chosen = f"Fusion weights ({fusion['rule']}), chosen on photographs held out"
    console.print(f"{chosen}: {fusion_weights(fusion)}")
    console.print(f"McNemar's p, fused against original: {metrics['mcnemar_p']:.2g}")
    for name, level in metrics.get("levels", {}).items():
        console.print(f"{name.replace('_', ' ').capitalize()}: {level_words(level)}")
    box = metrics.get("object_box", {})
    if box.get("whole_photograph"):
        console.print(f"No one object found: {box['whole_photograph']:.1%} of the photographs")
    if "corloc" in box:
        console.print(f"Object box: CorLoc {box['corloc']:.1%}, mean IoU {box['mean_iou']:.2f}")
    if COMPARISON.exists():
        cells = system_cells(pd.read_csv(COMPARISON), OF_SYSTEMS)
        console.print(terminal_table("Systems on the test split", *cells))
    console.print("Metrics: data/metrics.json   predictions: data/predictions.parquet")
    console.print("Plots: `dvc plots show` writes dvc_plots/index.html", highlight=False)
    if DOUBTFUL.exists():
        doubtful = pd.read_csv(DOUBTFUL)
        sure = int(doubtful["above_threshold"].sum())
        console.print(f"Labels doubted: {len(doubtful)}, {sure} for good reason: {DOUBTFUL}")
    if BUNDLE.exists():
        console.print("Label more photographs: `opam predict FOLDER`", highlight=False)
    if REPORT.exists():
        console.print(f"Report: {REPORT}", highlight=False)


if __name__ == "__main__":
    run(main)
