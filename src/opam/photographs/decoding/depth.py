"""Samples of more than 8 bits, or of floats, become 8 bits by the range that holds them.

The range is what the file states: the bits of a sample, or a TIFF's tags SMinSampleValue and
SMaxSampleValue (else MinSampleValue and MaxSampleValue). Where it states none, 16-bit samples
reach from 0 to 65535, signed ones to 32767; floats in 0..1 from 0 to 1; other floats and 32-bit
integers from 0 to 255 or 65535, whichever holds them. What fits none of these is refused.
"""

from typing import Any

import numpy as np
from PIL import Image

from opam.pipeline.errors import OpamError

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
LEAST, LARGEST = (340, 280), (341, 281)
"""TIFF tags; of two, the first that is there counts."""

WHITE_IS_ZERO, SIGNED = 0, 2
FULL, FULL_SIGNED = 65535.0, 32767.0

UNCLEAR = 16
"""Floats that end between 1 and here may be 0..1 with highlights, or a black 0..255."""

DEPTHS = {8: 255, 10: 1023, 12: 4095, 14: 16383}
"""Bits that cameras and microscopes put into samples of 16, and their largest value."""


def is_wide(image: Image.Image) -> bool:
    """Whether the samples are grey values of more than 8 bits, or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def eight_bits(image: Image.Image, name: str) -> tuple[Image.Image, int | None]:
    """Scale a wide image (`is_wide`) as this module says; black stays black where 0 is white.

    Args:
        image: as opened, so that the file's tags are there.
        name: what errors call it.

    Returns:
        Mode L, and its largest stored value where the range is a guess of 16 bits, else None.

    Raises:
        OpamError: not finite, or of no range that the file states or the values tell.
    """
    tags = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    unsigned = tags and _number(tags, SAMPLE_FORMAT) != SIGNED
    if image.mode == "I" and unsigned and _number(tags, BITS) == 32:
        values = values.view(np.uint32)  # Pillow takes them for signed
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise OpamError(f"{name}: holds values that are no numbers (NaN or infinite); replace them")
    stated = stated_range(image)
    signed = bool(tags) and _number(tags, SAMPLE_FORMAT) == SIGNED and _number(tags, BITS) == 16
    low, high = stated or _guessed_range(values, "I;16S" if signed else image.mode, name)
    scaled = np.clip(np.rint((values - low) / ((high - low) / 255)), 0, 255).astype(np.uint8)
    if _number(tags, PHOTOMETRIC) == WHITE_IS_ZERO:
        scaled = 255 - scaled
    guessed = stated is None and high in (FULL, FULL_SIGNED)
    return Image.fromarray(scaled), int(values.max(initial=0)) if guessed else None


def stated_range(image: Image.Image) -> tuple[float, float] | None:
    """The least and the largest value that a wide image's file may hold, where it says so.

    Of 16-bit samples the largest is taken for a number of bits: 4000 means 4095.
    """
    if image.format in ("PPM", "JPEG2000") and image.mode != "F":
        return 0.0, FULL  # Pillow has scaled them by what the file says
    tags = getattr(image, "tag_v2", {})
    low, high = (_first(tags, names) for names in (LEAST, LARGEST))
    if image.mode.startswith("I;16"):
        bits = _number(tags, BITS) or 16
        if high is not None and 0 < high <= FULL:
            return 0.0, 2.0 ** int(high).bit_length() - 1
        return (0.0, 2.0**bits - 1) if bits < 16 else None
    low = 0.0 if low is None else low
    return (low, high) if high is not None and low < high else None


def _guessed_range(values: np.ndarray, mode: str, name: str) -> tuple[float, float]:
    least, largest = (float(end(values, initial=0)) for end in (np.min, np.max))
    if mode.startswith("I;16") and least >= 0:
        return 0.0, FULL_SIGNED if mode == "I;16S" else FULL
    floats = mode == "F"
    if least >= 0 and floats and largest <= 1:
        return 0.0, 1.0
    if least >= 0 and largest <= FULL and not (floats and largest < UNCLEAR):
        return 0.0, 255.0 if largest <= 255 else FULL
    kind = "floats" if floats else "integers"
    raise OpamError(
        f"{name}: {kind} from {least:g} to {largest:g}, of a range that the file does not state; "
        "save it with 8 or 16 bits, or set its tags SMinSampleValue and SMaxSampleValue"
    )


def colour_largest(image: Image.Image, bits: int | None) -> int | None:
    """The largest value of 16-bit colours, of which Pillow keeps the upper byte; else None."""
    if bits != 16 or image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        return None
    colours = len(image.mode) - (image.mode != "RGB")
    ends: Any = image.getextrema()
    return int(max(high for _, high in ends[:colours])) * 256 + 255


def unused_depth(largest: np.ndarray) -> str | None:
    """What to tell of a set whose 16-bit photographs use 14 bits or fewer: they are dark.

    Args:
        largest: float N, the largest value of each photograph of 16 bits (`images.Photograph`);
            NaN for all others.
    """
    found = largest[np.isfinite(largest)]
    if not len(found) or found.max() > max(DEPTHS.values()):
        return None
    bits, bound = next(each for each in DEPTHS.items() if found.max() <= each[1])
    return (
        f"no value is above {bound} ({bits} bits) in it and all other photographs of 16 bits, "
        f"{len(found)} in all, so they would be dark; scale their values to 0..65535, or save "
        "them with 8 bits"
    )


def _first(tags: Any, names: tuple[int, ...]) -> float | None:
    return next(
        (each for each in (_number(tags, name) for name in names) if each is not None), None
    )


def _number(tags: Any, name: int) -> float | None:
    """A finite number of a TIFF's tags; of several (one a channel) the largest."""
    try:
        value = float(np.max(tags.get(name)))
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None
