"""Decoding: every kind of file becomes an upright RGB array, or a clear error."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opam.errors import OpamError
from opam.images import MAX_PIXELS, read_image

# What a viewer does to the stored pixels, by EXIF orientation.
SHOWN: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photograph{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), SHOWN[orientation](stored))


def test_orientation_of_a_jpeg(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (40, 20, 3)


def test_greyscale_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.stack([grey] * 3, axis=-1))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = read_image(tmp_path / "a.jpg").reshape(-1, 3).mean(0)
    assert red > 240
    assert max(green, blue) < 15


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 100 * 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[v] * 3 for v in (0, 1, 100, 255)]


@pytest.mark.parametrize(
    ("mode", "colours", "expected"),
    [
        ("RGBA", [(9, 8, 7, 255), (0, 0, 0, 0), (0, 0, 0, 128)], [(9, 8, 7), 255, 127]),
        ("LA", [(9, 255), (0, 0), (0, 128)], [9, 255, 127]),
        ("1", [0, 1, 0], [0, 255, 0]),
    ],
)
def test_modes(tmp_path: Path, mode: str, colours: list, expected: list) -> None:
    image = Image.new(mode, (3, 1))
    for column, colour in enumerate(colours):
        image.putpixel((column, 0), colour)
    image.save(tmp_path / "a.png")
    whole = [value if isinstance(value, tuple) else (value,) * 3 for value in expected]
    assert [tuple(pixel) for pixel in read_image(tmp_path / "a.png")[0].tolist()] == whole


def test_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], [200, 100, 50]]


def test_palette_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    image.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[10, 20, 30]]


def _empty_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width", [MAX_PIXELS // 10_000 + 1, 60_000])
def test_bomb_is_refused_before_it_unpacks(tmp_path: Path, width: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_empty_png(width, 10_000))
    with pytest.raises(OpamError, match=r"bomb\.png.*pixels"):
        read_image(path)


def test_truncated_jpeg(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OpamError, match=r"cut\.jpg: cannot be decoded .*truncated"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"not a photograph"])
def test_what_is_no_photograph(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(OpamError, match=r"a\.jpg: cannot be decoded .*replace the photograph"):
        read_image(path)


def test_missing_photograph_and_folder(tmp_path: Path) -> None:
    with pytest.raises(OpamError, match=r"none\.jpg: photograph not found; restore it"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(OpamError, match="cannot be decoded"):
        read_image(tmp_path)
