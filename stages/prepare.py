"""Prepare: one table of all photographs, checked, labelled and split.

Run by itself: ``python stages/prepare.py``.
"""

from pathlib import Path

from opam.artifacts import write_csv, write_json, write_table
from opam.config import read_params
from opam.datasets import DatasetName, read
from opam.device import ExecutionParams
from opam.preparation import PrepareParams, check_photographs, leave_out_bad, make_manifest
from opam.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
CLASSES = Path("data/classes.json")
KEYPOINTS = Path("data/keypoints.parquet")
SKIPPED = Path("data/skipped.csv")


def main() -> None:
    """Write data/manifest.parquet, classes.json, keypoints.parquet and skipped.csv."""
    name: DatasetName = read_params("dataset.name", DatasetName)  # type: ignore[arg-type]
    params = read_params("prepare", PrepareParams)
    workers = read_params("execution", ExecutionParams).workers

    data = read(name, RAW, params.test_fraction, params.seed)
    images = data.images.join(check_photographs(data.images, workers))
    images, skipped = leave_out_bad(images, params.on_bad_image)
    manifest, classes = make_manifest(images, params.val_fraction, params.seed)
    kept = data.keypoints["image_id"].isin(manifest["image_id"])
    keypoints = data.keypoints[kept].sort_values(["image_id", "part"])
    write_table(MANIFEST, "manifest", manifest)
    write_json(CLASSES, classes)
    write_table(KEYPOINTS, "keypoints", keypoints)
    write_csv(SKIPPED, skipped)
    print(manifest.groupby("split").size().to_string())


if __name__ == "__main__":
    run(main)
