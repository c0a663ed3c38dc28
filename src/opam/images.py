"""Photographs: every file becomes an upright RGB array, the same everywhere."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from opam.archive import read_file
from opam.errors import OpamError, cause

MAX_PIXELS = 100_000_000
"""Larger photographs are refused: a small file can unpack to fill the memory."""


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
    return np.asarray(_open_upright(path))


def _open_upright(path: Path | str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise OpamError(f"{path}: {pixels} pixels, more than {MAX_PIXELS}; scale it down")
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise OpamError(f"{path}: photograph not found; restore it or run `dvc repro`") from None
    except OpamError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise OpamError(
            f"{path}: cannot be decoded ({cause(error)}); replace the photograph"
        ) from None


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
