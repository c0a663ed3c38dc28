"""Manifest, splits and bad photographs."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_project import PYTHON, preset

from opam.photographs.descriptors import Descriptor
from opam.photographs.preparation import (
    check_photographs,
    leave_out_bad,
    make_manifest,
    scaled,
    validation_mask,
)
from opam.pipeline.artifacts import GT_BOX, read_json, read_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError

ROOT = Path(__file__).parents[1]
EXECUTION = ExecutionParams(workers=1, decoded_gigabytes=0)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.05, 0.9), st.integers(0, 9)
)
def test_val_is_a_stratified_share(labels: list[int], fraction: float, seed: int) -> None:
    labels_array = np.array(labels)
    mask = validation_mask(labels_array, fraction, seed)
    np.testing.assert_array_equal(mask, validation_mask(labels_array, fraction, seed))
    for label in set(labels):
        count, held = labels.count(label), int(mask[labels_array == label].sum())
        if count == 1:
            assert held == 0
        else:
            assert 1 <= held <= count - 1
            assert abs(held - fraction * count) <= 1


def images(*rows: tuple[str, str, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["image_id", "class_name", "split"])
    boxes = pd.DataFrame({name: pd.array([pd.NA] * len(rows), dtype="Int32") for name in GT_BOX})
    table = table.assign(path=table["image_id"], width=50, height=40, problem="")
    return table.join(boxes)


GOOD = [
    ("c", "crow", "train"),
    ("a", "auk", "train"),
    ("b", "auk", "train"),
    ("d", "crow", "test"),
    ("e", "crow", "train"),
]


def test_boxes_and_keypoints_shrink_with_their_photographs() -> None:
    table = images(*GOOD[:3]).assign(
        width=[50, 50, 25], height=[40, 40, 20], full_width=[50, 200, 50], full_height=[40, 160, 40]
    )
    for name, value in zip(GT_BOX, (8, 12, 41, 40), strict=True):
        table[name] = pd.array([value, value, pd.NA], dtype="Int32")
    points = pd.DataFrame([("a", "beak", 20.0, 30.0, True), ("c", "beak", 20.0, 30.0, True)])
    points.columns = ["image_id", "part", "x", "y", "visible"]
    boxes, keypoints = scaled(table, points)
    assert boxes[GT_BOX].to_numpy(object, na_value=None).tolist() == [
        [8, 12, 41, 40],
        [2, 3, 10, 10],
        [None] * 4,
    ]
    assert keypoints[["x", "y"]].to_numpy().tolist() == [[5.0, 7.5], [20.0, 30.0]]


def test_labels_follow_the_class_names_and_rows_the_image_ids() -> None:
    manifest, classes = make_manifest(images(*GOOD), 0.5, 0)
    assert classes == ["auk", "crow"]
    assert manifest["image_id"].tolist() == ["a", "b", "c", "d", "e"]
    assert manifest["label"].tolist() == [0, 0, 1, 1, 1]
    assert manifest["split"].value_counts().to_dict() == {"train": 2, "val": 2, "test": 1}


def test_true_boxes_are_clipped_to_the_photograph() -> None:
    table = images(*GOOD)
    table.loc[0, GT_BOX] = [-3, 5, 60, 90]
    manifest, _ = make_manifest(table, 0.5, 0)
    assert manifest.set_index("image_id").loc["c", GT_BOX].tolist() == [0, 5, 50, 40]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*GOOD, ("f", "owl", "test")], "class 'owl': no training image"),
        ([*GOOD, ("a", "auk", "train")], "a: listed twice"),
        ([row for row in GOOD if row[1] == "auk"], "1 class found"),
        ([row for row in GOOD if row[2] == "train"], "no test image"),
        ([GOOD[0], GOOD[1], GOOD[3]], "no class has two training images"),
    ],
)
def test_what_cannot_be_trained_stops(rows: list[tuple[str, str, str]], message: str) -> None:
    with pytest.raises(OpamError, match=message):
        make_manifest(images(*rows), 0.5, 0)


def write_folder(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 1)):
        for name in ("auk", "crow"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    for path in ("train/auk/1.jpg", "train/crow/2.jpg"):
        whole = (root / path).read_bytes()
        (root / path).write_bytes(whole[: len(whole) // 2])


def test_bad_photographs_are_all_named_or_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path)
    paths = sorted(map(str, tmp_path.rglob("*.jpg")))
    table = pd.DataFrame({"image_id": paths, "path": paths})
    table["class_name"] = [Path(path).parent.name for path in paths]
    checked = table.join(check_photographs(table, 1600, EXECUTION))
    with pytest.raises(OpamError, match=r"(?s)2 of 10 .*auk/1\.jpg.*crow/2\.jpg"):
        leave_out_bad(checked, "stop")
    good, skipped = leave_out_bad(checked, "skip")
    assert len(good) == 8
    assert skipped["image_id"].tolist() == [
        p for p in paths if p.endswith(("auk/1.jpg", "crow/2.jpg"))
    ]
    assert (good["width"] == 40).all()
    assert (good["height"] == 30).all()
    checked.loc[checked["class_name"] == "auk", "problem"] = "torn"
    with pytest.raises(OpamError, match="class 'auk': every photograph is bad"):
        leave_out_bad(checked, "skip")


@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_the_stages_stop_or_record_what_they_skip(tmp_path: Path, on_bad_image: str) -> None:
    write_folder(tmp_path / "photographs")
    params = preset("imagefolder")
    params["dataset"]["path"] = str(tmp_path / "photographs")
    params["prepare"]["on_bad_image"] = on_bad_image
    params["fusion"]["folds"] = 2
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))

    def stage(name: str) -> subprocess.CompletedProcess[str]:
        script = [PYTHON, str(ROOT / f"stages/{name}.py")]
        return subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert stage("fetch_data").returncode == 0
    done = stage("prepare")
    if on_bad_image == "stop":
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert "auk/1.jpg" in done.stderr
        assert "crow/2.jpg" in done.stderr
        assert not (tmp_path / "data/manifest.parquet").exists()
        return
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "data/skipped.csv")) == 2
    manifest = read_table(tmp_path / "data/manifest.parquet", "manifest")
    assert len(manifest) == 8
    assert read_json(tmp_path / "data/classes.json") == ["auk", "crow"]


@pytest.mark.parametrize(
    ("largest", "told"),
    [
        ([4095, 3000], "no value is above 4095 (12 bits) in it and all other photographs of 16"),
        ([1000], "no value is above 1023 (10 bits)"),
        ([16000, 255], "no value is above 16383 (14 bits)"),
        ([255], "no value is above 255 (8 bits)"),
        ([4095, 20000], None),
        ([65535], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_that_are_never_used_are_told(
    tmp_path: Path, kind: str, largest: list[int], told: str | None
) -> None:
    paths = [str(tmp_path / "a.jpg")]
    Image.new("RGB", (8, 6)).save(paths[0])
    for number, value in enumerate(largest):
        paths.append(str(tmp_path / str(number)))
        values = np.linspace(0, value, 48).astype(np.uint16).reshape(6, 8)
        Image.fromarray(values).save(paths[-1], kind)
    table = pd.DataFrame({"path": paths})
    if told is None:
        checked = check_photographs(table, 1600, EXECUTION)
        assert list(checked) == [*Descriptor._fields]
        assert (checked["problem"] == "").all()
        return
    with pytest.raises(OpamError) as raised:
        check_photographs(table, 1600, EXECUTION)
    assert str(raised.value).startswith(f"{paths[1]}: {told}")
    assert f"{len(largest)} in all" in str(raised.value)
