"""Bursts: found by time and by features, kept together, and val is then one to believe."""

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from opam.engine.discriminant.analysis import Features, fit_discriminant
from opam.photographs import bursts as finding
from opam.photographs.bursts import bursts, in_features, in_time, told
from opam.photographs.datasets.synthetic_birds import draw_bird
from opam.photographs.descriptors import DATE, EXIF, FRACTION, MAKE, MODEL, Descriptor, describe
from opam.photographs.folds import validation_mask
from opam.photographs.groups import grouped, joined
from opam.photographs.preparation import classes_without, make_manifest
from opam.pipeline import kept
from opam.pipeline.device import ExecutionParams


def frame(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same scene, the camera moved a little: shifted, turned, nearer, lighter, noisier."""
    height, width = image.shape[:2]
    middle = (width / 2, height / 2)
    move = cv2.getRotationMatrix2D(middle, rng.uniform(-2, 2), rng.uniform(1.05, 1.12))
    move[:, 2] += rng.uniform(-0.03, 0.03, 2) * (width, height)
    moved = cv2.warpAffine(image, move, (width, height), borderMode=cv2.BORDER_REFLECT)
    noisy = moved * rng.uniform(0.9, 1.1) + rng.normal(0, 4, moved.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def drawn(folder, scenes: int, frames: int, species: int = 2) -> pd.DataFrame:
    """Photographs of some species, so many scenes each, so many frames of a scene."""
    rows = []
    for label in range(species):
        for scene in range(scenes):
            image = draw_bird(label, np.random.default_rng([4, label, scene])).image
            rng = np.random.default_rng([5, label, scene])
            for number in range(frames):
                shown = frame(image, rng) if frames > 1 else image
                name = f"{label}/{scene:02}-{number}"
                path = folder / f"{name.replace('/', '_')}.png"
                Image.fromarray(shown).save(path)
                rows.append(
                    (name, str(label), None, f"{label}/{scene}", *describe(str(path), 1600, 0))
                )
    columns = ["image_id", "class_name", "split", "scene", *Descriptor._fields]
    return pd.DataFrame(rows, columns=columns)


CPU = ExecutionParams(device="cpu")


def test_a_photograph_is_looked_at_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPAM_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(kept, "_space", kept._Space())
    monkeypatch.setattr(finding, "BATCH", 4)
    seen: list[bytes] = []
    real = finding.opened

    def counted(picture: bytes) -> np.ndarray:
        seen.append(picture)
        return real(picture)

    monkeypatch.setattr(finding, "opened", counted)
    pictures = drawn(tmp_path, scenes=3, frames=1)["picture"].to_list()
    first = finding.describe(pictures[:5], CPU)
    assert seen == pictures[:5]
    more = finding.describe(pictures[::-1], CPU)
    assert seen == [*pictures[:5], pictures[5]]
    for own, found in zip(first, more, strict=True):
        np.testing.assert_array_equal(found[::-1][:5], own)
    # Whatever was there first, they are the bytes of computing all of them.
    shutil.rmtree(tmp_path / "kept")
    for own, found in zip(more, finding.describe(pictures[::-1], CPU), strict=True):
        np.testing.assert_array_equal(found, own)
    assert len(seen) == 12


def test_scenes_photographed_several_times_are_found(tmp_path) -> None:
    images = drawn(tmp_path, scenes=6, frames=4)
    pairs = bursts(images, CPU)
    group = grouped(images, pairs)
    assert images.groupby(group)["scene"].nunique().max() == 1  # none is put together wrongly
    assert images.groupby("scene").apply(lambda own: group[own.index].nunique()).mean() < 1.2
    line = told(pairs, images)
    assert line.startswith("bursts: 48 photographs in 1")
    assert "0 by the time of taking, 48 by features" in line
    again = bursts(images, CPU)
    assert all(np.array_equal(one, other) for one, other in zip(pairs, again, strict=True))
    # What test holds neither is grouped nor changes what is.
    test = images.assign(split="test", image_id="test/" + images["image_id"])
    both = pd.concat([test, images.assign(split="train")], ignore_index=True)
    moved = [each + len(images) for each in pairs]
    assert all(np.array_equal(a, b) for a, b in zip(bursts(both, CPU), moved, strict=True))


def test_drawn_birds_are_no_bursts(tmp_path) -> None:
    images = drawn(tmp_path, scenes=40, frames=1)
    pairs = bursts(images, CPU)
    assert sum(map(len, pairs)) == 0
    assert told(pairs, images) == "bursts: none found"


def groups_in(labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    return joined(len(labels), [in_features(labels, [features, features])])


def test_a_class_that_changes_slowly_is_no_chain() -> None:
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2.5, 60)
    chain = np.stack([np.cos(angle), np.sin(angle)], 1) @ rng.normal(size=(2, 32))
    others = rng.normal(size=(60, 32))
    labels = np.repeat([0, 1], 60)
    sizes = np.bincount(groups_in(labels, np.vstack([chain, others])))
    assert sizes.max() < 40


def test_a_class_of_one_long_burst_is_one_group() -> None:
    rng = np.random.default_rng(0)
    burst = rng.normal(size=300) + 0.05 * rng.normal(size=(20, 300))
    group = groups_in(np.repeat([0, 1], [20, 30]), np.vstack([burst, rng.normal(size=(30, 300))]))
    assert len(set(group[:20])) == 1
    assert len(set(group[20:])) == 30


def test_what_one_camera_took_within_a_minute_is_together() -> None:
    labels = np.array(["a"] * 7 + ["b"] * 3)
    taken = np.array([0, 50, 100, 500, 501, 502, np.nan, 20, 21, 22.0])
    cameras = np.array(["k"] * 5 + ["other", ""] + ["k"] * 3, dtype=object)
    group = joined(10, [in_time(labels, taken, cameras)])
    assert len(set(group[:3])) == 1
    assert group[3] == group[4]
    # Another camera, no date; and a class that would be one chain is not believed.
    assert len(set(group)) == 7


def test_the_time_of_taking_is_read_from_exif(tmp_path) -> None:
    exif = Image.Exif()
    exif[MAKE], exif[MODEL] = "Maker", "One"
    exif.get_ifd(EXIF)[DATE] = "2026:05:04 10:00:01"
    exif.get_ifd(EXIF)[FRACTION] = "25"
    image = Image.fromarray(draw_bird(0, np.random.default_rng(0)).image)
    for name in ("a.jpg", "b.webp", "c.png"):
        image.save(tmp_path / name, exif=exif)
    exif.get_ifd(EXIF)[DATE] = "2026:05:04 10:00:02"
    image.save(tmp_path / "later.jpg", exif=exif)
    exif.get_ifd(EXIF)[DATE] = "0000:00:00 00:00:00"
    image.save(tmp_path / "unset.jpg", exif=exif)
    found = {path.name: describe(str(path), 1600, 0) for path in tmp_path.iterdir()}
    assert found["a.jpg"].camera == found["b.webp"].camera == found["c.png"].camera == "Maker One"
    assert found["a.jpg"].taken == found["b.webp"].taken
    assert found["later.jpg"].taken - found["a.jpg"].taken == 1
    assert np.isnan(found["unset.jpg"].taken)


def given(features: np.ndarray) -> Features:
    return lambda: [features]


def features_of(days: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of bursts: what a class is, less than what a day is, and a little of each frame."""
    rng = np.random.default_rng(seed)
    classes, frames, width = 10, 6, 40
    means = 0.5 * np.random.default_rng(7).normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), days * frames)
    burst = np.repeat(np.arange(classes * days), frames)
    of_day = rng.normal(size=(classes * days, width))
    views = 0.1 * rng.normal(size=(len(labels), 3, width))
    return (means[labels] + of_day[burst])[:, None] + views, labels, burst


def test_held_out_accuracy_is_that_on_fresh_photographs() -> None:
    features, labels, burst = features_of(4, 0)
    fresh, theirs, _ = features_of(40, 1)
    apart = fit_discriminant(given(features), labels, 10, 0)
    together = fit_discriminant(given(features), labels, 10, 0, burst)
    right = ((fresh[:, 0] @ together.weights.T + together.bias).argmax(1) == theirs).mean()
    assert apart.accuracy > right + 0.3
    assert abs(together.accuracy - right) < 0.12
    # So is that on val, which is drawn from the same bursts.
    for groups, flatters in ((None, True), (burst, False)):
        val = validation_mask(labels, 0.25, 0, groups)
        probe = fit_discriminant(given(features[~val]), labels[~val], 10, 0)
        answers = (features[val, 0] @ probe.weights.T + probe.bias).argmax(1)
        on_val = (answers == labels[val]).mean()
        assert (on_val > right + 0.3) == flatters
        if not flatters:
            assert abs(on_val - right) < 0.2


def test_parts_of_one_photograph_are_left_out_together() -> None:
    features, labels, photograph = features_of(6, 0)
    fold_wise = fit_discriminant(given(features), labels, 10, 0, photograph).accuracy
    assert fit_discriminant(given(features), labels, 10, 0).accuracy > fold_wise + 0.2


def test_a_class_left_out_as_a_whole_is_not_counted() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 10)
    features = (8 * np.eye(3)[labels] + rng.normal(size=(30, 3)))[:, None]
    groups = np.where(labels == 2, 99, np.arange(30))  # of the third class there is one burst
    assert fit_discriminant(given(features), labels, 3, 0, groups).accuracy == 1.0


@pytest.mark.parametrize("bursts_of_second", [1, 3])
def test_a_class_of_one_group_has_no_val_and_is_named(bursts_of_second: int) -> None:
    rows = [(f"a{number}", "a", f"a{number}") for number in range(6)]
    rows += [(f"b{number}", "b", f"b{number % bursts_of_second}") for number in range(6)]
    images = pd.DataFrame(rows, columns=["image_id", "class_name", "group"])
    images = images.assign(split="train", path="", width=9, height=9)
    images.loc[len(images)] = ["t", "a", "t", "test", "", 9, 9]
    for name in ("gt_x0", "gt_y0", "gt_x1", "gt_y1"):
        images[name] = pd.array([None] * len(images), dtype="Int32")
    manifest, _ = make_manifest(images, 0.3, 0)
    assert classes_without("val", manifest) == (["b"] if bursts_of_second == 1 else [])
    assert manifest.groupby("group")["split"].nunique().max() == 1
