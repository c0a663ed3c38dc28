"""What is kept of each photograph while all are decoded once: to find copies and bursts by."""

import calendar
import hashlib
import io
import time
from typing import NamedTuple

import cv2
import imagehash
import numpy as np
from PIL import Image

from opam.photographs.decoding.images import NotAPhotograph, decoded, photograph_file
from opam.pipeline.errors import OpamError

SMALL = 32
"""Side of the picture by which copies are confirmed, pixels."""
PICTURE = 160
"""Side of the picture that is hashed, and by which bursts are found, pixels."""
QUALITY = 95
"""Of its JPEG: a tenth of its pixels' memory, for the whole set is held at once."""

WITH_EXIF = ("JPEG", "PNG", "TIFF", "WEBP")
"""Formats, by Pillow's names, that are asked for the time of taking."""
MAKE, MODEL, EXIF, DATE, FRACTION = 0x010F, 0x0110, 0x8769, 0x9003, 0x9291


class Descriptor(NamedTuple):
    """One photograph.

    Attributes:
        width, height: upright, pixels, as it is looked at; 0 where it cannot be decoded.
        full_width, full_height: as the file has it.
        sha256: digest of the file, hexadecimal.
        problem: why it cannot; empty where all is well.
        is_photograph: false where the content is of no image format.
        largest: the largest of its samples of 16 bits; not a number where it has none.
        pixels: digest of the decoded photograph.
        hash, mirrored_hash: perceptual, 64 bits, of the photograph and of its mirror image.
        small: uint8 `SMALL` x `SMALL` x 3, RGB.
        picture: `PICTURE` x `PICTURE` pixels, a JPEG file.
        taken: when, seconds by the camera's own clock; not a number where it does not say.
        camera: make and model.
    """

    width: int = 0
    height: int = 0
    full_width: int = 0
    full_height: int = 0
    sha256: str = ""
    problem: str = ""
    is_photograph: bool = True
    largest: float = float("nan")
    pixels: bytes = b""
    hash: int = 0
    mirrored_hash: int = 0
    small: np.ndarray = np.zeros((SMALL, SMALL, 3), dtype=np.uint8)
    picture: bytes = b""
    taken: float = float("nan")
    camera: str = ""


def describe(path: str, side: int, gigabytes: float) -> Descriptor:
    """Decode a photograph and say what is to be kept of it; never fails.

    The arguments are those of `opam.photographs.decoding.images.decoded`.
    """
    try:
        content = photograph_file(path)
        sha256 = hashlib.sha256(content).hexdigest()
        image, full_width, full_height, largest = decoded(path, side, gigabytes, sha256)
    except OpamError as error:
        return Descriptor(problem=str(error), is_photograph=not isinstance(error, NotAPhotograph))
    height, width = image.shape[:2]
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    picture = cv2.resize(image, (PICTURE, PICTURE), interpolation=cv2.INTER_AREA)
    _, written = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return Descriptor(
        width,
        height,
        *(full_width, full_height, sha256),
        "",
        True,
        float("nan") if largest is None else float(largest),
        digest.digest(),
        _hash(picture),
        _hash(picture[:, ::-1]),
        cv2.resize(picture, (SMALL, SMALL), interpolation=cv2.INTER_AREA),
        written.tobytes(),
        *taken_by(content),
    )


def opened(picture: bytes) -> np.ndarray:
    """The pixels of a `Descriptor`'s picture, uint8 H x W x 3, RGB."""
    pixels = cv2.imdecode(np.frombuffer(picture, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None  # `describe` wrote it
    return pixels[..., ::-1]


def taken_by(content: bytes) -> tuple[float, str]:
    """When and by which camera a photograph was taken, as in `Descriptor`, by its EXIF."""
    try:
        with Image.open(io.BytesIO(content), formats=WITH_EXIF) as image:
            exif = image.getexif()
            details = exif.get_ifd(EXIF)
            # The date has no time zone: what counts is how far two are apart.
            date = time.strptime(_text(details.get(DATE)), "%Y:%m:%d %H:%M:%S")
            fraction = _text(details.get(FRACTION))
            seconds = calendar.timegm(date) + (float(f"0.{fraction}") if fraction.isdigit() else 0)
            return float(seconds), f"{_text(exif.get(MAKE))} {_text(exif.get(MODEL))}".strip()
    except Exception:  # damaged EXIF raises many types; then the photograph does not say
        return float("nan"), ""


def _text(value: object) -> str:
    return str(value or "").strip(" \0")


def _hash(picture: np.ndarray) -> int:
    return int(str(imagehash.phash(Image.fromarray(np.ascontiguousarray(picture)))), 16)
