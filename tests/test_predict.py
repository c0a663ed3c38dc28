"""Which files `opam predict` takes for photographs, and what it says of the others."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opam.app.classifier import Classification
from opam.app.predict import find_photographs, overlay, summary
from opam.photographs.decoding.images import NotAPhotograph, ignored, read_image
from opam.pipeline.errors import OpamError


def photograph(path: Path, kind: str = "JPEG", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), "teal").save(path, kind, **options)
    return path


def test_photographs_of_a_folder_are_told_by_content(tmp_path: Path) -> None:
    good = [
        photograph(tmp_path / "a.jpg"),
        photograph(tmp_path / "b.jfif"),
        photograph(tmp_path / "c", "PNG"),
        photograph(tmp_path / "d.avif", "AVIF"),
        photograph(tmp_path / "e.gif", "GIF"),
        photograph(tmp_path / "f.jp2", "JPEG2000"),
        photograph(tmp_path / "g.ppm", "PPM"),
        photograph(tmp_path / "h.txt"),
        photograph(tmp_path / "sub/deep/i.JPG"),
        photograph(tmp_path / "sub.images/j.tif", "TIFF"),
    ]
    for name in ("._a.jpg", ".cache/a.jpg", "@eaDir/a.jpg", "__MACOSX/sub/a.jpg", "Thumbs.db"):
        photograph(tmp_path / name)
    photograph(tmp_path / ".ipynb_checkpoints/a-checkpoint.jpg")
    photograph(tmp_path / "raw.nef", "TIFF", tiffinfo={254: 1})
    photograph(tmp_path / "drawing.jpg", "EPS")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "none.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    os.mkfifo(tmp_path / "pipe")

    found, left_out = find_photographs([tmp_path])
    assert found == sorted(good)
    assert left_out == Counter(
        {
            "hidden or of the system": 6,
            "of no known image format": 2,
            "no regular file": 2,
            "raw of a camera, with a preview": 1,
            "empty": 1,
            "links to folders": 1,
        }
    )
    assert summary(left_out).startswith("6 hidden or of the system, 2 ")


def test_prediction_leaves_out_what_training_does(tmp_path: Path) -> None:
    """A file below the folder is found where it is not ignored and can be read."""
    photograph(tmp_path / "a.jpg")
    photograph(tmp_path / ".b/c.jpg")
    photograph(tmp_path / "d.nef", "TIFF", tiffinfo={254: 1})
    photograph(tmp_path / "e.jpg", "EPS")
    (tmp_path / "damaged.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:100])
    expected = []
    for path in sorted(each for each in tmp_path.rglob("*") if each.is_file()):
        if ignored(path.relative_to(tmp_path)):
            continue
        try:
            read_image(path)
        except NotAPhotograph:
            continue
        except OpamError:
            pass  # damaged: told, not left out
        expected.append(path)
    assert [each.name for each in expected] == ["a.jpg", "damaged.jpg"]
    assert find_photographs([tmp_path])[0] == expected


def test_a_file_that_is_named_is_tried_and_hidden_folders_may_be_named(tmp_path: Path) -> None:
    notes = tmp_path / ".notes.txt"
    notes.write_text("notes")
    inside = photograph(tmp_path / ".cache/a.jpg")
    found, left_out = find_photographs([notes, tmp_path / ".cache", inside])
    assert found == [notes, inside, inside]
    assert not left_out


def test_no_photograph_and_unreadable_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(OpamError, match=r"no photograph found$"):
        find_photographs([tmp_path])
    (tmp_path / "notes.txt").write_text("notes")
    words = "no photograph found; left out: 1 of no known image format$"
    with pytest.raises(OpamError, match=words):
        find_photographs([tmp_path])
    photograph(tmp_path / "closed/a.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        if os.access(tmp_path / "closed", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(OpamError, match="closed: cannot be read"):
            find_photographs([tmp_path])
    finally:
        (tmp_path / "closed").chmod(0o755)


@pytest.mark.usefixtures("system_fonts")
def test_an_overlay_draws_the_name_without_a_font_of_its_script() -> None:
    def drawn(name: str) -> np.ndarray:
        box, cluster = np.array([10, 60, 90, 110]), np.zeros(1, int)
        probabilities = {"fused": np.array([1.0])}
        found = Classification(0, name, probabilities, box, box[None], cluster, 1.0, "none", "none")
        return np.asarray(overlay(np.zeros((120, 400, 3), np.uint8), found))

    np.testing.assert_array_equal(drawn("Воробей"), drawn("Vorobey"))
    assert (drawn("Воробей") != drawn("Sova")).any()
