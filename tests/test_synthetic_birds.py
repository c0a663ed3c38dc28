import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError

from opam.photographs.datasets import Dataset
from opam.photographs.datasets import synthetic_birds as birds
from opam.photographs.datasets.synthetic_birds import Drawing, SyntheticBirdsParams, draw_bird
from opam.photographs.decoding.archive import open_archive, pack
from opam.photographs.decoding.images import read_image
from opam.pipeline.artifacts import GT_BOX
from opam.pipeline.errors import OpamError
from opam.report.sample_sheet import contact_sheet, main

FEW = SyntheticBirdsParams(seed=3, train_per_class=2, test_per_class=1)
MARKED = ("bill", "crown", "wing bar", "tail")


def draw(species: int, number: int) -> Drawing:
    return draw_bird(species, np.random.default_rng([5, number]))


def hashes(raw: Path) -> dict[str, str]:
    files = (path for path in raw.rglob("*") if path.is_file())
    return {str(p.relative_to(raw)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("birds")
    birds.fetch(folder, FEW, workers=1)
    return folder


def read_back(folder: Path) -> Dataset:
    archive = folder.parent / f"{folder.name}-packed/raw.zip"
    pack(folder, archive)
    return birds.read(open_archive(archive))


def test_several_parts_of_both_ends_are_needed() -> None:
    codes = list(birds.SPECIES.values())
    assert len(codes) == len(set(codes)) == 8
    for part in range(len(MARKED)):
        forms = [code[part] for code in codes]
        assert all(forms.count(form) == 2 for form in range(4))
    for one, other in itertools.combinations(codes, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) <= 1


def test_workers_change_nothing_and_the_seed_does(raw: Path, tmp_path: Path) -> None:
    birds.fetch(tmp_path / "two", FEW, workers=2)
    assert hashes(tmp_path / "two") == hashes(raw)
    birds.fetch(tmp_path / "seed", FEW.model_copy(update={"seed": 4}), workers=1)
    shared = set(hashes(tmp_path / "seed").values()) & set(hashes(raw).values())
    assert shared == set()


def test_a_bird_does_not_depend_on_how_many_are_drawn(raw: Path, tmp_path: Path) -> None:
    fewer = FEW.model_copy(update={"train_per_class": 2, "test_per_class": 2})
    birds.fetch(tmp_path, fewer, workers=1)
    images = {name: digest for name, digest in hashes(raw).items() if name.endswith(".jpg")}
    assert images.items() <= hashes(tmp_path).items()


def test_no_two_are_alike(raw: Path) -> None:
    images = [digest for name, digest in hashes(raw).items() if name.endswith(".jpg")]
    assert len(images) == len(set(images)) == 8 * 3


def test_what_was_fetched_is_read(raw: Path) -> None:
    found = read_back(raw)
    assert found.images["split"].value_counts().to_dict() == {"train": 16, "test": 8}
    assert set(found.images["class_name"]) == set(birds.SPECIES)
    for row in found.images.itertuples():
        assert row.path.endswith(f"raw.zip/images/{row.image_id}")
        assert row.image_id.split("/")[:2] == [row.split, row.class_name]
        height, width = read_image(row.path).shape[:2]
        assert 0 <= row.gt_x0 < row.gt_x1 <= width
        assert 0 <= row.gt_y0 < row.gt_y1 <= height
    assert not found.images[GT_BOX].isna().any(axis=None)
    assert len(found.keypoints) == 24 * len(birds.PARTS)
    assert set(found.keypoints["part"]) == set(birds.PARTS)
    assert set(found.keypoints["image_id"]) == set(found.images["image_id"])
    assert found.keypoints["visible"].dtype == bool


def test_read_matches_what_was_drawn(raw: Path) -> None:
    drawing = draw_bird(2, np.random.default_rng([FEW.seed, 2, 0, 1]))
    found = read_back(raw)
    image_id = "train/cedar_warbler/0001.jpg"
    row = found.images.set_index("image_id").loc[image_id]
    assert tuple(row[GT_BOX]) == drawing.box
    points = found.keypoints[found.keypoints["image_id"] == image_id].set_index("part")
    for part, (x, y, visible) in drawing.parts.items():
        assert points.loc[part, ["x", "y"]].tolist() == pytest.approx([x, y], abs=0.06)
        assert points.loc[part, "visible"] == visible
    stored = np.asarray(Image.open(raw / "images" / image_id)).astype(float)
    assert np.abs(stored - drawing.image).mean() < 6  # JPEG


@pytest.mark.parametrize("number", range(8))
def test_box_is_tight_and_holds_the_visible_parts(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    species = number % 8
    drawing = draw(species, number)
    height, width = drawing.image.shape[:2]
    x0, y0, x1, y1 = drawing.box
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert drawing.image.dtype == np.uint8
    for x, y, visible in drawing.parts.values():
        assert 0 <= x < width
        assert 0 <= y < height
        assert not visible or (x0 <= x <= x1 and y0 <= y <= y1)

    # The same bird all black and all white: what differs is what is visible of it.
    real = birds._bird

    def painted(level: int) -> np.ndarray:
        def flat(*arguments: Any) -> object:
            layer, mask, parts = real(*arguments)
            return np.full_like(layer, level), mask, parts

        monkeypatch.setattr(birds, "_bird", flat)
        return draw(species, number).image.astype(int)

    visible_pixels = (painted(255) - painted(0)).min(axis=2) > 127
    rows, columns = (np.flatnonzero(visible_pixels.any(axis)) for axis in (1, 0))
    seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    np.testing.assert_allclose(drawing.box, seen, atol=1)


def test_boxes_take_a_moderate_share_anywhere() -> None:
    sides, centres = [], []
    for number in range(32):
        drawing = draw(number % 8, number)
        size = np.array(drawing.image.shape[1::-1])
        box = np.reshape(drawing.box, (2, 2)) / size
        sides.append(box[1] - box[0])
        centres.append(box.mean(axis=0))
    assert 0.3 < np.median(sides) < 0.6
    assert (np.ptp(centres, axis=0) > 0.25).all()


def test_leaves_hide_parts_and_shrink_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    free = draw(0, 1)
    x0, y0, x1, y1 = free.box
    middle = (y0 + y1) // 2

    def upper_half(canvas: np.ndarray, *_: object) -> np.ndarray:
        covered = np.zeros(canvas.shape[:2], dtype=bool)
        covered[: birds.OVERSAMPLING * middle] = True
        return covered

    monkeypatch.setattr(birds, "_leaves_in_front", upper_half)
    hidden = draw(0, 1)
    assert hidden.box[1] == middle
    assert hidden.box[3] == y1
    for x, y, visible in hidden.parts.values():
        assert visible == (y >= middle)
        assert x0 <= x <= x1


def test_covered_parts_are_not_visible() -> None:
    visible = [
        flag for number in range(40) for _, _, flag in draw(number % 8, number).parts.values()
    ]
    assert 0.9 < np.mean(visible) < 1


@pytest.mark.parametrize("number", range(4))
def test_species_changes_parts_and_nothing_else(number: int) -> None:
    drawings = [draw(species, number) for species in range(8)]
    first = drawings[0]
    assert len({drawing.image.tobytes() for drawing in drawings}) == 8
    unit = np.hypot(*np.subtract(first.parts["belly"][:2], first.parts["eye"][:2])) / 1.25
    height, width = first.image.shape[:2]
    ys, xs = np.mgrid[:height, :width]
    for other in drawings[1:]:
        assert other.image.shape == first.image.shape
        # Distance to the nearest part that may differ, in halves of a body.
        near = np.full((height, width), np.inf)
        for drawing, part in itertools.product((first, other), MARKED):
            x, y, _ = drawing.parts[part]
            near = np.minimum(near, np.hypot(xs - x, ys - y) / unit)
        differs = (other.image != first.image).any(axis=2)
        assert not differs[near > 0.8].any()  # background, pose and light
        for part in ("breast", "belly"):
            assert other.parts[part] == first.parts[part]
            x, y = (int(value) for value in first.parts[part][:2])
            body = np.s_[y - 2 : y + 3, x - 2 : x + 3]
            np.testing.assert_array_equal(other.image[body], first.image[body])


def test_backgrounds_have_the_colours_of_the_marks() -> None:
    found = np.zeros(len(birds.MARK_COLOURS), dtype=int)
    for number in range(12):
        drawing = draw(0, number)
        image = drawing.image.astype(int)
        x0, y0, x1, y1 = drawing.box
        outside = np.ones(image.shape[:2], dtype=bool)
        outside[y0:y1, x0:x1] = False
        pixels = image[outside]
        for index, colour in enumerate(birds.MARK_COLOURS):
            found[index] += (np.abs(pixels - colour).max(axis=1) < 40).sum() >= 20
    assert (found >= 6).all(), dict(zip(birds.MARK_COLOURS, found, strict=True))


def test_missing_and_changed_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(OpamError, match=r"annotations\.csv: not found"):
        read_back(tmp_path)
    birds.fetch(tmp_path, SyntheticBirdsParams(train_per_class=2, test_per_class=1), workers=1)
    annotations = pd.read_csv(tmp_path / "annotations.csv")
    annotations.drop(columns="split").to_csv(tmp_path / "annotations.csv", index=False)
    with pytest.raises(OpamError, match="not as drawn"):
        read_back(tmp_path)
    annotations.to_csv(tmp_path / "annotations.csv", index=False)
    (tmp_path / "images" / annotations["image_id"][0]).unlink()
    with pytest.raises(OpamError, match="no such photograph"):
        read_back(tmp_path)
    (tmp_path / "keypoints.csv").unlink()
    with pytest.raises(OpamError, match=r"keypoints\.csv: not found"):
        read_back(tmp_path)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"train_per_class": 1}, {"test_per_class": 0}])
def test_params_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        SyntheticBirdsParams(**wrong)


def test_sheet_shows_every_species(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = contact_sheet(seed=0, samples=1)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (4 * 204, 2 * 240, 3)
    file = tmp_path / "birds.jpg"
    monkeypatch.setattr("sys.argv", ["sample_sheet", str(file)])
    main()
    assert file.stat().st_size < 700_000
    with Image.open(file) as image:
        assert image.format == "JPEG"
