"""Kept on disk by content: a photograph is decoded, searched and looked at once a machine.

They lie outside the project, in ``$OPAM_CACHE`` or else ``~/.cache/opam``, each under the digest of
what they were made from, so that stages, processes and clones share them and none can get
another's. They are mapped into memory: who cuts a small crop reads little. What is gone or damaged
is made anew; where there is no room, it is made each time. Results are the same either way.
"""

import hashlib
import math
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from filelock import FileLock

NUMBERS = 3
Kept = tuple[np.ndarray, tuple[int, ...]]
"""Bytes, uint8 with three axes, such as pixels H x W x 3; and `NUMBERS` whole numbers of theirs."""

HEADER = np.dtype([("shape", "<i4", 3), ("numbers", "<i4", NUMBERS), ("checksum", "<u4")])
"""Before the bytes of each file."""
PATIENCE = 60.0
"""Seconds that a photograph is waited for which another process decodes."""
SHARE = 32
"""A process takes a 32th of the room at a time, so that several know of each other."""


def folder() -> Path:
    """Where all of them lie."""
    try:
        top = Path(os.environ.get("OPAM_CACHE") or "~/.cache/opam").expanduser()
    except RuntimeError:  # nobody's home
        top = Path(tempfile.gettempdir(), "opam")
    return top / "decoded"


def made_once(
    version: str,
    digest: str,
    make: Callable[[], Kept],
    fits: Callable[[Kept], bool],
    gigabytes: float,
) -> Kept:
    """What is kept, or else what ``make`` makes, which is then kept where there is room.

    Args:
        version: of what makes it; what another made is not looked at.
        digest: of what it is made from, hexadecimal.
        make: makes it; what it raises goes on.
        fits: whether what is kept is of the kind that is wanted.
        gigabytes: disk space for all that is kept; 0: nothing is added.
    """
    at = _place(version, digest)
    found = _read(at, fits)
    if found is None and gigabytes <= 0:
        return make()
    if found is None:
        with _alone(at.parent):
            found = _read(at, fits)  # another process may have made it meanwhile
            if found is None:
                found = make()
                _keep(at, found, round(gigabytes * 1e9))
    return found


def version_of(kind: str, code: Iterable[Path], *values: object) -> str:
    """A name for what makes a kind of thing: its code, and whatever else decides on the bytes.

    Args:
        kind: a word.
        code: files.
        values: count by their ``repr``.
    """
    digest = hashlib.sha256(repr(values).encode())
    for path in code:
        digest.update(path.read_bytes())
    return f"{kind}-{digest.hexdigest()[:16]}"


def digest_of(*values: object) -> str:
    """A digest of values, by their ``repr``."""
    return hashlib.sha256(repr(values).encode()).hexdigest()


def find(version: str, digest: str) -> np.ndarray | None:
    """The bytes that `keep` kept, mapped into memory; None where there are none."""
    found = _read(_place(version, digest), lambda _: True)
    return None if found is None else found[0]


def keep(version: str, digest: str, made: np.ndarray, gigabytes: float) -> None:
    """Keep bytes, uint8 with three axes, where there is room; other arguments as in `made_once`."""
    if gigabytes > 0:
        with suppress(OSError):  # `_keep` says so
            _place(version, digest).parent.mkdir(parents=True, exist_ok=True)
        _keep(_place(version, digest), (made, (0,) * NUMBERS), round(gigabytes * 1e9))


def of_each(
    version: str,
    digests: Sequence[str],
    make: Callable[[list[int]], Iterable[np.ndarray]],
    kind: type[np.number],
    gigabytes: float,
) -> Iterator[np.ndarray]:
    """Yield for each digest what is kept under it, or else what is made, which is then kept.

    Args:
        version: as in `made_once`.
        digests: of what each is made from, hexadecimal.
        make: makes those at the given places, in their order and as they are asked for: arrays
            with three axes.
        kind: of their numbers.
        gigabytes: as in `made_once`.
    """
    missing = [place for place, digest in enumerate(digests) if find(version, digest) is None]
    made, unknown = iter(make(missing) if missing else ()), {*missing}
    for place, digest in enumerate(digests):
        known = None if place in unknown else find(version, digest)
        if known is None:  # or it has gone since
            array = next(made) if place in unknown else next(iter(make([place])))
            array = np.ascontiguousarray(array, dtype=kind)
            known = array.view(np.uint8)
            keep(version, digest, known, gigabytes)
        yield known.view(kind)


def _place(version: str, digest: str) -> Path:
    return folder() / version / digest[:2] / digest


_sound: set[Path] = set()
"""Files whose checksum this process has seen agree."""


def _read(at: Path, fits: Callable[[Kept], bool]) -> Kept | None:
    """What is kept at ``at``; None where nothing is, or it is damaged, or does not fit."""
    try:
        [header] = np.fromfile(at, HEADER, count=1)
        shape = tuple(header["shape"].tolist())
        if at.stat().st_size != HEADER.itemsize + math.prod(shape) or min(shape) < 1:
            return None
        pixels = np.asarray(np.memmap(at, np.uint8, "r", HEADER.itemsize, shape))
        if at not in _sound:
            if _checksum(header, pixels) != header["checksum"]:
                return None
            with suppress(OSError):  # a folder that others fill, say
                os.utime(at)  # what was not used for longest goes first
            _sound.add(at)
    except (OSError, ValueError):
        return None
    found = pixels, tuple(header["numbers"].tolist())
    return found if fits(found) else None


def _checksum(header: np.void, pixels: np.ndarray) -> int:
    """Of all that a file holds but the checksum itself."""
    return zlib.crc32(pixels.data, zlib.crc32(header.tobytes()[: -HEADER["checksum"].itemsize]))


def _keep(at: Path, made: Kept, limit: int) -> None:
    pixels = np.ascontiguousarray(made[0])
    header = np.array([(pixels.shape, made[1], 0)], dtype=HEADER)
    header["checksum"] = _checksum(header[0], pixels)
    temporary = at.with_name(f".{at.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        if not _space.take(HEADER.itemsize + pixels.nbytes, limit):
            return
        at.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(header.tobytes())
            file.write(pixels.data)
        temporary.replace(at)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        _tell_once(
            f"{folder()}: what is made of photographs cannot be kept ({error.strerror}), "
            "it is made each time; set OPAM_CACHE to another folder"
        )
    _sound.discard(at)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """So that two processes do not decode one photograph; where no lock can be had, they may."""
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(place.with_suffix(".lock"), timeout=PATIENCE))
        yield


class _Space:
    """What this process may still write: of the limit, and of half of the disk's free space."""

    def __init__(self) -> None:
        self.began = time.time()
        self.left = 0
        self.full = False
        self.lock = threading.Lock()

    def take(self, size: int, limit: int) -> bool:
        """Whether ``size`` bytes may be added to ``limit`` in all; the longest unused go."""
        with self.lock:
            if self.left < size and not self.full:
                self.left = self._found(max(size, limit // SHARE), limit)
            self.full = self.left < size
            if not self.full:
                self.left -= size
            else:
                _tell_once(
                    f"{folder()}: {limit / 1e9:g} GB (execution.decoded_gigabytes), or half "
                    "of the free disk, are full; of other photographs all is made each time"
                )
            return not self.full

    def _found(self, wanted: int, limit: int) -> int:
        top = folder()
        known = []
        for path in top.rglob("*"):
            with suppress(OSError):  # another process may remove it
                found = path.stat()
                if stat.S_ISREG(found.st_mode):
                    known.append((found.st_mtime, found.st_size, path))
        known.sort()
        total = sum(size for _, size, _ in known)
        # As much stays free as all that is kept takes, however many processes ask.
        free = min(limit, (shutil.disk_usage(top).free + total) // 2) - total
        for used, size, path in known:
            if free >= wanted or used >= self.began:
                break
            path.unlink(missing_ok=True)
            free += size
        return min(free, wanted)


_space = _Space()


_telling = threading.Lock()


def _tell_once(line: str) -> None:
    with _telling:
        _tell(line)


@cache
def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
