"""Prepare: one table of all photographs, checked, labelled and split.

Run by itself: ``python stages/prepare.py``.
"""

from pathlib import Path

from opam.artifacts import write_csv, write_json, write_table
from opam.config import read_params
from opam.datasets import DatasetName, read
from opam.datasets.table_rows import TableColumns
from opam.device import ExecutionParams
from opam.preparation import (
    PrepareParams,
    check_photographs,
    draw_test,
    leave_out_bad,
    leave_out_others,
    make_manifest,
    skipped_table,
    summary,
)
from opam.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
CLASSES = Path("data/classes.json")
KEYPOINTS = Path("data/keypoints.parquet")
COARSE_LABELS = Path("data/coarse_labels.parquet")
SKIPPED = Path("data/skipped.csv")


def main() -> None:
    """Write data/manifest.parquet, classes.json, keypoints and coarse_labels, and skipped.csv."""
    name: DatasetName = read_params("dataset.name", DatasetName)  # type: ignore[arg-type]
    columns = read_params("dataset.columns", TableColumns)
    params = read_params("prepare", PrepareParams)
    workers = read_params("execution", ExecutionParams).workers

    data = read(name, RAW, columns)
    if data.layout:
        print(data.layout)
    images = data.images.join(check_photographs(data.images, workers))
    others = images.iloc[:0]
    if not data.listed:
        images, others = leave_out_others(images)
    images, bad = leave_out_bad(images, params.on_bad_image)
    given = set(images["split"].dropna())
    images = draw_test(images, params.test_fraction, params.seed)
    manifest, classes = make_manifest(images, params.val_fraction, params.seed)
    keypoints, coarse_labels = (
        table[table["image_id"].isin(manifest["image_id"])].sort_values(["image_id", by])
        for table, by in ((data.keypoints, "part"), (data.coarse_labels, "level"))
    )
    skipped = skipped_table(data.skipped, others, bad, str(RAW))
    write_table(MANIFEST, "manifest", manifest)
    write_json(CLASSES, classes)
    write_table(KEYPOINTS, "keypoints", keypoints)
    write_table(COARSE_LABELS, "coarse_labels", coarse_labels)
    write_csv(SKIPPED, skipped)
    for line in summary(manifest, given, skipped):
        print(line)


if __name__ == "__main__":
    run(main)
