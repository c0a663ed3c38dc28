"""Photographs in class folders: ROOT/train/CLASS and ROOT/test/CLASS, or ROOT/CLASS."""

import zipfile
from pathlib import Path, PurePosixPath

import pandas as pd

from opam.archive import names
from opam.datasets.dataset import Dataset, dataset, take_over
from opam.errors import OpamError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}


def fetch(raw: Path, source: Path | None) -> Path:
    """The folder of class folders: itself, or an archive unpacked under ``raw``.

    Raises:
        OpamError: no source.
    """
    if source is None:
        raise OpamError("dataset.path: give the folder that holds the class folders")
    return take_over(source, raw)


def read(raw: zipfile.Path) -> Dataset:
    """List the photographs. Hidden files and folders do not count.

    Where there is no test folder, ``split`` is missing: it is drawn when groups are known.

    Args:
        raw: the folder.

    Raises:
        OpamError: no class folder, a class folder without photographs, or train without test.
    """
    top, files = _below_top_folder(raw, [name for name in names(raw) if _shown(name)])
    if any(name.parts[0] == "train" for name in files):
        if not any(name.parts[0] == "test" for name in files):
            raise OpamError(f"{top}: has train/ but no test/; add it, or put classes at the top")
        rows = [
            (*row, split) for split in ("train", "test") for row in _class_rows(top, files, split)
        ]
        images = pd.DataFrame(rows, columns=["image_id", "path", "class_name", "split"])
        return dataset(images)
    rows = _class_rows(top, files)
    images = pd.DataFrame(rows, columns=["image_id", "path", "class_name"])
    return dataset(images.assign(split=None))


def _class_rows(
    top: zipfile.Path, files: list[PurePosixPath], split: str = ""
) -> list[tuple[str, ...]]:
    """``image_id, path, class_name`` of every photograph below ``split``, by class, then name."""
    folder = top / split if split else top
    photographs: dict[str, list[PurePosixPath]] = {}
    for name in files:
        inside = name.relative_to(split) if name.is_relative_to(split) else None
        if inside is None or not inside.parts:
            continue
        if len(inside.parts) > 1 or (folder / inside.name).is_dir():
            members = photographs.setdefault(inside.parts[0], [])
            if len(inside.parts) > 1 and name.suffix.lower() in SUFFIXES:
                members.append(name)
    if not photographs:
        raise OpamError(f"{folder}: holds no class folders; put photographs into CLASS/ folders")
    for class_name, members in photographs.items():
        if not members:
            raise OpamError(
                f"{folder / class_name}: holds no photographs; add some or remove the folder"
            )
    return [
        (str(name), str(top / str(name)), class_name)
        for class_name, members in sorted(photographs.items())
        for name in sorted(members)
    ]


def _below_top_folder(
    raw: zipfile.Path, files: list[PurePosixPath]
) -> tuple[zipfile.Path, list[PurePosixPath]]:
    """The single folder in ``raw`` where only that holds folders: archives often have one."""
    tops = {name.parts[0] for name in files}
    inner = all(
        len(name.parts) > 2 or (len(name.parts) == 2 and (raw / str(name)).is_dir())
        for name in files
    )
    if len(tops) == 1 and tops != {"train"} and inner:
        top = tops.pop()
        return raw / top, [name.relative_to(top) for name in files]
    return raw, files


def _shown(name: PurePosixPath) -> bool:
    return not any(part.startswith(".") for part in name.parts)
