"""The result table of a finished run, and where everything lies.

Run: ``python -m opam.report.summary``.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from opam.artifacts import read_json
from opam.errors import OpamError, run
from opam.report.page.tables import fusion_weights

DATA = Path("data")
COMPARISON = DATA / "comparison.csv"
REPORT = DATA / "report/index.html"
BUNDLE = DATA / "bundle"


def ablation_table(ablation: pd.DataFrame, images: int) -> Table:
    """Accuracy of each combination of branches, with its interval, and on val, held out."""
    table = Table(title=f"Test split, {images} photographs")
    table.add_column("branches")
    for name in ("accuracy", "95% interval", "on val", "top-5", "calibration error"):
        table.add_column(name, justify="right", no_wrap=name == "95% interval")
    for row in ablation.itertuples():
        table.add_row(
            str(row.branches).replace("+", " + "),
            f"{row.accuracy:.1%}",
            f"{row.accuracy_low:.1%} to {row.accuracy_high:.1%}",
            f"{row.val_accuracy:.1%}",
            f"{row.top5:.1%}",
            f"{row.calibration_error:.3f}",
        )
    return table


def location_table(locations: pd.DataFrame) -> Table:
    """How often a part of each cluster holds each named location."""
    table = Table(title="Share of photographs in which a cluster's part holds the location")
    wide = locations.pivot(index="location", columns="cluster", values="share")
    table.add_column("location")
    for cluster in wide.columns:
        table.add_column(f"cluster {cluster}", justify="right")
    for name, shares in wide.iterrows():
        table.add_row(str(name), *(f"{share:.0%}" for share in shares))
    return table


def comparison_table(comparison: pd.DataFrame) -> Table:
    """OPAM beside the other systems."""
    table = Table(title="Systems on the test split")
    table.add_column("system")
    for name in ("accuracy", "95% interval", "McNemar's p", "pointing", "GFLOPs", "training"):
        table.add_column(name, justify="right")
    for row in comparison.to_dict("records"):
        table.add_row(
            str(row["system"]),
            f"{row['accuracy']:.1%}",
            f"{row['accuracy_low']:.1%} to {row['accuracy_high']:.1%}",
            f"{row['mcnemar_p']:.2g}",
            _shown(row.get("pointing"), "{:.1%}"),
            _shown(row.get("gflops"), "{:.2f}"),
            _shown(row.get("training_seconds"), "{:.0f} s"),
        )
    return table


def _shown(value: Any, form: str) -> str:
    return "" if value is None or pd.isna(value) else form.format(value)


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
    console.print(ablation_table(ablation, metrics["images"]))
    if len(locations):
        console.print(location_table(locations))
    console.print(f"Fusion weights ({fusion['rule']}), chosen on val: {fusion_weights(fusion)}")
    console.print(f"McNemar's p, fused against original: {metrics['mcnemar_p']:.2g}")
    if "object_box" in metrics:
        box = metrics["object_box"]
        console.print(f"Object box: CorLoc {box['corloc']:.1%}, mean IoU {box['mean_iou']:.2f}")
    if COMPARISON.exists():
        console.print(comparison_table(pd.read_csv(COMPARISON)))
    console.print("Metrics: data/metrics.json   predictions: data/predictions.parquet")
    console.print("Plots: `dvc plots show` writes dvc_plots/index.html", highlight=False)
    if BUNDLE.exists():
        console.print("Label more photographs: `opam predict FOLDER`", highlight=False)
    if REPORT.exists():
        console.print(f"Report: {REPORT}", highlight=False)


if __name__ == "__main__":
    run(main)
