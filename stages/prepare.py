"""Prepare: one table of all photographs, checked, labelled and split.

Run by itself: ``python stages/prepare.py``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from opam.photographs import duplicates
from opam.photographs.datasets import DatasetName, read
from opam.photographs.datasets.dataset import HIDDEN, skipped_files
from opam.photographs.datasets.table_rows import TableColumns
from opam.photographs.folds import usable_folds
from opam.photographs.groups import grouped
from opam.photographs.preparation import (
    PrepareParams,
    check_photographs,
    class_parents,
    classes_without,
    draw_test,
    keep_every_class,
    leave_out_bad,
    leave_out_others,
    make_manifest,
    photographs_digest,
    scaled,
    skipped_table,
    summary,
)
from opam.pipeline.artifacts import read_json, write_csv, write_json, write_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.stage import run

DATA = Path("data")
RAW = DATA / "raw.zip"


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
    lost = "prepare.duplicates: drop leaves no photograph of it (see prepare.duplicates: report)"
    keep_every_class(images, stays, lost)
    place = np.cumsum(stays) - 1
    return images[stays].reset_index(drop=True), place[pairs[stays[pairs].all(1)]], table


def with_groups(
    images: pd.DataFrame, copies: np.ndarray, bursts: str, execution: ExecutionParams
) -> pd.DataFrame:
    """``images`` with the ``group`` that splits and folds keep together."""
    pairs = [copies]
    if bursts == "together":
        # Here, because only this needs torch.
        from opam.photographs import bursts as finding

        found = finding.bursts(images, execution)
        print(finding.told(found, images))
        pairs += found
    return images.assign(group=grouped(images, pairs))


def main() -> None:
    """Write the manifest, classes, parents, keypoints, coarse_labels, what is left out, copies."""
    name: DatasetName = read_params("dataset.name", DatasetName)  # type: ignore[arg-type]
    columns = read_params("dataset.columns", TableColumns)
    params = read_params("prepare", PrepareParams)
    folds = read_params("fusion.folds", int)
    execution = read_params("execution", ExecutionParams)

    data = read(name, RAW, columns)
    if data.layout:
        print(data.layout)
    images = data.images.join(check_photographs(data.images, params.max_side, execution))
    others = images.iloc[:0]
    if not data.listed:
        images, others = leave_out_others(images)
    images, bad = leave_out_bad(images, params.on_bad_image)
    images, keypoints = scaled(images, data.keypoints)
    given = set(images["split"].dropna())
    images, copies, table = without_copies(images, params.duplicates)
    images = with_groups(images, copies, params.bursts, execution)
    images = draw_test(images, params.test_fraction, params.seed)
    manifest, classes = make_manifest(images, params.val_fraction, params.seed)
    ours = "val" if (manifest["split"] == "val").any() else "train"
    groups = manifest.loc[manifest["split"] == ours, "group"]
    usable = usable_folds(folds, len(groups), groups.nunique())  # now, not after the training
    keypoints, coarse_labels = (
        rows[rows["image_id"].isin(manifest["image_id"])].sort_values(["image_id", by])
        for rows, by in ((keypoints, "part"), (data.coarse_labels, "level"))
    )
    hidden = skipped_files(read_json(DATA / "hidden.json"), HIDDEN)
    dropped = table[table["action"] == "dropped"]
    skipped = skipped_table(pd.concat([data.skipped, hidden]), others, bad, dropped, str(RAW))
    write_table(DATA / "manifest.parquet", "manifest", manifest)
    write_json(DATA / "classes.json", classes)
    write_json(DATA / "parents.json", class_parents(data.images, data.coarse_labels, classes))
    write_table(DATA / "keypoints.parquet", "keypoints", keypoints)
    write_table(DATA / "coarse_labels.parquet", "coarse_labels", coarse_labels)
    write_csv(DATA / "skipped.csv", skipped)
    split = table["image_id"].map(manifest.set_index("image_id")["split"])
    write_csv(DATA / "duplicates.csv", table.assign(split=split.fillna(table["split"])))
    counts = {name: int((manifest["split"] == name).sum()) for name in ("train", "val", "test")}
    write_json(
        DATA / "photographs.json",
        {"sha256": photographs_digest(manifest), **counts},
    )
    if ours == "val" and (lacking := classes_without("val", manifest)):
        print(f"without val, for want of a second group: {', '.join(lacking)}")
    if lacking := classes_without("test", manifest):
        print(f"without test, so nothing is measured of them: {', '.join(lacking)}")
    for line in summary(manifest, given, skipped):
        print(line)
    if usable < folds:
        print(f"fusion has {usable} folds, not {folds}: {ours} is of {usable} groups")


if __name__ == "__main__":
    run(main)
