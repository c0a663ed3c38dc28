"""FGVC-Aircraft (Maji et al., 2013): 100 variants; trainval is our train. Boxes where given."""

import zipfile
from pathlib import Path

import pandas as pd

from opam.photographs.datasets.dataset import (
    Dataset,
    below,
    dataset,
    inner_folder,
    numbers,
    read_rows,
    unlisted,
)
from opam.photographs.datasets.source import take_over_or_download
from opam.pipeline.artifacts import GT_BOX


def fetch(raw: Path, source: Path | None) -> Path:
    """The folder of the data set: local, or under ``raw`` unpacked or downloaded."""
    return take_over_or_download(raw, source, "FGVCAircraft", "fgvc_aircraft")


def read(raw: zipfile.Path) -> Dataset:
    """Read data/images_variant_trainval.txt, _test.txt and images_box.txt."""
    root = inner_folder(raw, ["data"]) / "data"
    rows = []
    for split, name in (("train", "trainval"), ("test", "test")):
        file = root / f"images_variant_{name}.txt"
        for number, variant in read_rows(file, 2):
            image_id = f"{number}.jpg"
            rows.append((image_id, below(root / "images", image_id, file), variant, split))
    images = pd.DataFrame(rows, columns=["image_id", "path", "class_name", "split"])
    others = unlisted(images["path"], root / "images")
    return dataset(images, boxes=_boxes(root / "images_box.txt"), skipped=others)


def _boxes(path: zipfile.Path) -> pd.DataFrame | None:
    if not path.exists():
        return None
    rows = []
    for number, *values in read_rows(path, 5):
        x0, y0, x1, y1 = numbers(values, path)
        # The publisher counts pixels from 1 and includes the last one.
        rows.append((f"{number}.jpg", x0 - 1, y0 - 1, x1, y1))
    return pd.DataFrame(rows, columns=["image_id", *GT_BOX])
