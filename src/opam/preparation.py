"""Preparation: from a data set as published to the manifest that all stages read."""

from typing import Literal

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from pydantic import Field

from opam.artifacts import GT_BOX
from opam.config import Params
from opam.errors import OpamError
from opam.folds import validation_mask
from opam.looks import Look, look
from opam.progress import progress


class PrepareParams(Params):
    """Splits, bad photographs, copies."""

    seed: int = Field(0, ge=0, description="of the splits")
    test_fraction: float = Field(
        0.3, gt=0, lt=1, description="imagefolder without a test folder: share of each class"
    )
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of each class's training photographs set aside as val"
    )
    on_bad_image: Literal["stop", "skip"] = Field(
        "stop", description="skip: leave bad photographs out and list them in data/skipped.csv"
    )
    duplicates: Literal["report", "drop", "stop"] = Field(
        "report",
        description="photographs that are copies of each other, or nearly: report: only listed in "
        "data/duplicates.csv; drop: one stays, of test where it has one, and under two labels "
        "none; stop: there may be none",
    )
    bursts: Literal["together", "ignore"] = Field(
        "together",
        description="photographs of one class that were taken in one burst: together: found, and "
        "kept on one side of splits and folds",
    )


def check_photographs(images: pd.DataFrame, workers: int) -> pd.DataFrame:
    """Decode every photograph once.

    Args:
        images: with ``path``.
        workers: processes.

    Returns:
        The fields of `opam.looks.Look` on the same index; ``problem`` is empty where all is well.
    """
    jobs = (delayed(look)(path) for path in images["path"])
    found = Parallel(n_jobs=max(1, workers), return_as="generator")(jobs)
    rows = list(progress(found, len(images), "checking photographs"))
    return pd.DataFrame(rows, columns=Look._fields, index=images.index)


def leave_out_bad(images: pd.DataFrame, on_bad_image: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Good photographs, and the bad ones as ``image_id, path, problem``.

    Raises:
        OpamError: there are bad ones and ``on_bad_image`` is "stop"; it lists them all. Or a
            class has no good one.
    """
    bad = images["problem"] != ""
    skipped = images.loc[bad, ["image_id", "path", "problem"]]
    if bad.any() and on_bad_image == "stop":
        listed = "".join(f"\n  {problem}" for problem in skipped["problem"])
        raise OpamError(
            f"{bad.sum()} of {len(images)} photographs are bad; replace them or set "
            f"prepare.on_bad_image: skip{listed}"
        )
    lost = sorted(set(images["class_name"]) - set(images.loc[~bad, "class_name"]))
    if lost:
        raise OpamError(
            f"class '{lost[0]}': every photograph is bad; replace some or remove the class"
        )
    return images[~bad], skipped


def draw_test(images: pd.DataFrame, test_fraction: float, seed: int) -> pd.DataFrame:
    """The images with a stratified share for test, where the data set gives no split.

    Args:
        images: with ``class_name``, ``split`` (missing where none is given) and ``group``.
        test_fraction: share of each class, of whole groups.
        seed: of the choice.
    """
    if images["split"].notna().any():
        return images
    names, groups = (images[name].to_numpy(object) for name in ("class_name", "group"))
    mask = validation_mask(names, test_fraction, seed, groups)
    return images.assign(split=np.where(mask, "test", "train"))


def make_manifest(
    images: pd.DataFrame, val_fraction: float, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """The manifest and the class names in the order of the labels.

    Args:
        images: of a `opam.datasets.dataset.Dataset`, with ``width``, ``height`` and ``group``
            (see `opam.groups.grouped`); without ``group`` each photograph is one of its own.
        val_fraction: share of the training images set aside.
        seed: of that choice.

    Raises:
        OpamError: an image listed twice, or a class without training image.
    """
    twice = images.loc[images["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise OpamError(f"{twice.iloc[0]}: listed twice in the data set; remove one row")
    classes = sorted(images["class_name"].unique())
    if len(classes) < 2:
        raise OpamError(f"dataset: {len(classes)} class found; at least 2 are needed")
    trained = set(images.loc[images["split"] == "train", "class_name"])
    for name in classes:
        if name not in trained:
            raise OpamError(f"class '{name}': no training image; add one or remove the class")
    if not (images["split"] == "test").any():
        raise OpamError("dataset: no test image; add some")
    manifest = images.sort_values("image_id", ignore_index=True)
    label_of = {name: label for label, name in enumerate(classes)}
    manifest["label"] = manifest["class_name"].map(label_of)
    if "group" not in manifest:
        manifest["group"] = manifest["image_id"]
    if not (manifest["split"] == "val").any():
        training = np.flatnonzero(manifest["split"] == "train")
        labels, groups = (manifest[name].to_numpy()[training] for name in ("label", "group"))
        mask = validation_mask(labels, val_fraction, seed, groups)
        if not mask.any():
            raise OpamError(_no_val(labels))
        manifest.loc[training[mask], "split"] = "val"
    for column, side in zip(GT_BOX, ("width", "height") * 2, strict=True):
        manifest[column] = manifest[column].clip(lower=0).clip(upper=manifest[side])
    return manifest, classes


def _no_val(labels: np.ndarray) -> str:
    if np.bincount(labels).max() < 2:
        return "dataset: no class has two training images; add some, for val"
    return (
        "dataset: the training images of each class are all of one group (copies, a burst, the "
        "column 'group'), so that none can be set aside as val; add others, or set "
        "prepare.bursts: ignore"
    )


def classes_without_val(manifest: pd.DataFrame) -> list[str]:
    """Names of the classes that have photographs for training and none for val."""
    names = {split: set(own["class_name"]) for split, own in manifest.groupby("split")}
    return sorted(names["train"] - names["val"])
