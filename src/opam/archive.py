"""The data set as one file: a zip of all its files, uncompressed, read in place.

A team's remote, DVC's status and a checkout handle one file at once; twelve thousand
photographs they handle one by one. A file in the archive has a path like any other,
``data/raw.zip/images/a.jpg``.
"""

import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from opam.artifacts import atomic
from opam.errors import OpamError, cause
from opam.progress import progress

FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can tell: when a file was written must not change the archive."""

MODE = (stat.S_IFREG | 0o644) << 16


def pack(folder: Path, archive: Path) -> None:
    """Write every file below ``folder`` to ``archive``: the same files give the same bytes.

    Raises:
        OpamError: a file that is not readable, is no regular file, links out of ``folder``, or
            has a name that is not text; or ``archive`` cannot be written.
    """
    found = _files(folder, folder.resolve())
    files = sorted(found, key=lambda path: path.relative_to(folder).as_posix())
    with atomic(archive) as temporary, zipfile.ZipFile(temporary, "w") as to:
        for path in progress(files, len(files), "packing the data set", "files"):
            try:
                _add(to, path, path.relative_to(folder).as_posix())
            except UnicodeEncodeError:
                raise OpamError(f"{path}: its name is not UTF-8 text; rename it") from None


def _add(to: zipfile.ZipFile, path: Path, name: str) -> None:
    if path.is_dir():
        to.writestr(zipfile.ZipInfo(f"{name}/", FIRST_DATE), b"")
        return
    member = zipfile.ZipInfo(name, FIRST_DATE)
    member.external_attr = MODE
    try:
        source = path.open("rb")
    except OSError as error:
        raise OpamError(f"{path}: cannot be read ({error.strerror}); correct it") from None
    with source:
        member.file_size = os.fstat(source.fileno()).st_size
        with to.open(member, "w") as target:
            shutil.copyfileobj(source, target, 1 << 20)


def _files(folder: Path, inside: Path) -> Iterator[Path]:
    """Files and empty folders below ``folder``; no link leads out of ``inside``."""
    for path in _children(folder):
        if path.is_symlink():
            if not Path(os.path.realpath(path)).is_relative_to(inside):
                raise OpamError(f"{path}: links out of {inside}; copy what it links to there")
            if path.is_dir():
                raise OpamError(f"{path}: is a link to a folder; put the folder there")
        if path.is_dir():
            below = list(_files(path, inside))
            yield from below or [path]
        elif path.is_file():
            yield path
        else:
            raise OpamError(f"{path}: is no readable file or folder; remove or restore it")


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise OpamError(f"{folder}: cannot be read ({error.strerror}); correct it") from None


def open_archive(archive: Path) -> zipfile.Path:
    """The archive's top folder.

    Raises:
        OpamError: missing, or not what `pack` writes.
    """
    return zipfile.Path(_opened(str(archive)))


def archive_of(path: str) -> str | None:
    """The archive that a file lies in by its path, ``data/raw.zip``; None where in none."""
    archive, inside, _ = path.partition(".zip/")
    return f"{archive}.zip" if inside and Path(f"{archive}.zip").is_file() else None


def read_file(path: Path | str) -> bytes:
    """The bytes of a file, on disk or in an archive.

    Raises:
        FileNotFoundError: there is none.
        OpamError: the archive is damaged.
    """
    archive = archive_of(str(path))
    if archive is None:
        return Path(path).read_bytes()
    try:
        return _opened(archive).read(str(path).removeprefix(f"{archive}/"))
    except KeyError:
        raise FileNotFoundError(str(path)) from None
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise _damaged(path, error) from None


def names(folder: zipfile.Path) -> list[PurePosixPath]:
    """Everything below a folder of an archive, relative to it; folders only where empty."""
    prefix = folder.at
    # Its list of names has folders too that no entry stands for.
    every = (member.filename for member in folder.root.infolist())
    found = (name for name in every if name.startswith(prefix))
    return [PurePosixPath(name.removeprefix(prefix)) for name in found if name != prefix]


def _opened(archive: str) -> zipfile.ZipFile:
    try:
        changed = os.stat(archive).st_mtime_ns
        # A process of its own reads through a file handle of its own.
        return _open_once(archive, changed, os.getpid())
    except FileNotFoundError:
        raise OpamError(f"{archive}: not found; run `dvc repro` to make it") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(archive, error) from None


def _damaged(path: Path | str, error: Exception) -> OpamError:
    return OpamError(f"{path}: damaged ({cause(error)}); run `dvc repro -f fetch_data`")


@lru_cache(maxsize=2)
def _open_once(archive: str, _changed: int, _process: int) -> zipfile.ZipFile:
    opened = zipfile.ZipFile(archive)
    for member in opened.infolist():
        # `pack` compresses nothing; what does could unpack to fill the memory.
        if member.compress_type != zipfile.ZIP_STORED:
            raise zipfile.BadZipFile(f"'{member.filename}' is compressed")
    return opened
