"""Prepare: one table of all photographs, checked, labelled and split.

Run by itself: ``python stages/prepare.py``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from opam import duplicates
from opam.artifacts import write_csv, write_json, write_table
from opam.config import read_params
from opam.datasets import DatasetName, read
from opam.device import ExecutionParams
from opam.groups import grouped
from opam.preparation import (
    PrepareParams,
    check_photographs,
    classes_without_val,
    draw_test,
    leave_out_bad,
    make_manifest,
)
from opam.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
CLASSES = Path("data/classes.json")
KEYPOINTS = Path("data/keypoints.parquet")
SKIPPED = Path("data/skipped.csv")
DUPLICATES = Path("data/duplicates.csv")


def without_copies(
    images: pd.DataFrame, policy: str
) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """The photographs that stay, pairs of them that are copies, and the table of duplicates."""
    images = images.reset_index(drop=True)
    pairs, exact = duplicates.copies(images, images["split"])
    table = duplicates.resolve(duplicates.duplicate_table(images, pairs, exact), policy)
    for line in duplicates.told(table):
        print(line)
    stays = np.ones(len(images), dtype=bool)
    stays[table.index[table["action"] == "dropped"]] = False
    place = np.cumsum(stays) - 1
    return images[stays].reset_index(drop=True), place[pairs[stays[pairs].all(1)]], table


def with_groups(
    images: pd.DataFrame, copies: np.ndarray, bursts: str, execution: ExecutionParams
) -> pd.DataFrame:
    """``images`` with the ``group`` that splits and folds keep together."""
    pairs = [copies]
    if bursts == "together":
        # Here, because only this needs torch.
        from opam import bursts as finding

        found = finding.bursts(images, execution)
        print(finding.told(found, images))
        pairs += found
    return images.assign(group=grouped(images, pairs))


def main() -> None:
    """Write data/manifest.parquet, classes.json, keypoints.parquet, skipped.csv, duplicates.csv."""
    name: DatasetName = read_params("dataset.name", DatasetName)  # type: ignore[arg-type]
    params = read_params("prepare", PrepareParams)
    execution = read_params("execution", ExecutionParams)

    data = read(name, RAW)
    images = data.images.join(check_photographs(data.images, execution.workers))
    images, skipped = leave_out_bad(images, params.on_bad_image)
    images, copies, table = without_copies(images, params.duplicates)
    images = with_groups(images, copies, params.bursts, execution)
    images = draw_test(images, params.test_fraction, params.seed)
    manifest, classes = make_manifest(images, params.val_fraction, params.seed)
    kept = data.keypoints["image_id"].isin(manifest["image_id"])
    keypoints = data.keypoints[kept].sort_values(["image_id", "part"])
    split = table["image_id"].map(manifest.set_index("image_id")["split"])
    write_table(MANIFEST, "manifest", manifest)
    write_json(CLASSES, classes)
    write_table(KEYPOINTS, "keypoints", keypoints)
    write_csv(SKIPPED, skipped)
    write_csv(DUPLICATES, table.assign(split=split.fillna(table["split"])))
    if lacking := classes_without_val(manifest):
        print(f"without val, for want of a second group: {', '.join(lacking)}")
    print(manifest.groupby("split").size().to_string())


if __name__ == "__main__":
    run(main)
