"""`opam show --system`: where another system looked, and what it says."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor
from typer.testing import CliRunner

from opam.app import cli
from opam.pipeline.artifacts import BOX, GT_BOX, write_json, write_table
from opam.pipeline.errors import OpamError
from opam.report.panels import HEIGHT, WIDTH, Sketch
from opam.report.show import OBJECT, PATCH, TRUE_BOX, open_photograph
from opam.report.show_system import probabilities, regions, show_system

DATA = Path("data")
CLASSES = [f"species {number}" for number in range(7)]
BOXES = [(8, 6, 40, 30), (50, 10, 70, 50), (10, 40, 20, 55)]
"""Of the test photograph, best first."""
TRUE = (6, 4, 44, 34)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with two grey photographs and a trained system, ``looks``."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for split in ("train", "test"):
        path = Path(f"{split}.png")
        Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append((f"{split}/0.png", str(path), digest, 2, CLASSES[2], split, "", 80, 60, *TRUE))
    columns = ["image_id", "path", "sha256", "label", "class_name", "split", "group"]
    manifest = pd.DataFrame(rows, columns=[*columns, "width", "height", *GT_BOX])
    write_table(DATA / "manifest.parquet", "manifest", manifest)
    write_json(DATA / "classes.json", CLASSES)
    folder = DATA / "baselines/looks"
    boxes = pd.DataFrame(BOXES[::-1], columns=BOX)
    ranked = boxes.assign(image_id="test/0.png", rank=[2, 1, 0])
    write_table(folder / "regions.parquet", "regions", ranked)
    probable = [0.05, 0.1, 0.2, 0.5, 0.04, 0.01, 0.1]
    scores = pd.DataFrame([("test/0.png", "test", 2, probable)])
    scores.columns = pd.Index(["image_id", "split", "label", "probabilities"])
    write_table(folder / "scores.parquet", "scores", scores)


def outlined(picture: Image.Image, box: tuple[int, ...], colour: str) -> bool:
    """Whether the middle of each side of the box, in pixels of the photograph, has the colour."""
    scale = picture.width / 80
    x0, y0, x1, y1 = (round(value * scale) for value in box)
    places = [((x0 + x1) // 2, y0 + 2), ((x0 + x1) // 2, y1 - 3)]
    places += [(x0 + 2, (y0 + y1) // 2), (x1 - 3, (y0 + y1) // 2)]
    wanted = np.array(ImageColor.getrgb(colour))
    found = np.array([picture.getpixel(place) for place in places])
    return bool((abs(found - wanted) < 60).all())


def test_the_best_region_the_others_and_the_true_box_are_drawn(run: None) -> None:
    panel = regions(open_photograph(DATA, "test/0.png"), "looks")
    assert panel.picture.size == Sketch(np.zeros((60, 80, 3), np.uint8)).size
    assert outlined(panel.picture, BOXES[0], OBJECT)
    assert outlined(panel.picture, BOXES[1], PATCH)
    assert outlined(panel.picture, BOXES[2], PATCH)
    assert outlined(panel.picture, TRUE, TRUE_BOX)
    iou = 32 * 24 / (38 * 30)
    assert panel.caption.endswith(f"the true box, IoU {iou:.2f}; yellow: 2 others")


def test_the_most_probable_classes_are_named(run: None, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(
        "opam.report.show_system.bars",
        lambda rows, _: drawn.update(rows) or Image.new("RGB", (1, 1)),
    )
    probabilities(open_photograph(DATA, "test/0.png"), "looks")
    assert list(drawn) == ["species 3", "species 2  (true)", "species 1", "species 6", "species 0"]
    assert drawn["species 3"] == [0.5]


def test_the_command_writes_a_small_sheet(run: None, tmp_path: Path) -> None:
    arguments = ["show", "test/0.png", "--system", "looks", "--out", str(tmp_path / "a.jpg")]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.format == "JPEG"
        assert 2 * WIDTH < picture.width < 3 * WIDTH
        assert HEIGHT < picture.height < 2 * HEIGHT


def test_what_cannot_be_drawn_is_told(run: None, tmp_path: Path) -> None:
    with pytest.raises(OpamError, match=r"^seen: not among the trained systems \(looks\); `dvc re"):
        show_system(DATA, "seen", "test/0.png")
    with pytest.raises(OpamError, match=r"^train/0\.png: .*name another"):
        show_system(DATA, "looks", "train/0.png")
    with pytest.raises(OpamError, match=r"^0\.png: not in .*the closest there: t"):
        show_system(DATA, "looks", "0.png")
    with pytest.raises(OpamError, match=r"a\.gif: the drawing is a PNG or a JPEG"):
        show_system(DATA, "looks", "test/0.png", tmp_path / "a.gif")
    (DATA / "baselines/looks/scores.parquet").unlink()
    with pytest.raises(OpamError, match=r"looks/scores\.parquet: not found"):
        show_system(DATA, "looks", "test/0.png")
    assert not list(tmp_path.glob("*.jpg"))
