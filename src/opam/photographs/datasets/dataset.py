"""What every data set becomes, and the small tools its adapter needs."""

import io
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from opam.photographs.decoding.archive import files, inside, names, nfc
from opam.photographs.decoding.images import ignored
from opam.pipeline.artifacts import GT_BOX
from opam.pipeline.errors import OpamError, cause

KEYPOINT_COLUMNS = ["image_id", "part", "x", "y", "visible"]
COARSE_COLUMNS = ["image_id", "level", "label"]

HIDDEN = "hidden, or a program's own file"
UNEXPECTED = "no photograph is expected there"
UNLISTED = "the annotations do not list it"
"""Why a file is left out."""


@dataclass(frozen=True)
class Dataset:
    """A data set as its adapter reads it.

    All names are in Unicode's form NFC.

    Attributes:
        images: ``image_id`` (path below the image root, forward slashes), ``path``,
            ``class_name``, ``split`` ("train", "val" or "test"; missing in every row where the
            set has no splits), ``group`` (string: photographs that belong together; missing
            where nothing is said), and the true object box ``gt_x0, gt_y0, gt_x1, gt_y1``
            (half-open pixels, or missing).
        keypoints: ``image_id, part, x, y, visible``; empty where the set has none.
        coarse_labels: ``image_id, level`` (int from 1, the finest of them), ``label``; empty
            where the set has none. A class has one at each level, and so has a coarser label at
            those above it.
        skipped: ``path`` in the archive and ``reason`` of every file that is left out unopened.
        layout: how the files were read, for people; empty where that goes without saying.
        listed: whether annotations name the photographs; else they are what folders hold, and
            files that are no photographs may lie among them.
    """

    images: pd.DataFrame
    keypoints: pd.DataFrame
    coarse_labels: pd.DataFrame
    skipped: pd.DataFrame
    layout: str = ""
    listed: bool = True


def dataset(
    images: pd.DataFrame,
    keypoints: pd.DataFrame | None = None,
    boxes: pd.DataFrame | None = None,
    coarse_labels: pd.DataFrame | None = None,
    skipped: pd.DataFrame | None = None,
) -> Dataset:
    """Bring tables into the form of `Dataset`; those that are not given are empty.

    Args:
        images: ``image_id, path, class_name, split``, and ``group`` where there is one.
        keypoints: as in `Dataset`.
        boxes: ``image_id`` and the true box.
        coarse_labels: as in `Dataset`.
        skipped: as in `Dataset`.

    Raises:
        OpamError: names of two classes, or two coarser labels of one level, differ in nothing but
            case and spaces.
    """
    if boxes is None:
        boxes = pd.DataFrame(columns=["image_id", *GT_BOX])
    if keypoints is None:
        keypoints = pd.DataFrame(columns=KEYPOINT_COLUMNS)
    if coarse_labels is None:
        coarse_labels = pd.DataFrame(columns=COARSE_COLUMNS)
    if skipped is None:
        skipped = skipped_files([], "")
    images, boxes, keypoints, coarse_labels = (
        table.assign(image_id=table["image_id"].map(nfc))
        for table in (images, boxes, keypoints, coarse_labels)
    )
    images["class_name"] = images["class_name"].map(nfc)
    _differ("classes", images["class_name"].unique())
    for _, labels in coarse_labels.groupby("level")["label"]:
        _differ("coarser labels", labels.unique())
    images = images.merge(boxes, on="image_id", how="left")
    images[GT_BOX] = images[GT_BOX].astype("float64").round().astype("Int32")
    if "group" not in images:
        images["group"] = None
    return Dataset(
        images.reset_index(drop=True),
        keypoints[KEYPOINT_COLUMNS],
        coarse_labels[COARSE_COLUMNS].reset_index(drop=True),
        skipped,
    )


def _differ(what: str, names: Iterable[str]) -> None:
    """Names that some file systems, and most people, take for one are refused."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            raise OpamError(
                f"dataset: {what} '{other}' and '{name}' differ only in case or spaces; "
                "give them one name, or names that differ in more"
            )


def skipped_files(paths: Iterable[str], reason: str) -> pd.DataFrame:
    """``path`` and ``reason`` of files that are left out for one reason."""
    return pd.DataFrame({"path": list(paths), "reason": reason}, columns=["path", "reason"])


def unlisted(paths: Iterable[str], *folders: zipfile.Path) -> pd.DataFrame:
    """The files below ``folders`` that are not among the ``paths`` that annotations list."""
    known = set(paths)
    found = [
        f"{folder.at}{name}"
        for folder in folders
        for name in files(folder)
        if not ignored(name) and f"{folder}{name}" not in known
    ]
    return skipped_files(found, UNLISTED)


def existing(path: zipfile.Path, remedy: str) -> zipfile.Path:
    """``path``, or an `OpamError` that it is missing."""
    if not path.exists():
        raise OpamError(f"{path}: not found; {remedy}")
    return path


def below(root: zipfile.Path, name: str, listed_in: object) -> str:
    """The path of a file that ``listed_in`` names below ``root``.

    Raises:
        OpamError: the name is absolute, leaves the root, or has no file.
    """
    name = nfc(name)
    parts = PurePosixPath(name).parts
    if not name or name.startswith(("/", "\\")) or ".." in parts or "\x00" in name:
        raise OpamError(f"{listed_in}: '{name}' leads out of {root}; correct the row")
    path = root / "/".join(parts)
    if not path.is_file():
        raise OpamError(
            f"{path}: named in {listed_in}, but there is no such photograph; restore it or "
            "remove the row"
        )
    return str(path)


def read_rows(path: zipfile.Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """The non-empty lines of a text file, split into ``columns`` fields; the last takes the rest.

    Raises:
        OpamError: file missing, unreadable, not UTF-8 text, or a line with too few fields.
    """
    existing(path, "restore the data set as its publisher lays it out")
    try:
        lines = nfc(path.read_text(encoding="utf-8")).splitlines()
    except UnicodeDecodeError:
        raise OpamError(f"{path}: is not text; restore the file") from None
    except zipfile.BadZipFile as error:
        raise OpamError(
            f"{path}: damaged ({cause(error)}); run `dvc repro -f fetch_data`"
        ) from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.strip().split(separator, columns - 1)
        if len(fields) < columns:
            raise OpamError(
                f"{path}, line {number}: expected {columns} fields, found '{line}'; correct it"
            )
        rows.append(fields)
    return rows


def read_mat(path: zipfile.Path, key: str) -> np.ndarray:
    """A variable of a MATLAB file, flat; structures as rows with named fields.

    Raises:
        OpamError: missing, damaged, or without that variable.
    """
    existing(path, "restore the data set as its publisher lays it out")
    # SciPy's reader crashes on some damaged files: then a process of its own ends.
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(_load_mat, path.read_bytes(), key).result()
        except Exception as error:  # damaged files raise many types
            raise OpamError(
                f"{path}: cannot be read as .mat ({cause(error)}); restore the file"
            ) from None


def _load_mat(content: bytes, key: str) -> np.ndarray:
    from scipy.io import loadmat

    return np.atleast_1d(loadmat(io.BytesIO(content), squeeze_me=True)[key]).ravel()


def numbers(values: Iterable[str], path: zipfile.Path) -> list[float]:
    """Floats from text.

    Raises:
        OpamError: naming the file and the value that is no finite number.
    """
    found = []
    for value in values:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not abs(number) < 1e9:
            raise OpamError(f"{path}: '{value}' is not a number; correct the row")
        found.append(number)
    return found


def lookup(table: dict[str, str], key: str, path: zipfile.Path, what: str) -> str:
    """``table[key]``, or an `OpamError` that ``path`` has no row for ``key``."""
    if key not in table:
        raise OpamError(f"{path}: no {what} for '{key}'; add the row")
    return table[key]


def inner_folder(raw: zipfile.Path, marks: Sequence[str]) -> zipfile.Path:
    """The uppermost folder in ``raw`` that holds all of ``marks``: archives have top folders.

    Raises:
        OpamError: none does.
    """
    for parent in parents_of(raw, marks[0]):
        folder = inside(raw, parent)
        if all((folder / mark).exists() for mark in marks):
            return folder
    raise OpamError(
        f"{raw}: does not hold {', '.join(marks)}; give dataset.path as the publisher lays it out"
    )


def parents_of(raw: zipfile.Path, name: str) -> list[PurePosixPath]:
    """Every folder below ``raw`` that holds a file or folder of that name, the uppermost first."""
    found = {
        PurePosixPath(*path.parts[:depth])
        for path in names(raw)
        if not ignored(path)
        for depth, part in enumerate(path.parts)
        if part == name
    }
    return sorted(found, key=lambda parent: (len(parent.parts), parent))
