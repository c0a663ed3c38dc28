"""Where photographs come from: a folder, an archive, or a download of the publisher's."""

import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from opam.pipeline.errors import OpamError, cause

UTF8 = 0x800
"""Flag of a zip's member whose name is UTF-8; without it the standard says CP437."""

WESTERN = set("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜáíóúñÑß")
"""Letters that have the same bytes in CP437 and CP850, the code pages of western Windows."""


def take_over(source: Path, raw: Path) -> Path:
    """The folder that holds a local data set.

    Args:
        source: that folder, or an archive (.tgz, .tar.gz, .tar, .zip).
        raw: where an archive is unpacked.

    Raises:
        OpamError: missing, empty, damaged, not an archive, larger than the free disk space, with
            links or members that lead out of it, or names in an encoding that it does not state.
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
                _unzip(archive, raw, source)
        else:
            with tarfile.open(source) as tar:
                _untar(tar, raw, source)
    except OpamError:
        raise
    except Exception as error:  # damaged archives raise many types
        raise OpamError(
            f"{source}: cannot be unpacked ({cause(error)}); fetch the archive again"
        ) from None
    return raw


def _unzip(archive: zipfile.ZipFile, raw: Path, source: Path) -> None:
    members = archive.infolist()
    first: dict[str, str] = {}
    for member, name in zip(members, member_names(members, source), strict=True):
        _stays_inside(name, source)
        # The same name again is an update; another name that reads the same would be lost.
        if first.setdefault(name, member.orig_filename) != member.orig_filename:
            raise OpamError(f"{source}: two of its members read '{name}'; rename one")
        member.filename = name
    _fits(sum(member.file_size for member in members), raw, source)
    for member in members:
        archive.extract(member, raw)


def member_names(members: list[zipfile.ZipInfo], source: Path) -> list[str]:
    """The name of every member, in text and with forward slashes.

    A name is UTF-8 where its flag or the field of Info-ZIP says so, or where all that say
    nothing are valid UTF-8 (macOS). Else the standard's CP437 is believed where it gives western
    words, and where the bytes are not Japanese as well.

    Args:
        members: of one zip.
        source: the zip.

    Raises:
        OpamError: some names are in an encoding that nothing tells.
    """
    stated = [_stated_name(member) for member in members]
    silent = [
        member.orig_filename.encode("cp437")
        for member, name in zip(members, stated, strict=True)
        if name is None
    ]
    encoding = "utf-8" if all(_reads(name, "utf-8") for name in silent) else "cp437"
    if encoding == "cp437" and not _western(silent):
        raise OpamError(
            f"{source}: names of its members are in an encoding that it does not state (one "
            f"reads '{silent[0].decode('cp437')}' as CP437); pack it again with UTF-8 names, or "
            "unpack it yourself (`unzip -O cp932` where it is Japanese, gbk Chinese, cp866 "
            "Russian) and give the folder"
        )
    unstated = iter(silent)
    # Some Windows tools write the backslash, which the standard forbids.
    return [
        (next(unstated).decode(encoding) if name is None else name).replace("\\", "/")
        for name in stated
    ]


def _stated_name(member: zipfile.ZipInfo) -> str | None:
    """A member's name where its encoding is certain."""
    name = member.orig_filename
    if member.flag_bits & UTF8 or name.isascii():
        return name
    checksum = zlib.crc32(name.encode("cp437"))
    for kind, content in _extra_fields(member.extra):
        if kind == 0x7075 and content[:5] == struct.pack("<BL", 1, checksum):
            return content[5:].decode("utf-8")
    return None


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        yield kind, extra[4 : 4 + size]
        extra = extra[4 + size :]


def _reads(name: bytes, encoding: str) -> bool:
    try:
        name.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _western(names: list[bytes]) -> bool:
    """Whether names with bytes above 127 are words of western languages in CP437."""
    text = " ".join(name.decode("cp437") for name in names)
    foreign = {char for char in text if not char.isascii()}
    letters = "".join(word for word in re.findall(r"[^\W\d_]+", text) if not word.isascii())
    # Capitals of CP866 are such letters too, and every second byte of Japanese syllables.
    if foreign - WESTERN or 2 * sum(not char.isascii() for char in letters) > len(letters):
        return False
    return not all(_japanese(name) for name in names)


def _japanese(name: bytes) -> bool:
    if not _reads(name, "cp932"):
        return False
    foreign = [char for char in name.decode("cp932") if not char.isascii()]
    return all("\u3040" <= char <= "\u30ff" or "\u4e00" <= char <= "\u9fff" for char in foreign)


def _untar(tar: tarfile.TarFile, raw: Path, source: Path) -> None:
    # Python before 3.11.4 has no filter: then the checks here stand alone.
    tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
    for entry in tar:
        _stays_inside(entry.name, source)
        if not (entry.isfile() or entry.isdir()):
            raise OpamError(f"{source}: member '{entry.name}' is no file or folder")
        if not _is_text(entry.name):
            raise OpamError(
                f"{source}: member {entry.name!a}: its name is not UTF-8 text; rename it"
            )
        _fits(entry.size, raw, source)
        entry.mode = 0o755 if entry.isdir() else 0o644
        tar.extract(entry, raw)
    # The checksum stands behind the last byte, and extraction stops before it.
    while tar.fileobj is not None and tar.fileobj.read(1 << 20):
        pass


def _is_text(name: str) -> bool:
    """Whether a name of a tar was UTF-8: bytes that are not have become lone surrogates."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _stays_inside(name: str, archive: Path) -> None:
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise OpamError(f"{archive}: member '{name}' leads out of the archive")


def _fits(size: int, folder: Path, archive: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OpamError(
            f"{archive}: unpacks to {size} bytes, but {folder} has {free} left; free space"
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
