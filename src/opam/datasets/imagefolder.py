"""Photographs in class folders: ROOT/train/CLASS and ROOT/test/CLASS, or ROOT/CLASS."""

from pathlib import Path

import numpy as np
import pandas as pd

from opam.datasets.dataset import Dataset, below, dataset, existing, take_over
from opam.errors import OpamError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}


def fetch(raw: Path, source: Path | None) -> None:
    """Copy the folder, or unpack the archive, to ``raw``.

    Raises:
        OpamError: no source.
    """
    if source is None:
        raise OpamError("dataset.path: give the folder that holds the class folders")
    take_over(source, raw)


def read(raw: Path, test_fraction: float, seed: int) -> Dataset:
    """List the photographs. Hidden files and folders do not count.

    Args:
        raw: the folder.
        test_fraction: share of each class for test, where there is no test folder.
        seed: of that split.

    Raises:
        OpamError: no class folder, a class folder without photographs, or train without test.
    """
    existing(raw, "run `dvc repro fetch_data`")
    raw = _below_top_folder(raw)
    if (raw / "train").is_dir():
        if not (raw / "test").is_dir():
            raise OpamError(f"{raw}: has train/ but no test/; add it, or put classes at the top")
        rows = [row for split in ("train", "test") for row in _split_rows(raw, split)]
        images = pd.DataFrame(rows, columns=["image_id", "path", "class_name", "split"])
        return dataset(images)
    images = pd.DataFrame(_class_rows(raw, raw), columns=["image_id", "path", "class_name"])
    rng = np.random.default_rng(seed)
    split = pd.Series("train", index=images.index)
    for _, members in images.groupby("class_name", sort=True):
        shuffled = rng.permutation(members.index.to_numpy())
        count = min(max(1, round(test_fraction * len(members))), len(members) - 1)
        split[shuffled[:count]] = "test"
    return dataset(images.assign(split=split))


def _split_rows(raw: Path, split: str) -> list[tuple[str, ...]]:
    return [(*row, split) for row in _class_rows(raw / split, raw)]


def _class_rows(folder: Path, root: Path) -> list[tuple[str, str, str]]:
    rows = []
    folders = [each for each in sorted(folder.iterdir()) if _shown(each) and each.is_dir()]
    if not folders:
        raise OpamError(f"{folder}: holds no class folders; put photographs into CLASS/ folders")
    for class_folder in folders:
        photographs = [
            path
            for path in sorted(class_folder.rglob("*"))
            if path.suffix.lower() in SUFFIXES and _all_shown(path.relative_to(class_folder))
        ]
        if not photographs:
            raise OpamError(f"{class_folder}: holds no photographs; add some or remove the folder")
        for path in photographs:
            image_id = path.relative_to(root).as_posix()
            rows.append((image_id, below(root, image_id, folder), class_folder.name))
    return rows


def _below_top_folder(raw: Path) -> Path:
    """The single folder in ``raw`` where only that holds folders: archives often have one."""
    shown = [path for path in raw.iterdir() if _shown(path)]
    if len(shown) == 1 and shown[0].is_dir() and shown[0].name != "train":
        inner = [path for path in shown[0].iterdir() if _shown(path)]
        if inner and all(path.is_dir() for path in inner):
            return shown[0]
    return raw


def _shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _all_shown(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)
