"""Decoding: every kind of file becomes an upright RGB array, or a clear error."""

import io
import struct
import subprocess
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image, ImageOps

from opam.photographs.decoding import images
from opam.photographs.decoding.images import (
    MAX_PIXELS,
    SIGNATURES,
    NotAPhotograph,
    decode_image,
    decode_photograph,
    ignored,
    read_image,
    read_photograph,
)
from opam.pipeline.errors import OpamError

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


FORMATS = [*SIGNATURES, "AVIF"]
SMOOTH = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize(
        (40, 30)
    )
)


def saved(kind: str, picture: np.ndarray | Image.Image = SMOOTH, **options: object) -> bytes:
    stream = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["a", "a.jfif", "a.txt", "A.JPG"])
def test_content_decides_and_not_the_ending(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(saved(kind))
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("kind", "picture"),
    [
        ("JPEG", Image.fromarray(SMOOTH)),
        ("PNG", Image.fromarray(SMOOTH)),
        ("PNG", Image.fromarray(SMOOTH).convert("P")),
        ("JPEG", Image.fromarray(SMOOTH).convert("CMYK")),
        ("TIFF", Image.fromarray(SMOOTH).convert("CMYK")),
        ("TIFF", Image.fromarray(SMOOTH).convert("YCbCr")),
        ("PNG", Image.fromarray(SMOOTH[..., 0].astype(np.uint16) * 250)),
        ("TIFF", Image.fromarray(SMOOTH[..., 0].astype(np.uint16) * 250)),
        ("TIFF", Image.fromarray(SMOOTH[..., 0].astype(np.float32))),
        ("PPM", Image.fromarray(SMOOTH[..., 0].astype(np.uint16) * 250)),
        ("JPEG2000", Image.fromarray(SMOOTH[..., 0].astype(np.uint16) * 250)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_what_was_read_right_has_the_same_pixels(
    kind: str, picture: Image.Image, orientation: int
) -> None:
    """Literally what was done before the formats were told by content."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(kind, picture, **({} if kind in ("PPM", "JPEG2000") else {"exif": exif}))
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        before = ImageOps.exif_transpose(image)
        if before.mode.startswith("I") or before.mode == "F":
            values = np.asarray(before, dtype=np.float64)
            if before.mode != "F":
                values = values / 257.0
            grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
            before = Image.fromarray(grey)
        before = before.convert("RGB")
    np.testing.assert_array_equal(decode_image(content, "a"), np.asarray(before))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG", "AVIF", "MPO"])
def test_the_first_picture_of_several_counts(kind: str) -> None:
    others = [Image.fromarray(255 - SMOOTH)] * 3
    image = decode_image(saved(kind, save_all=True, append_images=others), "a")
    assert np.abs(image.astype(int) - SMOOTH).mean() < 20


@pytest.mark.parametrize("kind", FORMATS)
def test_too_many_pixels_are_refused_before_they_unpack(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(kind)
    with Image.open(io.BytesIO(content)) as opened:
        monkeypatch.setattr(type(opened), "load", lambda _image: pytest.fail("unpacked"))
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 30 - 1)
    with pytest.raises(OpamError, match="a: 1200 pixels, more than 1199; scale it down"):
        decode_image(content, "a")


def test_a_postscript_file_starts_no_program(tmp_path: Path) -> None:
    """Pillow gives it to Ghostscript; here one that would leave a mark stands on the path."""
    mark, photograph = tmp_path / "started", tmp_path / "a.jpg"
    photograph.write_bytes(saved("EPS"))
    for name in ("gs", "gswin64c", "gswin32c"):
        (tmp_path / name).write_text(f"#!/bin/sh\n: > {mark}\n")
        (tmp_path / name).chmod(0o755)
    code = (
        f"from opam.photographs.decoding.images import read_image; read_image({str(photograph)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "a.jpg: cannot be decoded (of no known image format); replace" in done.stderr
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"notes",
        b"BMW and other cars, a list of them for the road",
        b"P1 is the first of the plots that we have",
        b"GIFs are animated",
        b"RIFF\x00\x00\x00\x00WAVEfmt and so on",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.7\n",
        b"<!DOCTYPE html><html>404</html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00isommp42" + bytes(40),
        b"\x00\x00\x01\x00\x01\x00\x10\x10" + bytes(40),
        saved("TGA"),
        saved("PCX"),
    ],
)
def test_what_is_of_no_format_on_the_list_is_no_photograph(content: bytes) -> None:
    with pytest.raises(NotAPhotograph, match=r"^a: cannot be decoded .*; replace") as told:
        decode_image(content, "a")
    assert told.value.reason == ("of no known image format" if content else "empty")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_photograph_is_still_one(kind: str) -> None:
    content = saved(kind)
    with pytest.raises(OpamError, match="a: cannot be decoded") as told:
        decode_image(content[: len(content) // 3], "a")
    assert not isinstance(told.value, NotAPhotograph)


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\x01\x04\x00\x00"}])
def test_a_cameras_raw_file_is_not_read_for_its_preview(tags: dict[int, object]) -> None:
    for content in (saved("TIFF", tiffinfo=tags), b"II*\0\x10\0\0\0CR\2\0" + bytes(40)):
        with pytest.raises(NotAPhotograph, match="raw of a camera"):
            decode_image(content, "a")
    assert decode_image(saved("TIFF", tiffinfo={254: 0}), "a").shape == SMOOTH.shape


HEIC = b"\x00\x00\x00\x1cftyp%s\x00\x00\x00\x00mif1heicmiaf" + bytes(40)


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix", b"msf1"])
def test_heic_names_the_extra(monkeypatch: pytest.MonkeyPatch, brand: bytes) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(OpamError, match=r"^a: is HEIC; `pip install 'opam\[heic\]'`") as told:
        decode_image(HEIC % brand, "a")
    assert not isinstance(told.value, NotAPhotograph)


def test_heic_is_read_by_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = types.ModuleType("pillow_heif")
    opened = Image.fromarray(SMOOTH)
    stand_in.register_heif_opener = (
        lambda: Image.register_open(  # type: ignore[attr-defined]
            "HEIF", lambda _file, _name: opened, lambda head: head[4:8] == b"ftyp"
        )
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    np.testing.assert_array_equal(decode_image(HEIC % b"heic", "a"), SMOOTH)


@pytest.mark.parametrize(
    ("path", "is_ignored"),
    [
        ("wren/1.jpg", False),
        ("wren/1", False),
        ("wren/._1.jpg", True),
        (".git/config", True),
        (".ipynb_checkpoints/1-checkpoint.jpg", True),
        ("wren/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", True),
        ("__MACOSX/wren/1.jpg", True),
        ("wren/Thumbs.db", True),
        ("wren/thumbs.db", True),
        ("wren/desktop.ini", True),
        ("wren/.DS_Store", True),
        ("lost+found/1.jpg", True),
        ("$RECYCLE.BIN/1.jpg", True),
        ("thumbs/1.jpg", False),
    ],
)
def test_what_systems_leave_is_ignored(path: str, is_ignored: bool) -> None:
    assert ignored(PurePath(path)) == is_ignored


def tiff(values: np.ndarray, white_is_zero: bool = False, **tags: float) -> bytes:
    numbers = {"least": 340, "largest": 341, "unsigned_largest": 281}
    content = saved("TIFF", values, tiffinfo={numbers[name]: tags[name] for name in tags})
    if not white_is_zero:
        return content
    entry = struct.pack("<HHIH", 262, 3, 1, 1)
    assert entry in content
    return content.replace(entry, struct.pack("<HHIH", 262, 3, 1, 0))


def signed(content: bytes) -> bytes:
    """With SampleFormat in the place of a tag that a grey image can lack."""
    entry = struct.pack("<HHIH", 284, 3, 1, 1)
    assert entry in content
    return content.replace(entry, struct.pack("<HHIH", 339, 3, 1, 2))


RAMP = np.linspace(0, 1, 256).reshape(16, 16)
STEPS = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize(
    "content",
    [
        tiff(RAMP.astype(np.float32)),
        tiff((RAMP * 2 - 1).astype(np.float32), least=-1.0, largest=1.0),
        tiff((RAMP * 7).astype(np.float32), largest=7.0),
        tiff(STEPS.astype(np.float32)),
        tiff((RAMP * 65535).astype(np.float32)),
        tiff(STEPS.astype(np.int32)),
        tiff(STEPS.astype(np.int32) * 257),
        tiff(STEPS.astype(np.int32) * 4000, largest=4000 * 255),
        tiff(STEPS.astype(np.uint16) * 257),
        signed(tiff(np.rint(RAMP * 32767).astype(np.uint16))),
        tiff(np.rint(RAMP * 4095).astype(np.uint16), unsigned_largest=4095),
        tiff(np.rint(RAMP * 4095).astype(np.uint16), unsigned_largest=4001),
        tiff(STEPS[::-1, ::-1].astype(np.uint16) * 257, white_is_zero=True),
        tiff(RAMP[::-1, ::-1].astype(np.float32), white_is_zero=True),
        b"P5 16 16 4095\n" + np.rint(RAMP * 4095).astype(">u2").tobytes(),
        b"Pf 16 16\n-1.0\n" + RAMP[::-1].astype("<f4").tobytes(),
    ],
)
def test_samples_are_scaled_by_the_range_that_the_file_states_or_shows(content: bytes) -> None:
    grey = decode_image(content, "a")[..., 0].astype(int)
    assert np.abs(grey - STEPS).max() <= 1
    assert (grey.min(), grey.max()) == (0, 255)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RAMP - 0.5, "floats from -0.5 to 0.5"),
        (RAMP * 3, "floats from 0 to 3"),
        (RAMP * 1e6, r"floats from 0 to 1e\+06"),
        (np.where(RAMP > 0.5, np.nan, RAMP), "no numbers"),
        (np.where(RAMP > 0.5, np.inf, RAMP), "no numbers"),
        (STEPS - 5, "integers from -5 to 250"),
        (STEPS * 1000, "integers from 0 to 255000"),
    ],
)
def test_samples_of_unknown_range_are_refused(values: np.ndarray, words: str) -> None:
    content = tiff(values.astype(np.int32 if values.dtype.kind == "i" else np.float32))
    with pytest.raises(OpamError, match=rf"^a: .*{words}.*; (save|replace)") as told:
        decode_image(content, "a")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "largest"),
    [
        (tiff((STEPS * 16).astype(np.uint16)), 4080),
        (tiff((STEPS * 16).astype(np.uint16), unsigned_largest=4095), None),
        (saved("PNG", (STEPS * 16).astype(np.uint16)), 4080),
        (tiff(STEPS.astype(np.int32) * 16), 4080),
        (tiff(RAMP.astype(np.float32)), None),
        (saved("PNG"), None),
        (saved("JPEG"), None),
    ],
)
def test_the_largest_of_sixteen_bits_is_told(
    tmp_path: Path, content: bytes, largest: int | None
) -> None:
    (tmp_path / "a").write_bytes(content)
    assert read_photograph(tmp_path / "a").largest == largest


@pytest.mark.parametrize(("bits", "scale"), [(16, 257), (12, 16)])
@pytest.mark.parametrize("bands", ["RGB", "RGBA"])
def test_the_largest_of_colours_of_sixteen_bits(bits: int, scale: int, bands: str) -> None:
    """Pillow writes none; a PNG by hand."""
    values = np.stack([STEPS * scale] * len(bands), axis=-1).astype(">u2")
    values[..., 3:] = 65535
    lines = b"".join(b"\0" + line.tobytes() for line in values)
    kind = {"RGB": 2, "RGBA": 6}[bands]
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 16, 16, 16, kind, 0, 0, 0)
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    image, *_, largest = decode_photograph(content, "a")
    assert largest is not None
    assert 2**bits - 256 <= largest < 2**bits
    assert abs(int(image.max()) - (255 * scale >> 8)) <= 1


def test_lab_becomes_rgb() -> None:
    lab = Image.merge("LAB", [Image.new("L", (8, 8), level) for level in (136, 208, 195)])
    red, green, blue = decode_image(saved("TIFF", lab), "a").reshape(-1, 3).mean(0)
    assert red > 200
    assert max(green, blue) < 60


def test_colours_of_sixteen_bits_in_planes_are_refused() -> None:
    """Pillow reads them as 8 bits. By hand: it writes neither."""
    entries = [
        (256, 3, 1, 8),
        (257, 3, 1, 6),
        (258, 3, 3, 200),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 3, 206),
        (277, 3, 1, 3),
        (278, 3, 1, 6),
        (279, 4, 3, 218),
        (284, 3, 1, 2),
    ]
    content = b"II*\0" + struct.pack("<IH", 8, len(entries))
    content += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    content = content.ljust(200, b"\0")
    content += struct.pack("<3H3I3I", 16, 16, 16, 230, 326, 422, 96, 96, 96) + bytes(288)
    with pytest.raises(OpamError, match="16-bit colours in uncompressed planes"):
        decode_image(content, "a")
