"""Preparation: from a data set as published to the manifest that all stages read."""

import hashlib
from typing import Literal

import numpy as np
import pandas as pd
from joblib import delayed
from pydantic import Field

from opam.photographs.decoding.depth import unused_depth
from opam.photographs.descriptors import Descriptor, describe
from opam.photographs.folds import validation_mask
from opam.pipeline.artifacts import GT_BOX
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.kept import digest_of
from opam.pipeline.params import Params
from opam.pipeline.processes import in_processes
from opam.pipeline.progress import progress


class PrepareParams(Params):
    """Splits, bad photographs, copies."""

    seed: int = Field(0, ge=0, description="of the splits")
    test_fraction: float = Field(
        0.3, gt=0, lt=1, description="where no splits are given: share of each class for test"
    )
    val_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="where no val is given: share of each class's training photographs set aside; "
        "0: none, where every network is a discriminant, whose scores out of fold serve instead",
    )
    max_side: int = Field(
        1600,
        ge=32,
        description="a photograph whose longer side has more pixels is scaled down to so many",
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


def check_photographs(
    images: pd.DataFrame, max_side: int, execution: ExecutionParams
) -> pd.DataFrame:
    """Decode every photograph, and keep its pixels for all that follows.

    Args:
        images: with ``path``.
        max_side: pixels that the longer side has at most.
        execution: processes; disk space for the pixels.

    Returns:
        The fields of `descriptors.Descriptor` on the same index; ``problem`` is empty where
        all is well.

    Raises:
        OpamError: the photographs have samples of 16 bits, of which all use fewer.
    """
    how = max_side, execution.decoded_gigabytes
    jobs = (delayed(describe)(path, *how) for path in images["path"])
    found = in_processes(jobs, max(1, execution.workers))
    rows = list(progress(found, len(images), "checking photographs"))
    checked = pd.DataFrame(rows, columns=Descriptor._fields, index=images.index)
    if told := unused_depth(checked["largest"].to_numpy(float)):
        raise OpamError(f"{images['path'][checked['largest'].first_valid_index()]}: {told}")
    return checked


def leave_out_others(images: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Photographs, and the files in class folders that are none, whatever their endings.

    Raises:
        OpamError: a class has no photograph.
    """
    none = ~images["is_photograph"].astype(bool)
    keep_every_class(images, ~none, "no file in its folder is a photograph; add some or remove it")
    return images[~none], images[none]


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
    keep_every_class(images, ~bad, "every photograph is bad; replace some or remove the class")
    return images[~bad], skipped


def keep_every_class(images: pd.DataFrame, kept: pd.Series | np.ndarray, problem: str) -> None:
    """Check that every class of ``images`` has one that is ``kept`` (bool N).

    Raises:
        OpamError: naming the class, and the problem.
    """
    lost = sorted(set(images["class_name"]) - set(images.loc[kept, "class_name"]))
    if lost:
        raise OpamError(f"class '{lost[0]}': {problem}")


def draw_test(images: pd.DataFrame, test_fraction: float, seed: int) -> pd.DataFrame:
    """The images with a stratified share for test, where the data set gives no split.

    What is drawn hangs on the photographs' content: a class that comes, goes or is renamed leaves
    the other photographs where they are, so that figures before and after can be compared.

    Args:
        images: with ``class_name``, ``split`` (missing where none is given), ``group`` and
            ``sha256``.
        test_fraction: share of each class, of whole groups.
        seed: of the choice.
    """
    if images["split"].notna().any():
        return images
    names, groups = (images[name].to_numpy(object) for name in ("class_name", "group"))
    order = np.array([digest_of(seed, each) for each in images["sha256"]])
    mask = validation_mask(names, test_fraction, seed, groups, order)
    return images.assign(split=np.where(mask, "test", "train"))


def make_manifest(
    images: pd.DataFrame, val_fraction: float, seed: int
) -> tuple[pd.DataFrame, list[str]]:
    """The manifest and the class names in the order of the labels.

    Args:
        images: of a `datasets.dataset.Dataset`, with ``width``, ``height`` and ``group``
            (see `groups.grouped`); without ``group`` each photograph is one of its own.
        val_fraction: share of the training images set aside, where the data set gives no val; 0:
            none.
        seed: of that choice.

    Raises:
        OpamError: an image listed twice, a class without training image, or true boxes that lie
            outside their photographs.
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
    given_val = bool((images["split"] == "val").any())
    if not (images["split"] == "test").any():
        if images["class_name"].value_counts().max() < 2:
            raise OpamError("dataset: no class has two photographs; add some, for test and val")
        instead = ", or name the val split test: val is then drawn from train" if given_val else ""
        if "group" in images and (images.groupby("class_name")["group"].nunique() == 1).all():
            raise OpamError(_all_of_one_group("the images", "test"))
        raise OpamError(f"dataset: no test image; add some{instead}")
    manifest = images.sort_values("image_id", ignore_index=True)
    label_of = {name: label for label, name in enumerate(classes)}
    manifest["label"] = manifest["class_name"].map(label_of)
    if "group" not in manifest:
        manifest["group"] = manifest["image_id"]
    if not given_val and val_fraction:
        training = np.flatnonzero(manifest["split"] == "train")
        labels, groups = (manifest[name].to_numpy()[training] for name in ("label", "group"))
        mask = validation_mask(labels, val_fraction, seed, groups)
        if not mask.any():
            raise OpamError(_no_val(labels))
        manifest.loc[training[mask], "split"] = "val"
    for column, side in zip(GT_BOX, ("width", "height") * 2, strict=True):
        manifest[column] = manifest[column].clip(lower=0).clip(upper=manifest[side])
    x0, y0, x1, y1 = (manifest[column] for column in GT_BOX)
    outside = manifest.loc[((x1 <= x0) | (y1 <= y0)).fillna(False), "image_id"]
    if len(outside):
        listed = "".join(f"\n  {image_id}" for image_id in outside)
        raise OpamError(
            f"dataset: {len(outside)} boxes lie outside their photographs; correct them{listed}"
        )
    return manifest, classes


def scaled(images: pd.DataFrame, keypoints: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Boxes and keypoints in pixels of the photographs as they are looked at.

    Args:
        images: with the true boxes in pixels of the files, and of `check_photographs` the sizes.
        keypoints: ``image_id, part, x, y, visible`` in pixels of the files.
    """
    factors = {
        "x": images["width"] / images["full_width"],
        "y": images["height"] / images["full_height"],
    }
    boxes = {name: images[name] * factors[name[-2]] for name in GT_BOX}
    boxes = {
        name: values.astype("Float64").round().astype("Int32") for name, values in boxes.items()
    }
    of_image = pd.DataFrame(factors).set_axis(images["image_id"])
    own = of_image.reindex(keypoints["image_id"])
    places = {axis: keypoints[axis] * own[axis].to_numpy() for axis in factors}
    return images.assign(**boxes), keypoints.assign(**places)


def skipped_table(
    unopened: pd.DataFrame,
    others: pd.DataFrame,
    bad: pd.DataFrame,
    copies: pd.DataFrame,
    archive: str,
) -> pd.DataFrame:
    """Every file that is left out: ``path`` in the archive, ``reason``, ``detail``; by path.

    Args:
        unopened: ``path`` in the archive and ``reason``.
        others: ``path`` and ``problem`` of files that are no photographs.
        bad: the same of bad photographs.
        copies: ``path`` and ``group`` (of data/duplicates.csv) of copies that are dropped.
        archive: path of the archive, with which those of opened files begin.
    """
    opened = pd.concat(
        [
            others.assign(reason="no photograph"),
            bad.assign(reason="bad photograph"),
            copies.assign(
                reason="copy of another photograph",
                problem=[f"group {group} of data/duplicates.csv" for group in copies["group"]],
            ),
        ]
    ).rename(columns={"problem": "detail"})
    opened["path"] = opened["path"].str.removeprefix(f"{archive}/")
    every = pd.concat([unopened.assign(detail=""), opened])
    return every[["path", "reason", "detail"]].sort_values("path", ignore_index=True)


def summary(manifest: pd.DataFrame, given: set[str], skipped: pd.DataFrame) -> list[str]:
    """What was found, in lines for people.

    Args:
        manifest: of `make_manifest`.
        given: the splits that the data set gives; the others were drawn.
        skipped: of `skipped_table`.
    """
    counts = manifest.groupby("class_name").size()
    lines = [
        f"{len(counts)} classes, from '{counts.index[0]}' to '{counts.index[-1]}'; the smallest is "
        f"'{counts.idxmin()}' ({counts.min()} photographs), the largest '{counts.idxmax()}' "
        f"({counts.max()})"
    ]
    for split in ("train", "val", "test"):
        rows = manifest[manifest["split"] == split]
        how = "" if split == "train" else ", as given" if split in given else ", drawn"
        lines.append(
            f"{split}: {len(rows)} photographs of {rows['class_name'].nunique()} classes{how}"
        )
    reasons = skipped.groupby("reason").size()
    left_out = ", ".join(f"{count} ({reason})" for reason, count in reasons.items())
    lines.append(f"left out: {left_out}; see data/skipped.csv" if left_out else "left out: none")
    return lines


def _no_val(labels: np.ndarray) -> str:
    if np.bincount(labels).max() < 2:
        return "dataset: no class has two training images; add some, for val"
    return _all_of_one_group("the training images", "val")


def _all_of_one_group(which: str, split: str) -> str:
    return (
        f"dataset: {which} of each class are all of one group (copies, a burst, the column "
        f"'group'), so that none can be set aside as {split}; add others, or set "
        "prepare.bursts: ignore"
    )


def classes_without(split: str, manifest: pd.DataFrame) -> list[str]:
    """Names of the classes that have photographs for training and none in a split."""
    names = {name: set(own["class_name"]) for name, own in manifest.groupby("split")}
    return sorted(names["train"] - names.get(split, set()))


def photographs_digest(manifest: pd.DataFrame) -> str:
    """SHA-256 of all photographs, with what they are called, labels and splits.

    Args:
        manifest: of `make_manifest`, with ``pixels``, the digest of each photograph's.
    """
    digest = hashlib.sha256()
    columns = (manifest[name] for name in ("image_id", "class_name", "split", "pixels"))
    for *names, pixels in zip(*columns, strict=True):
        digest.update(repr(names).encode())
        digest.update(pixels)
    return digest.hexdigest()
