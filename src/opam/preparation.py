"""Preparation: from a data set as published to the manifest that all stages read."""

from typing import Literal

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from pydantic import Field

from opam.artifacts import GT_BOX
from opam.config import Params
from opam.errors import OpamError
from opam.images import read_with_range
from opam.progress import progress
from opam.samples import unused_depth


class PrepareParams(Params):
    """Splits and bad photographs."""

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


def check_photographs(images: pd.DataFrame, workers: int) -> pd.DataFrame:
    """Decode every photograph once.

    Args:
        images: with ``path``.
        workers: processes.

    Returns:
        ``width, height, problem`` on the same index; problem is empty where all is well.

    Raises:
        OpamError: the photographs have samples of 16 bits, of which all use fewer.
    """
    jobs = (delayed(_check)(path) for path in images["path"])
    found = Parallel(n_jobs=max(1, workers), return_as="generator")(jobs)
    rows = list(progress(found, len(images), "checking photographs"))
    columns = ["width", "height", "problem", "largest"]
    checked = pd.DataFrame(rows, columns=columns, index=images.index)
    largest = checked.pop("largest").astype(float)
    if told := unused_depth(largest.to_numpy()):
        raise OpamError(f"{images['path'][largest.first_valid_index()]}: {told}")
    return checked


def _check(path: str) -> tuple[int, int, str, float]:
    try:
        image, largest = read_with_range(path)
    except OpamError as error:
        return 0, 0, str(error), np.nan
    height, width = image.shape[:2]
    return width, height, "", np.nan if largest is None else largest


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


def validation_mask(labels: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """Bool N, a stratified share of the training images.

    Every class with two images or more gives at least one and keeps at least one.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(val_fraction * len(members))), len(members) - 1)
        mask[members[:count]] = True
    return mask


def make_manifest(
    images: pd.DataFrame, val_fraction: float, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """The manifest and the class names in the order of the labels.

    Args:
        images: of a `opam.datasets.dataset.Dataset`, with ``width`` and ``height``.
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
    training = np.flatnonzero(manifest["split"] == "train")
    mask = validation_mask(manifest["label"].to_numpy()[training], val_fraction, seed)
    if not mask.any():
        raise OpamError("dataset: no class has two training images; add some, for val")
    manifest.loc[training[mask], "split"] = "val"
    for column, side in zip(GT_BOX, ("width", "height") * 2, strict=True):
        manifest[column] = manifest[column].clip(lower=0).clip(upper=manifest[side])
    return manifest, classes
