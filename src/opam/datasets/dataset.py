"""What every data set becomes, and the small tools its adapter needs."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from opam.artifacts import GT_BOX
from opam.errors import OpamError, cause

KEYPOINT_COLUMNS = ["image_id", "part", "x", "y", "visible"]


@dataclass(frozen=True)
class Dataset:
    """A data set as its adapter reads it.

    Attributes:
        images: ``image_id`` (path below the image root, forward slashes), ``path``,
            ``class_name``, ``split`` ("train" or "test"; missing in every row where the set has no
            splits), and the true object box
            ``gt_x0, gt_y0, gt_x1, gt_y1`` (half-open pixels, or missing).
        keypoints: ``image_id, part, x, y, visible``; empty where the set has none.
    """

    images: pd.DataFrame
    keypoints: pd.DataFrame


def dataset(
    images: pd.DataFrame, keypoints: pd.DataFrame | None = None, boxes: pd.DataFrame | None = None
) -> Dataset:
    """Bring tables into the form of `Dataset`.

    Args:
        images: ``image_id, path, class_name, split``.
        keypoints: as in `Dataset`, or None.
        boxes: ``image_id`` and the true box, or None.
    """
    if boxes is None:
        boxes = pd.DataFrame(columns=["image_id", *GT_BOX])
    images = images.merge(boxes, on="image_id", how="left")
    images[GT_BOX] = images[GT_BOX].astype("float64").round().astype("Int32")
    if keypoints is None:
        keypoints = pd.DataFrame(columns=KEYPOINT_COLUMNS)
    return Dataset(images.reset_index(drop=True), keypoints[KEYPOINT_COLUMNS])


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
        lines = path.read_text(encoding="utf-8").splitlines()
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


def take_over(source: Path, raw: Path) -> Path:
    """The folder that holds a local data set.

    Args:
        source: that folder, or an archive (.tgz, .tar.gz, .tar, .zip).
        raw: where an archive is unpacked.

    Raises:
        OpamError: missing, empty, damaged, not an archive, larger than the free disk space, or
            with links or members that lead out of it.
    """
    if not source.exists():
        raise OpamError(f"{source}: not found; correct dataset.path")
    if source.is_dir():
        if not any(source.iterdir()):
            raise OpamError(f"{source}: is empty; correct dataset.path")
        return source
    raw.mkdir(parents=True, exist_ok=True)
    try:
        if source.suffix.lower() == ".zip":
            with zipfile.ZipFile(source) as archive:
                for member in archive.infolist():
                    _stays_inside(member.filename, source)
                _fits(sum(member.file_size for member in archive.infolist()), raw, source)
                archive.extractall(raw)
        else:
            with tarfile.open(source) as tar:
                # Python before 3.11.4 has no filter: then the checks here stand alone.
                tar.extraction_filter = getattr(
                    tarfile, "data_filter", lambda member, _path: member
                )
                for entry in tar:
                    _stays_inside(entry.name, source)
                    if not (entry.isfile() or entry.isdir()):
                        raise OpamError(f"{source}: member '{entry.name}' is no file or folder")
                    _fits(entry.size, raw, source)
                    entry.mode = 0o755 if entry.isdir() else 0o644
                    tar.extract(entry, raw)
                # The checksum stands behind the last byte, and extraction stops before it.
                while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                    pass
    except OpamError:
        raise
    except Exception as error:  # damaged archives raise many types
        raise OpamError(
            f"{source}: cannot be unpacked ({cause(error)}); fetch the archive again"
        ) from None
    return raw


def _stays_inside(name: str, archive: Path) -> None:
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise OpamError(f"{archive}: member '{name}' leads out of the archive")


def _fits(size: int, folder: Path, archive: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OpamError(
            f"{archive}: unpacks to {size} bytes, but {folder} has {free} left; free space"
        )


def inner_folder(raw: zipfile.Path, name: str, marks: Sequence[str]) -> zipfile.Path:
    """``raw/name`` where it holds all of ``marks``, else ``raw``: archives have a top folder.

    Raises:
        OpamError: neither holds them.
    """
    for folder in (raw / name, raw):
        if all((folder / mark).exists() for mark in marks):
            return folder
    raise OpamError(
        f"{raw}: does not hold {', '.join(marks)}; give dataset.path as the publisher lays it out"
    )


def take_over_or_download(raw: Path, source: Path | None, loader: str, name: str) -> Path:
    """The folder that holds ``source``, or without one what a loader of torchvision downloads.

    Args:
        raw: where an archive is unpacked, or the download goes.
        source: local folder or archive, or None.
        loader: class of ``torchvision.datasets``; it verifies checksums.
        name: of the data set, for messages.

    Raises:
        OpamError: as `take_over`, or the download fails.
    """
    if source is not None:
        return take_over(source, raw)
    try:
        import torchvision.datasets

        getattr(torchvision.datasets, loader)(str(raw), download=True)
    except Exception as error:  # urllib, ssl and torchvision raise many types
        raise OpamError(
            f"dataset.path: '{name}' cannot be downloaded ({cause(error)}); download it elsewhere "
            "and give its folder"
        ) from None
    return raw
