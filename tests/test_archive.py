"""The data set as one file."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from opam.photographs.decoding.archive import names, open_archive, pack, read_file
from opam.photographs.decoding.images import ignored
from opam.pipeline.errors import OpamError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a/é 1.txt", "a/deep/c.txt"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name * 1000, encoding="utf-8")
    (tmp_path / "set/empty").mkdir()
    return tmp_path / "set"


def test_every_file_comes_back(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "raw.zip"
    pack(folder, archive)
    for name in ("b.txt", "a/é 1.txt", "a/deep/c.txt"):
        assert read_file(f"{archive}/{name}").decode() == name * 1000
        assert read_file(folder / name).decode() == name * 1000
    found = ["a/deep/c.txt", "a/é 1.txt", "b.txt", "empty"]
    assert [str(name) for name in names(open_archive(archive))] == found
    inner = open_archive(archive) / "a"
    assert names(inner) == [PurePosixPath("deep/c.txt"), PurePosixPath("é 1.txt")]


def test_times_and_modes_of_files_change_nothing(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "first.zip")
    os.utime(folder / "b.txt", (1, 1))
    (folder / "b.txt").chmod(0o600)
    pack(folder, tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


SIDE_BY_SIDE = """
import sys
from multiprocessing import get_context
from opam.photographs.decoding.archive import read_file

paths = sys.argv[1:] * 200
expected = [read_file(path) for path in paths]
with get_context("fork").Pool(4) as pool:
    assert pool.map(read_file, paths, chunksize=1) == expected
"""


def test_processes_read_side_by_side(folder: Path, tmp_path: Path) -> None:
    """Forked from one that has it open; not from this one, which may hold what cannot be forked."""
    archive = tmp_path / "raw.zip"
    pack(folder, archive)
    paths = [f"{archive}/{name}" for name in ("b.txt", "a/é 1.txt", "a/deep/c.txt")]
    subprocess.run([sys.executable, "-c", SIDE_BY_SIDE, *paths], check=True, timeout=120)


def test_an_archive_written_anew_is_read_anew(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "raw.zip"
    pack(folder, archive)
    read_file(f"{archive}/b.txt")
    (folder / "b.txt").write_text("other")
    pack(folder, archive)
    assert read_file(f"{archive}/b.txt") == b"other"


def test_links_inside_are_followed_and_links_out_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "link.txt").symlink_to(folder / "b.txt")
    pack(folder, tmp_path / "raw.zip")
    assert read_file(tmp_path / "raw.zip/link.txt") == (folder / "b.txt").read_bytes()
    (tmp_path / "secret").write_text("secret")
    (folder / "a" / "up.txt").symlink_to("../b.txt")
    pack(folder, tmp_path / "raw.zip")
    assert read_file(tmp_path / "raw.zip/a/up.txt") == (folder / "b.txt").read_bytes()

    (folder / "out.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(OpamError, match=r"out\.txt: links out of"):
        pack(folder, tmp_path / "raw.zip")
    assert read_file(tmp_path / "raw.zip/link.txt")


@pytest.mark.parametrize("kind", ["folder link", "loop", "dangling", "pipe"])
def test_what_cannot_be_packed_is_named(folder: Path, tmp_path: Path, kind: str) -> None:
    odd = folder / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to({"folder link": folder / "a", "loop": odd, "dangling": folder / "no"}[kind])
    with pytest.raises(OpamError, match="odd: "):
        pack(folder, tmp_path / "raw.zip")
    assert not (tmp_path / "raw.zip").exists()


def test_a_folder_of_hidden_files_alone_is_an_empty_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "wren").mkdir()
    (folder / "wren/.DS_Store").write_bytes(b"x")
    (folder / ".hidden/deep").mkdir(parents=True)
    (folder / ".hidden/deep/a").write_bytes(b"x")
    left_out = pack(folder, tmp_path / "a.zip", ignored)
    assert left_out == [".hidden/deep/a", "wren/.DS_Store"]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names_in = archive.namelist()
    assert "wren/" in names_in
    assert not any(name.startswith(".") for name in names_in)


def test_names_that_are_not_text_are_refused(folder: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("")
    with pytest.raises(OpamError, match="not UTF-8"):
        pack(folder, tmp_path / "raw.zip")


def test_damaged_archives_are_told(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "raw.zip"
    with pytest.raises(OpamError, match="not found"):
        open_archive(archive)
    archive.write_bytes(b"no zip")
    with pytest.raises(OpamError, match=r"damaged.*fetch_data"):
        open_archive(archive)
    pack(folder, archive)
    with pytest.raises(FileNotFoundError):
        read_file(archive / "none.txt")
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"b.txtb.txt", b"B.txtb.txt"))
    with pytest.raises(OpamError, match=r"b\.txt: damaged"):
        read_file(archive / "b.txt")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "raw.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as to:
        to.writestr("bomb.txt", b"0" * 10_000_000)
    with pytest.raises(OpamError, match="compressed"):
        read_file(archive / "bomb.txt")
