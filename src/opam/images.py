"""Photographs: every file becomes an upright RGB array, the same everywhere."""

import io
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from opam.archive import read_file
from opam.errors import OpamError, cause

MAX_PIXELS = 100_000_000
"""Larger photographs are refused: a small file can unpack to fill the memory."""


PROGRAMS_OWN = {
    "@eadir",
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "lost+found",
    "__pycache__",
}
"""Files and folders, in lower case, that programs leave among photographs."""


class NotAPhotograph(OpamError):  # noqa: N818, it is no error in a folder
    """A file whose content is of no image format."""


def ignored(path: PurePath) -> bool:
    """Whether a file is hidden or a program's own, or lies in such a folder."""
    return any(part.startswith(".") or part.lower() in PROGRAMS_OWN for part in path.parts)


def read_image(path: Path | str) -> np.ndarray:
    """Decode a photograph.

    ``path`` may lie in an archive (`opam.archive`). EXIF orientation is applied; greyscale,
    CMYK and palettes become RGB; 16-bit values are scaled to 8 bits; transparency is laid over
    white.

    Returns:
        uint8 H x W x 3, RGB.

    Raises:
        OpamError: missing, truncated, not an image, or more than `MAX_PIXELS` pixels.
    """
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise OpamError(f"{path}: photograph not found; restore it or run `dvc repro`") from None
    except OpamError:
        raise
    except Exception as error:  # a folder, say, or an impossible name
        raise _undecodable(str(path), cause(error)) from None
    return decode_image(content, str(path))


def decode_image(content: bytes, name: str, formats: tuple[str, ...] | None = None) -> np.ndarray:
    """Decode the bytes of a photograph, as `read_image` does.

    Args:
        content: of the file.
        name: what errors call it.
        formats: Pillow's names of the formats that are let through; None: all.

    Returns:
        uint8 H x W x 3, RGB.

    Raises:
        NotAPhotograph: of no image format.
        OpamError: truncated, or more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise OpamError(f"{name}: {pixels} pixels, more than {MAX_PIXELS}; scale it down")
            image.load()
            return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except OpamError:
        raise
    except UnidentifiedImageError:
        raise NotAPhotograph(str(_undecodable(name, "of no known image format"))) from None
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise _undecodable(name, cause(error)) from None


def _undecodable(name: str, why: str) -> OpamError:
    return OpamError(f"{name}: cannot be decoded ({why}); replace the photograph")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image of any mode to RGB, transparency laid over white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        if image.mode != "F" or values.max(initial=0) > 255:
            values = values / 257.0
        grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
