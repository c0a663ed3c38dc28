"""`opam show`: every step of one photograph on one sheet."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from small_project import Undisturbed
from typer.testing import CliRunner

from opam.app import cli
from opam.pipeline.artifacts import read_table
from opam.pipeline.errors import OpamError
from opam.report.fonts import lettering
from opam.report.panels import HEIGHT, WIDTH, sheet, wrapped
from opam.report.show import STEPS, Photograph, closest, open_photograph, probabilities, show

pytestmark = pytest.mark.slow

DATA = Path("data")


@pytest.fixture
def run(undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished run, as working directory."""
    monkeypatch.chdir(undisturbed.untouched)
    return undisturbed.untouched


@pytest.fixture
def manifest(run: Path) -> pd.DataFrame:
    return read_table(run / "data/manifest.parquet", "manifest")


def first(manifest: pd.DataFrame, split: str) -> str:
    return str(manifest.loc[manifest["split"] == split, "image_id"].iloc[0])


def colours(picture: Image.Image) -> int:
    return len(picture.getcolors(WIDTH * HEIGHT) or [])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_step_is_drawn(manifest: pd.DataFrame, split: str) -> None:
    photograph = open_photograph(DATA, first(manifest, split))
    drawn = {}
    for step in STEPS:
        panel = step(photograph)
        assert panel.picture.width <= WIDTH
        assert panel.picture.height <= HEIGHT
        drawn[step.__name__] = colours(panel.picture) > 1000, panel.caption
    assert drawn.pop("kept_patches")[0] == (split == "train")
    scored = drawn.pop("probabilities")
    assert ("original, object, part, fused" in scored[1]) == (split != "train")
    assert all(pictured for pictured, _ in drawn.values())
    assert "the true box, IoU 0." in drawn["object_box"][1]


def test_rows_are_the_photographs_own(manifest: pd.DataFrame) -> None:
    image_id = first(manifest, "test")
    photograph = open_photograph(DATA, image_id)
    every = read_table(DATA / "proposals.parquet", "proposals")
    own = every[every["image_id"] == image_id].reset_index(drop=True)
    pd.testing.assert_frame_equal(photograph.rows("proposals.parquet"), own)
    assert photograph.rows("kept_patches.parquet").empty


def test_the_command_writes_one_png(
    run: Path, manifest: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_id = first(manifest, "test")
    out = tmp_path / "drawn/steps.png"
    done = CliRunner().invoke(cli.app, ["show", image_id, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.width > 3 * WIDTH
        assert picture.height > 3 * HEIGHT
    assert list(out.parent.iterdir()) == [out]


def test_without_a_name_it_is_the_photographs(
    run: Path, manifest: pd.DataFrame, tmp_path: Path
) -> None:
    image_id = first(manifest, "test")
    written = show(DATA, image_id)
    try:
        assert written == Path(image_id.replace("/", "_")).with_suffix(".png")
        assert written.exists()
    finally:
        written.unlink()


def test_an_unknown_image_id_names_the_closest(manifest: pd.DataFrame, tmp_path: Path) -> None:
    known = first(manifest, "test")
    for asked in (known.partition("/")[2], known.replace("test", "tset"), "x"):
        with pytest.raises(OpamError, match=r"not in data/manifest.parquet; the closest there: ."):
            show(DATA, asked, tmp_path / "a.png")
        if asked != "x":
            assert known in closest(asked, manifest["image_id"].tolist())
    assert not list(tmp_path.iterdir())


def test_only_png_and_jpeg_are_written(manifest: pd.DataFrame) -> None:
    with pytest.raises(OpamError, match=r"a\.gif: the drawing is a PNG"):
        show(DATA, first(manifest, "test"), Path("a.gif"))


def test_a_step_that_has_not_run_is_told_in_its_place(
    run: Path, manifest: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    for name in ("aligned_parts.parquet", "object_maps.parquet", "fusion.json"):
        (DATA / name).unlink()
    image_id = first(manifest, "test")
    with pytest.raises(OpamError, match=r"fusion\.json: not found; run `dvc repro`"):
        probabilities(open_photograph(DATA, image_id))
    assert show(DATA, image_id, tmp_path / "a.png").exists()


@pytest.mark.parametrize("size", [(1, 1), (2000, 3), (3, 2000)])
def test_photographs_of_any_shape(manifest: pd.DataFrame, size: tuple[int, int]) -> None:
    import numpy as np

    known = open_photograph(DATA, first(manifest, "test"))
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    odd = Photograph(
        DATA, known.image_id, image, "test", known.class_name, known.true_box, known.classes
    )
    assert sheet("odd", [step(odd) for step in STEPS]).width > 0


def test_captions_are_broken_between_words() -> None:
    lines = wrapped("some words that do not fit into one line of so few pixels", 14, 100)
    assert len(lines) > 3
    assert all(lettering(line, 14)[1].getlength(line) <= 100 for line in lines)
