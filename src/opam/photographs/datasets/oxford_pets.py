"""Oxford-IIIT Pets (Parkhi et al., CVPR 2012): 37 breeds. Its boxes are of heads, so not read."""

import zipfile
from pathlib import Path

import pandas as pd

from opam.photographs.datasets.dataset import (
    Dataset,
    below,
    dataset,
    inner_folder,
    read_rows,
    unlisted,
)
from opam.photographs.datasets.source import take_over_or_download


def fetch(raw: Path, source: Path | None) -> Path:
    """The folder of the data set: local, or under ``raw`` unpacked or downloaded."""
    return take_over_or_download(raw, source, "OxfordIIITPet", "oxford_pets")


def read(raw: zipfile.Path) -> Dataset:
    """Read annotations/trainval.txt and test.txt."""
    root = inner_folder(raw, ["images", "annotations"])
    rows = []
    for split, name in (("train", "trainval"), ("test", "test")):
        file = root / "annotations" / f"{name}.txt"
        for line in read_rows(file, 4):
            image_id = f"{line[0]}.jpg"
            path = below(root / "images", image_id, file)
            rows.append((image_id, path, line[0].rsplit("_", 1)[0], split))
    images = pd.DataFrame(rows, columns=["image_id", "path", "class_name", "split"])
    return dataset(images, skipped=unlisted(images["path"], root / "images"))
