"""Kept by content: what is made of a photograph is made once a machine, and is its own."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile
from small_project import Undisturbed, call, digests, script

from opam.photographs.decoding import images
from opam.photographs.decoding.images import (
    Photograph,
    Photographs,
    decode_image,
    decoded,
    read_photograph,
)
from opam.pipeline import kept
from opam.pipeline.artifacts import read_table
from opam.pipeline.errors import OpamError
from opam.pipeline.kept import folder

SIDE = 64


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and a process that knows of nothing in it."""
    monkeypatch.setenv("OPAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "_space", kept._Space())
    monkeypatch.setattr(kept, "_sound", set())
    kept._tell.cache_clear()


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was decoded, in order."""
    named: list[str] = []

    def counted(content: bytes, name: str, side: int | None = None) -> Photograph:
        named.append(Path(name).name)
        return real(content, name, side)

    real = images.decode_photograph
    monkeypatch.setattr(images, "decode_photograph", counted)
    return named


def draw(path: Path, width: int = 80, height: int = 60, seed: int = 0, **how: object) -> str:
    """Write a photograph; its digest."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 30, width // 30, 3), np.uint8)
    Image.fromarray(noise).resize((width, height)).save(path, **how)  # type: ignore[arg-type]
    return sha256(path.read_bytes()).hexdigest()


def manifest(folder: Path, count: int = 3) -> pd.DataFrame:
    rows = []
    for number in range(count):
        path = folder / f"{number}.png"
        rows.append((str(path), draw(path, seed=number), 64, 48))
    return pd.DataFrame(rows, columns=["path", "sha256", "width", "height"])


def test_it_is_decoded_once_and_gives_the_same_pixels(tmp_path: Path, decodes: list[str]) -> None:
    table = manifest(tmp_path)
    fresh = {path: read_photograph(path, SIDE).pixels for path in table["path"]}
    decodes.clear()
    for _ in range(3):
        read = Photographs(table, 1.0)
        for path in table["path"]:
            np.testing.assert_array_equal(read(path), fresh[path])
    assert decodes == ["0.png", "1.png", "2.png"]


def test_it_is_kept_by_content_not_by_name(tmp_path: Path, decodes: list[str]) -> None:
    first = draw(tmp_path / "a.png", seed=1)
    before = decoded(str(tmp_path / "a.png"), SIDE, 1.0, first).pixels.copy()
    second = draw(tmp_path / "a.png", seed=2)
    after = decoded(str(tmp_path / "a.png"), SIDE, 1.0, second).pixels
    assert (before != after).any()
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    np.testing.assert_array_equal(decoded(str(tmp_path / "b.png"), SIDE, 1.0, second).pixels, after)
    assert decodes == ["a.png", "a.png"]


def test_another_file_is_not_kept_in_the_place_of_a_photograph(tmp_path: Path) -> None:
    digest = draw(tmp_path / "a.png", seed=1)
    draw(tmp_path / "a.png", seed=2)
    with pytest.raises(OpamError, match=r"a\.png: is not the photograph that prepare saw"):
        decoded(str(tmp_path / "a.png"), SIDE, 1.0, digest)
    expected = read_photograph(tmp_path / "a.png", SIDE).pixels
    draw(tmp_path / "a.png", seed=1)
    assert (decoded(str(tmp_path / "a.png"), SIDE, 1.0, digest).pixels != expected).any()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def overwrite(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a header alone": lambda path: os.truncate(path, kept.HEADER.itemsize),
    "a bit flipped": flip,
    "another size in its header": lambda path: overwrite(path, 8),
    "no rows": lambda path: path.write_bytes(bytes(kept.HEADER.itemsize)),
    "of another": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("harm", list(DAMAGE))
def test_a_damaged_copy_is_made_anew(harm: str, tmp_path: Path, decodes: list[str]) -> None:
    path = tmp_path / "a.png"
    digest = draw(path)
    expected = decoded(str(path), SIDE, 1.0, digest).pixels.copy()
    [copy] = [each for each in folder().rglob(digest) if each.is_file()]
    DAMAGE[harm](copy)
    kept._sound.clear()  # as another process
    for _ in range(2):
        np.testing.assert_array_equal(decoded(str(path), SIDE, 1.0, digest).pixels, expected)
    assert len(decodes) == (3 if harm == "a folder" else 2)


def test_what_is_kept_of_another_side_is_not_taken(tmp_path: Path, decodes: list[str]) -> None:
    digest = draw(tmp_path / "a.png")
    for side, size in ((64, (48, 64)), (32, (24, 32)), (500, (60, 80)), (80, (60, 80))):
        found = decoded(str(tmp_path / "a.png"), side, 1.0, digest)
        assert found.pixels.shape[:2] == size
        assert (found.width, found.height) == (80, 60)
    assert len(decodes) == 3  # whole is whole


def test_disk_space_is_bounded_and_the_longest_unused_goes(
    tmp_path: Path, decodes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = manifest(tmp_path, 8)
    size = kept.HEADER.itemsize + 64 * 48 * 3
    gigabytes = 4.5 * size / 1e9
    read = Photographs(table, gigabytes)
    for _ in range(2):
        for path in table["path"]:
            read(path)
    used = [each.stat().st_size for each in folder().rglob("*") if each.suffix != ".lock"]
    assert sum(each for each in used if each >= size) == 4 * size
    assert decodes == [f"{n}.png" for n in [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]]
    assert capsys.readouterr().err.count("execution.decoded_gigabytes") == 1

    for age, path in enumerate(sorted(folder().rglob("*"), key=str)):
        if path.is_file():
            os.utime(path, (1000 + age, 1000 + age))
    kept._space, decodes[:] = kept._Space(), []
    kept._sound.clear()
    used_again = Photographs(table[:2], gigabytes)
    for path in table["path"][:2]:
        used_again(path)
    assert decodes == []
    last = Photographs(table, gigabytes)
    last(table["path"][7])  # an old one goes for it, not what was used just now
    for path in table["path"][[0, 1, 7]]:
        last(path)
    assert decodes == ["7.png"]


def test_as_much_of_the_disk_stays_free_as_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = manifest(tmp_path, 12)
    size = kept.HEADER.itemsize + 64 * 48 * 3

    def usage(_path: object) -> SimpleNamespace:
        taken = sum(each.stat().st_size for each in folder().rglob("*") if each.is_file())
        return SimpleNamespace(free=8 * size - taken)

    monkeypatch.setattr("shutil.disk_usage", usage)
    for _ in range(3):  # as several processes, one after the other
        monkeypatch.setattr(kept, "_space", kept._Space())
        read = Photographs(table, 1.0)
        for path in table["path"]:
            read(path)
    copies = [each for each in folder().rglob("*") if each.is_file() and each.suffix != ".lock"]
    assert len(copies) == 4


def test_nothing_is_kept_where_nothing_may(tmp_path: Path, decodes: list[str]) -> None:
    digest = draw(tmp_path / "a.png")
    for _ in range(2):
        decoded(str(tmp_path / "a.png"), SIDE, 0, digest)
    assert len(decodes) == 2
    assert not folder().exists()


def test_a_folder_that_cannot_be_written_is_told_and_harms_nothing(
    tmp_path: Path,
    decodes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OPAM_CACHE", str(tmp_path / "file"))
    digest = draw(tmp_path / "a.png")
    for _ in range(2):
        assert decoded(str(tmp_path / "a.png"), SIDE, 1.0, digest).pixels.shape == (48, 64, 3)
    assert capsys.readouterr().err.count("set OPAM_CACHE to another folder") == 1


def test_a_folder_that_others_fill_is_read(
    tmp_path: Path, decodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError

    digest = draw(tmp_path / "a.png")
    decoded(str(tmp_path / "a.png"), SIDE, 1.0, digest)
    monkeypatch.setattr(kept, "_sound", set())
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    decoded(str(tmp_path / "a.png"), SIDE, 1.0, digest)
    assert len(decodes) == 1


def test_what_cannot_be_decoded_is_told_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    for _ in range(2):
        with pytest.raises(OpamError, match=r"a\.png: cannot be decoded"):
            decoded(str(path), SIDE, 1.0, sha256(path.read_bytes()).hexdigest())


def read_all(folder: str, cache: str, log: str) -> None:
    """A process: every photograph, each decoding told in a file of its own."""
    os.environ["OPAM_CACHE"] = cache
    real = images.decode_photograph

    def counted(content: bytes, name: str, side: int | None = None) -> Photograph:
        (Path(log) / f"{Path(name).name} {os.getpid()}").touch()
        return real(content, name, side)

    table = pd.read_csv(Path(folder) / "table.csv")
    expected = [decode_image(Path(path).read_bytes(), path) for path in table["path"]]
    images.decode_photograph = counted
    read = Photographs(table, 1.0)
    with ThreadPoolExecutor(4) as pool:
        for fresh, found in zip(expected, pool.map(read, table["path"]), strict=True):
            assert (found == fresh).all()


def test_several_processes_decode_each_photograph_once(tmp_path: Path) -> None:
    table = manifest(tmp_path, 12).assign(width=80, height=60)
    table.to_csv(tmp_path / "table.csv", index=False)
    log = tmp_path / "log"
    log.mkdir()
    arguments = str(tmp_path), str(tmp_path / "cache"), str(log)
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=read_all, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(each.name.split()[0] for each in log.iterdir()) == sorted(
        Path(path).name for path in table["path"]
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_large_photograph_is_scaled_down(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    draw(path, 403, 302, format=kind, exif=exif)
    whole, half = read_photograph(path), read_photograph(path, 101)
    upright = (302, 403) if orientation > 4 else (403, 302)
    assert (whole.width, whole.height) == (half.width, half.height) == upright
    assert whole.pixels.shape[1::-1] == upright
    assert max(half.pixels.shape) == 101
    expected = images.resized(whole.pixels, half.pixels.shape[1::-1])
    assert np.abs(half.pixels.astype(int) - expected).mean() < 2  # JPEG's own halving rounds


def test_of_a_large_jpeg_less_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.jpg", 1600, 1200)
    loaded: list[tuple[int, int]] = []
    real = ImageFile.ImageFile.load

    def load(image: ImageFile.ImageFile) -> object:
        loaded.append(image.size)
        return real(image)

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    read_photograph(tmp_path / "a.jpg", 300)
    assert loaded[0] == (400, 300)


def test_of_many_what_is_missing_is_made_in_order() -> None:
    asked: list[list[int]] = []

    def make(places: list[int]) -> list[np.ndarray]:
        asked.append(places)
        return [np.full((place + 1, 1, 4), place, np.int32) for place in places]

    def found(digests: list[str]) -> list[list[list[int]]]:
        return [each.tolist() for each in kept.of_each("v", digests, make, np.int32, 1.0)]

    digests = [f"{number:064x}" for number in range(5)]
    every = [np.full((place + 1, 1, 4), place).tolist() for place in range(5)]
    assert found(digests) == every
    assert found(digests) == every
    assert asked == [[0, 1, 2, 3, 4]]
    for number in (1, 3):
        [path] = folder().rglob(digests[number])
        path.unlink()
    assert found(digests) == every
    assert asked[1:] == [[1, 3]]
    # One that goes while the others are looked at is made by itself.
    going = kept.of_each("v", digests, make, np.int32, 1.0)
    assert next(going).tolist() == every[0]
    [path] = folder().rglob(digests[2])
    path.unlink()
    assert [each.tolist() for each in going] == every[1:]
    assert asked[2:] == [[2]]


SEARCHED = """

_propose = propose


def propose(image: np.ndarray, params: ProposalParams) -> np.ndarray:
    with open("searched.txt", "a") as file:
        file.write(f"{image.shape}\\n")
    return _propose(image, params)
"""


@pytest.mark.slow
def test_a_photograph_is_searched_once_a_machine(undisturbed: Undisturbed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed.untouched, run)
    with (run / "src/opam/method/proposals.py").open("a") as file:
        file.write(SEARCHED)
    count = len(read_table(run / "data/manifest.parquet", "manifest"))
    for more in (count, 0, 2):
        if more == 2:
            for path in sorted(folder().glob("proposals-*/*/*"))[:2]:
                path.unlink()
        (run / "searched.txt").write_text("")
        done = call(run, *script("propose_patches"))
        assert done.returncode == 0, done.stderr
        assert len((run / "searched.txt").read_text().splitlines()) == more
        assert digests(run) == undisturbed.digests
