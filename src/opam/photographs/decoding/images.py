"""Photographs: every file becomes an upright RGB array, the same everywhere."""

import hashlib
import io
import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
import pandas as pd
import PIL
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from opam.photographs.decoding import depth
from opam.photographs.decoding.archive import read_file
from opam.photographs.decoding.depth import colour_largest, eight_bits, is_wide
from opam.pipeline.errors import OpamError, cause
from opam.pipeline.kept import Kept, made_once

MAX_PIXELS = 100_000_000
"""Larger photographs are refused: a small file can unpack to fill the memory."""

SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "PPM": rb"P[1-6f]\s+(#|\d+\s)",
    "JPEG2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
}
"""How the files begin, by Pillow's name of the format; AVIF and HEIF are told by `_brand`.

Nothing else is ever opened: some of Pillow's formats start other programs, and many are read by
code that hardly anyone uses.
"""

HEAD = 512
"""Bytes that tell the format."""

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
AVIF_BRANDS = {b"avif", b"avis"}
EITHER_BRANDS = {b"mif1", b"msf1"}

SUBFILE, PHOTOMETRIC, DNG_VERSION = 254, 262, 50706
PREVIEW = 1
ORIENTATION, QUARTER_TURNS = 0x0112, (5, 6, 7, 8)
SENSOR = (32803, 34892)
"""Photometric interpretations of what a camera's sensor measured."""

IGNORED = {
    "$recycle.bin",
    "@eadir",
    "#recycle",
    "__macosx",
    "__pycache__",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "lost+found",
    "system volume information",
    "thumbs.db",
}
"""Files and folders, in lower case, that systems leave in folders of photographs."""


class Photograph(NamedTuple):
    """A decoded photograph.

    Attributes:
        pixels: uint8 H x W x 3, RGB, upright.
        width, height: of the upright photograph as the file has it; ``pixels`` may be smaller.
        largest: of samples that are taken for full 16 bits, else None. A set in which none is
            above 4095, say, has 12 bits in 16 (`depth.unused_depth`).
    """

    pixels: np.ndarray
    width: int
    height: int
    largest: int | None


class NotAPhotograph(OpamError):  # noqa: N818
    """The bytes are of no format that is read, or hold no photograph of their own.

    Attributes:
        reason: why, in a few words, the same for all files of a kind.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: cannot be decoded ({reason}); replace the photograph")
        self.reason = reason


def ignored(path: PurePath) -> bool:
    """Whether a file is none of the user's: hidden, or what a system left (`IGNORED`).

    Args:
        path: below the data set's folder, relative to it: the folders above do not count.
    """
    return any(part.startswith(".") or part.lower() in IGNORED for part in path.parts)


def image_format(file: BinaryIO, name: str) -> str:
    """Pillow's name of a photograph's format, told by how the file begins.

    Args:
        file: at its start, where it is left.
        name: what errors call it.

    Raises:
        NotAPhotograph: empty, of no format on the list, or a camera's raw file.
    """
    head = file.read(HEAD)
    file.seek(0)
    if not head:
        raise NotAPhotograph(name, "empty")
    kinds = (kind for kind, start in SIGNATURES.items() if re.match(start, head, re.DOTALL))
    kind = next(kinds, None) or _brand(head)
    if kind is None:
        raise NotAPhotograph(name, "of no known image format")
    if kind == "TIFF" and _is_raw(file, head):
        raise NotAPhotograph(name, "raw of a camera, with a preview")
    return kind


def _brand(head: bytes) -> str | None:
    """AVIF or HEIF, by the brands of an ISO media file, the main one first."""
    if head[4:8] != b"ftyp":
        return None
    box = head[8 : int.from_bytes(head[:4], "big")]
    for brand in (box[start : start + 4] for start in (0, *range(8, len(box), 4))):
        if brand in AVIF_BRANDS:
            return "AVIF"
        if brand in HEIC_BRANDS:
            return "HEIF"
    return "HEIF" if box[:4] in EITHER_BRANDS else None


def _is_raw(file: BinaryIO, head: bytes) -> bool:
    """Whether a TIFF's first picture is a preview of what the sensor measured, or that itself."""
    if head[8:10] == b"CR":
        return True
    try:
        tags = ImageFileDirectory_v2(head[: 16 if 43 in head[2:4] else 8])
        file.seek(tags.next)
        tags.load(file)
        subfile, photometric = tags.get(SUBFILE, 0), tags.get(PHOTOMETRIC)
        return bool(subfile & PREVIEW) or photometric in SENSOR or DNG_VERSION in tags
    except Exception:  # damaged, which decoding it tells
        return False
    finally:
        file.seek(0)


def read_image(path: Path | str) -> np.ndarray:
    """`read_photograph`'s pixels, uint8 H x W x 3, RGB, as many as the file has."""
    return read_photograph(path).pixels


def read_photograph(path: Path | str, side: int | None = None) -> Photograph:
    """Decode a photograph, whatever its ending.

    ``path`` may lie in an archive (`archive`). The formats are those of `SIGNATURES`, AVIF,
    and HEIC where the extra ``heic`` is installed; of several pictures in a file the first counts.
    EXIF orientation is applied; greyscale, CMYK, LAB and palettes become RGB; more than 8 bits a
    sample are scaled to 8 (`depth`); transparency is laid over white.

    Args:
        path: of the file.
        side: pixels that the longer side has at most; a larger photograph is scaled down. None:
            it stays as it is.

    Raises:
        NotAPhotograph: as `image_format`.
        OpamError: missing, damaged, more than `MAX_PIXELS` pixels, or samples of unknown range.
    """
    return decode_photograph(photograph_file(path), str(path), side)


def photograph_file(path: Path | str) -> bytes:
    """The bytes of a photograph's file.

    Raises:
        OpamError: missing, or not to be read.
    """
    try:
        return read_file(path)
    except FileNotFoundError:
        raise OpamError(f"{path}: photograph not found; restore it or run `dvc repro`") from None
    except OpamError:
        raise
    except Exception as error:  # a folder, say, or an impossible name
        raise _undecodable(str(path), cause(error)) from None


def decode_image(content: bytes, name: str) -> np.ndarray:
    """`decode_photograph`'s pixels, uint8 H x W x 3, RGB, as many as there are."""
    return decode_photograph(content, name).pixels


def decode_photograph(content: bytes, name: str, side: int | None = None) -> Photograph:
    """Decode the bytes of a photograph, as `read_photograph` does.

    Args:
        content: of the file.
        name: what errors call it.
        side: as in `read_photograph`.

    Raises:
        OpamError: as `read_photograph`.
    """
    kind = image_format(io.BytesIO(content), name)
    if kind == "HEIF":
        _register_heif(name)
    try:
        with Image.open(io.BytesIO(content), formats=(kind,)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise OpamError(
                    f"{name}: {width * height} pixels, more than {MAX_PIXELS}; scale it down"
                )
            bits = _bits(image, content)
            tiles = getattr(image, "tile", None)
            first = tiles[0].args if tiles else None
            if bits == 16 and isinstance(first, tuple) and first[:1] == ("R",):
                # Pillow reads these as 8 bits, into noise.
                raise _undecodable(name, "a TIFF with 16-bit colours in uncompressed planes")
            # Of a JPEG less is unpacked: an eighth of its sides, a quarter or a half.
            size = bounded_size(width, height, side)
            smaller = image.draft(None, size) if size != image.size else None
            image.load()
            turned = image.getexif().get(ORIENTATION) in QUARTER_TURNS
            ImageOps.exif_transpose(image, in_place=True)
            upright = image.size
            if smaller:
                upright = (height, width) if turned else (width, height)
            if is_wide(image):
                grey, largest = eight_bits(image, name)
                pixels = np.asarray(grey.convert("RGB"))
            else:
                pixels, largest = np.asarray(to_rgb(image)), colour_largest(image, bits)
            pixels = resized(pixels, bounded_size(*upright, side))
            return Photograph(pixels, *upright, largest)
    except OpamError:
        raise
    except UnidentifiedImageError:
        why = f"damaged, or a kind of {kind} that is not read"
        raise _undecodable(name, why) from None
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise _undecodable(name, cause(error)) from None


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image, uint8 H x W x 3, scaled down to a width and height."""
    if size == pixels.shape[1::-1]:
        return pixels
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def bounded_size(width: int, height: int, side: int | None) -> tuple[int, int]:
    """Width and height of which the longer is at most ``side``; None bounds nothing."""
    longer = max(width, height)
    if side is None or longer <= side:
        return width, height
    return max(1, round(width * side / longer)), max(1, round(height * side / longer))


def _bits(image: Image.Image, content: bytes) -> int | None:
    """Bits of a sample of a PNG or TIFF, which Pillow's modes do not tell of colours."""
    if image.format == "PNG":
        return content[24]  # of the header, which comes first
    bits = getattr(image, "tag_v2", {}).get(258, ())
    return bits[0] if bits else None


def _register_heif(name: str) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise OpamError(
            f"{name}: is HEIC; `pip install 'opam[heic]'`, or save it as JPEG"
        ) from None
    pillow_heif.register_heif_opener()


def _undecodable(name: str, why: str) -> OpamError:
    return OpamError(f"{name}: cannot be decoded ({why}); replace the photograph")


def to_rgb(image: Image.Image, name: str = "photograph") -> Image.Image:
    """Convert an opened image of any mode to RGB, transparency laid over white.

    Raises:
        OpamError: samples of unknown range (`depth`); ``name`` is what it calls the image.
    """
    if is_wide(image):
        return eight_bits(image, name)[0].convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


class Photographs:
    """The photographs of a manifest, by path: uint8 H x W x 3, RGB, of the manifest's size.

    Args:
        manifest: with ``path, sha256, width, height``.
        gigabytes: disk space for decoded photographs (`opam.pipeline.kept`).
    """

    def __init__(self, manifest: pd.DataFrame, gigabytes: float) -> None:
        paths, sizes = manifest["path"].tolist(), manifest[["width", "height"]].to_numpy().tolist()
        self.digests = dict(zip(paths, manifest["sha256"], strict=True))
        self.sizes: dict[str, tuple[int, int]] = dict(zip(paths, map(tuple, sizes), strict=True))
        self.gigabytes = gigabytes

    def __call__(self, path: str) -> np.ndarray:
        """Read one; one that is not in the manifest is decoded at its full size.

        Raises:
            OpamError: as `read_photograph`.
        """
        return decoded(*self.where(path)).pixels if path in self.sizes else read_image(path)

    def content(self, path: str) -> tuple[str, int]:
        """What decides on a photograph's pixels: its file's digest, its longer side in pixels."""
        return self.digests[path], max(self.sizes[path])

    def where(self, path: str) -> tuple[str, int, float, str]:
        """The arguments of `decoded`, for another process."""
        sha256, side = self.content(path)
        return path, side, self.gigabytes, sha256


def decoded(path: str, side: int, gigabytes: float, sha256: str) -> Photograph:
    """`read_photograph` by pixels that are kept, or that are kept now (`opam.pipeline.kept`).

    Args:
        path: of the photograph.
        side: as in `read_photograph`.
        gigabytes: disk space for kept pixels.
        sha256: digest of its file, hexadecimal.

    Raises:
        OpamError: as `read_photograph`; or it is read, and is another file.
    """

    def make() -> Kept:
        content = photograph_file(path)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise OpamError(
                f"{path}: is not the photograph that prepare saw; run `dvc repro` to see it anew"
            )
        pixels, width, height, largest = decode_photograph(content, path, side)
        return pixels, (width, height, -1 if largest is None else largest)

    def fits(found: Kept) -> bool:
        pixels, (width, height, _) = found
        return bounded_size(width, height, side) == pixels.shape[1::-1]

    pixels, (width, height, largest) = made_once(_version(), sha256, make, fits, gigabytes)
    return Photograph(pixels, width, height, None if largest < 0 else largest)


@cache
def _version() -> str:
    """Digest of what decodes: another version may give other pixels."""
    code = [Path(module).read_bytes() for module in (__file__, str(depth.__file__))]
    heif = find_spec("pillow_heif") and version("pillow-heif")
    versions = (PIL.__version__, cv2.__version__, np.__version__, heif)
    return hashlib.sha256(b"".join([*code, repr(versions).encode()])).hexdigest()[:16]
