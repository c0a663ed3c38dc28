"""The data set as one file: a zip of all its files, uncompressed, read in place.

A team's remote, DVC's status and a checkout handle one file at once; twelve thousand
photographs they handle one by one. A file in the archive has a path like any other,
``data/raw.zip/images/a.jpg``.
"""

import os
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from opam.pipeline.artifacts import atomic
from opam.pipeline.errors import OpamError, cause
from opam.pipeline.progress import progress

FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""The earliest that a zip can tell: when a file was written must not change the archive."""

MODE = (stat.S_IFREG | 0o644) << 16


def pack(
    folder: Path, archive: Path, ignored: Callable[[PurePosixPath], bool] = lambda _path: False
) -> list[str]:
    """Write the files below ``folder`` to ``archive``: the same files give the same bytes.

    Names are in Unicode's form NFC, whichever the file system has: one name is one name.

    Args:
        folder: what is packed.
        archive: the zip.
        ignored: whether a file, by its path below ``folder``, is left out.

    Returns:
        The files that were left out.

    Raises:
        OpamError: a file that is not readable, is no regular file, links out of ``folder``, or
            has a name that is not text or that another has in another Unicode form; or
            ``archive`` cannot be written.
    """
    inside = folder.resolve()
    files: dict[str, Path] = {}
    left_out = []
    beside = {}
    for path in _files(folder, inside):
        name = nfc(path.relative_to(folder).as_posix())
        if ignored(PurePosixPath(name)):
            left_out += [name] if path.is_file() else []
            beside[PurePosixPath(name).parent] = path.parent
            continue
        if name in files:
            raise OpamError(
                f"{folder}: '{name}' is there twice, in two Unicode forms that look the same; "
                "rename or remove one"
            )
        files[name] = path
    # A folder of which all is left out is empty, and is seen to be.
    holding = {"."} | {str(parent) for name in files for parent in PurePosixPath(name).parents}
    for within, at in beside.items():
        if str(within) not in holding and not ignored(within):
            files[str(within)] = at
    with atomic(archive) as temporary, zipfile.ZipFile(temporary, "w") as to:
        for name in progress(sorted(files), len(files), "packing the data set", "files"):
            try:
                _add(to, files[name], name)
            except UnicodeEncodeError:
                raise OpamError(f"{files[name]}: its name is not UTF-8 text; rename it") from None
    return sorted(left_out)


def nfc(name: str) -> str:
    """A name in Unicode's form NFC; macOS writes NFD, in which it looks the same."""
    return unicodedata.normalize("NFC", name)


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
        if path.is_dir() and not path.is_symlink():
            below = list(_files(path, inside))
            yield from below or [path]
        else:
            _check_regular(path, inside)
            yield path


def _check_regular(path: Path, inside: Path) -> None:
    if not Path(os.path.realpath(path)).is_relative_to(inside):
        raise OpamError(f"{path}: links out of {inside}; copy what it links to there")
    if path.is_dir():
        raise OpamError(f"{path}: is a link to a folder; put the folder there")
    if not path.is_file():
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
    return [PurePosixPath(name) for name in _below(folder)]


def files(folder: zipfile.Path) -> list[PurePosixPath]:
    """Every file below a folder of an archive, relative to it."""
    return [PurePosixPath(name) for name in _below(folder) if not name.endswith("/")]


def _below(folder: zipfile.Path) -> list[str]:
    prefix = folder.at
    # Its list of names has folders too that no entry stands for.
    every = (member.filename for member in folder.root.infolist())
    found = (name for name in every if name.startswith(prefix))
    return [name.removeprefix(prefix) for name in found if name != prefix]


def inside(folder: zipfile.Path, at: PurePosixPath) -> zipfile.Path:
    """What lies at a path below a folder of an archive; the folder itself at an empty path."""
    return folder / str(at) if at.parts else folder


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
