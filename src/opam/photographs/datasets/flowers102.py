"""Oxford Flowers 102 (Nilsback and Zisserman, 2008); its train and val are our train."""

import zipfile
from pathlib import Path

import pandas as pd

from opam.photographs.datasets.dataset import (
    Dataset,
    below,
    dataset,
    inner_folder,
    read_mat,
    unlisted,
)
from opam.photographs.datasets.source import take_over_or_download
from opam.pipeline.errors import OpamError, cause


def fetch(raw: Path, source: Path | None) -> Path:
    """The folder of the data set: local, or under ``raw`` unpacked or downloaded."""
    return take_over_or_download(raw, source, "Flowers102", "flowers102")


def read(raw: zipfile.Path) -> Dataset:
    """Read imagelabels.mat and setid.mat; classes are named by their number."""
    root = inner_folder(raw, ["jpg", "imagelabels.mat", "setid.mat"])
    labels = _integers(root / "imagelabels.mat", "labels")
    rows = []
    for split, key in (("train", "trnid"), ("train", "valid"), ("test", "tstid")):
        for number in _integers(root / "setid.mat", key):
            if not 1 <= number <= len(labels):
                raise OpamError(f"{root / 'imagelabels.mat'}: no label for image {number}")
            image_id = f"image_{number:05}.jpg"
            path = below(root / "jpg", image_id, root / "setid.mat")
            rows.append((image_id, path, f"flower_{int(labels[number - 1]):03}", split))
    images = pd.DataFrame(rows, columns=["image_id", "path", "class_name", "split"])
    return dataset(images, skipped=unlisted(images["path"], root / "jpg"))


def _integers(path: zipfile.Path, key: str) -> list[int]:
    try:
        return [int(value) for value in read_mat(path, key)]
    except (ValueError, TypeError) as error:
        raise OpamError(
            f"{path}: {key} holds more than numbers ({cause(error)}); restore it"
        ) from None
