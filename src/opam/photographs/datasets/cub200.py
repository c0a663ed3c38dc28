"""CUB-200-2011 (Wah et al., CNS-TR-2011-001): 200 bird species, boxes, 15 part locations."""

import zipfile
from pathlib import Path

import pandas as pd

from opam.photographs.datasets.dataset import (
    Dataset,
    below,
    dataset,
    inner_folder,
    lookup,
    numbers,
    read_rows,
    unlisted,
)
from opam.photographs.datasets.source import take_over
from opam.pipeline.artifacts import GT_BOX
from opam.pipeline.errors import OpamError


def fetch(raw: Path, source: Path | None) -> Path:
    """The folder of the official data set: itself, or a .tgz unpacked under ``raw``.

    Raises:
        OpamError: no source: the publisher asks people to fetch it by hand.
    """
    if source is None:
        raise OpamError(
            "dataset.path: give the CUB_200_2011 folder or CUB_200_2011.tgz of the publisher"
        )
    return take_over(source, raw)


def read(raw: zipfile.Path) -> Dataset:
    """Read the official text files; boxes and part locations where they are there."""
    root = inner_folder(raw, ["images.txt", "images"])
    names = dict(read_rows(root / "images.txt", 2))
    labels = dict(read_rows(root / "image_class_labels.txt", 2))
    classes = dict(read_rows(root / "classes.txt", 2))
    in_training = dict(read_rows(root / "train_test_split.txt", 2))
    for table, file in ((labels, "image_class_labels.txt"), (in_training, "train_test_split.txt")):
        for number in table:
            lookup(names, number, root / "images.txt", "photograph of the annotation row")
            if file == "train_test_split.txt" and table[number] not in ("0", "1"):
                raise OpamError(f"{root / file}: '{number} {table[number]}' is neither 0 nor 1")
    rows = []
    for number, name in names.items():
        path = below(root / "images", name, root / "images.txt")
        label = lookup(labels, number, root / "image_class_labels.txt", "class of image")
        class_name = lookup(classes, label, root / "classes.txt", "name of class")
        training = lookup(in_training, number, root / "train_test_split.txt", "split of image")
        rows.append((name, path, class_name, "train" if training == "1" else "test"))
    images = pd.DataFrame(rows, columns=["image_id", "path", "class_name", "split"])
    others = unlisted(images["path"], root / "images")
    return dataset(images, _keypoints(root, names), _boxes(root, names), skipped=others)


def _boxes(root: zipfile.Path, names: dict[str, str]) -> pd.DataFrame | None:
    path = root / "bounding_boxes.txt"
    if not path.exists():
        return None
    rows = []
    for number, *values in read_rows(path, 5):
        x, y, width, height = numbers(values, path)
        image_id = lookup(names, number, root / "images.txt", "photograph of the box")
        rows.append((image_id, x, y, x + width, y + height))
    return pd.DataFrame(rows, columns=["image_id", *GT_BOX])


def _keypoints(root: zipfile.Path, names: dict[str, str]) -> pd.DataFrame | None:
    path = root / "parts" / "part_locs.txt"
    if not path.exists():
        return None
    parts = dict(read_rows(root / "parts" / "parts.txt", 2))
    rows = []
    for number, part, *values in read_rows(path, 5):
        image_id = lookup(names, number, root / "images.txt", "photograph of the location")
        name = lookup(parts, part, root / "parts" / "parts.txt", "name of part")
        x, y, visible = numbers(values, path)
        rows.append((image_id, name, x, y, visible == 1))
    return pd.DataFrame(rows, columns=["image_id", "part", "x", "y", "visible"])
