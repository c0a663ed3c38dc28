"""Copies: what is one, what is none, and what `prepare` does about them."""

import io
import shutil
import subprocess
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image, ImageEnhance
from small_project import PYTHON, preset

from opam.photographs.datasets.synthetic_birds import draw_bird
from opam.photographs.descriptors import Descriptor, describe
from opam.photographs.duplicates import copies, duplicate_table, resolve
from opam.photographs.groups import grouped, joined
from opam.pipeline.artifacts import read_table
from opam.pipeline.errors import OpamError

ROOT = Path(__file__).parents[1]


def bird(number: int, species: int = 0) -> np.ndarray:
    return draw_bird(species, np.random.default_rng([3, number])).image


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue()))


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


MADE = {
    "half": lambda image: recompressed(resized(image, 0.5), 80),
    "double": lambda image: resized(image, 2.0),
    "compressed": lambda image: recompressed(image, 25),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: recompressed(ImageEnhance.Brightness(image).enhance(0.85), 85),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
    "mirrored": lambda image: recompressed(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 85),
}


def looks_of(folder: Path, pictures: list[np.ndarray | Image.Image]) -> pd.DataFrame:
    rows = []
    for number, each in enumerate(pictures):
        image = each if isinstance(each, Image.Image) else Image.fromarray(each)
        path = folder / f"{number:03}.png"
        image.save(path)
        rows.append(describe(str(path), 1600, 0))
    return pd.DataFrame(rows, columns=Descriptor._fields)


def found(looks: pd.DataFrame) -> list[tuple[int, int]]:
    pairs, _ = copies(looks, pd.Series([None] * len(looks), dtype=object))
    return [(int(one), int(other)) for one, other in pairs]


@pytest.mark.parametrize("name", MADE)
def test_a_copy_that_was_worked_on_is_one(tmp_path: Path, name: str) -> None:
    birds = [Image.fromarray(bird(number)) for number in range(6)]
    looks = looks_of(tmp_path, [*birds, *map(MADE[name], birds)])
    assert found(looks) == [(number, number + 6) for number in range(6)]


def test_drawn_birds_are_no_copies(tmp_path: Path) -> None:
    looks = looks_of(tmp_path, [bird(number, number % 8) for number in range(120)])
    assert found(looks) == []


def product(form: int, turn: int = 0) -> np.ndarray:
    """A product on white; its forms differ in a mark, not in the outline."""
    image = np.full((200, 200, 3), 255, dtype=np.uint8)
    cv2.rectangle(image, (60 + turn, 30), (140 + turn, 170), (90, 90, 110), -1)
    place = (80 + turn + 12 * (form % 4), 60 + 28 * (form // 4))
    cv2.circle(image, place, 11, (210, 60, 40), -1)
    return image


def plain(level: int) -> np.ndarray:
    noise = np.random.default_rng(level).normal(0, 1.5, (150, 200, 3))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


def mist(level: int) -> np.ndarray:
    """Low contrast, of another form each."""
    cells = np.random.default_rng(level).normal(150, 9, (5, 6)).astype(np.float32)
    grey = cv2.resize(cells, (200, 150), interpolation=cv2.INTER_CUBIC)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_like_hashes_make_no_copies(tmp_path: Path) -> None:
    pictures = [product(form) for form in range(16)]
    pictures += [plain(level) for level in range(90, 150, 5)] + [mist(n) for n in range(30)]
    looks = looks_of(tmp_path, pictures)
    hashes = looks["hash"].to_numpy(np.uint64)
    alike = np.bitwise_count(hashes[:, None] ^ hashes) <= 10
    assert np.triu(alike, 1).sum() > 20  # by their hashes alone there would be many
    assert found(looks) == []
    again = looks_of(tmp_path, [*pictures[:16], *map(np.copy, pictures[:16]), plain(1), plain(1)])
    assert found(again) == [*((form, form + 16) for form in range(16)), (32, 33)]


def test_copies_of_other_splits_change_no_group(tmp_path: Path) -> None:
    image = bird(0)
    looks = looks_of(tmp_path, [image, image, image, bird(1)])
    images = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "d"],
            "path": ["a", "b", "c", "d"],
            "class_name": ["x", "x", "y", "y"],
            "split": ["test", "train", "train", "train"],
        }
    )
    pairs, exact = copies(looks, images["split"])
    assert grouped(images, [pairs]).tolist() == ["a", "b", "b", "d"]
    table = duplicate_table(images, pairs, exact)
    assert table["image_id"].tolist() == ["a", "b", "c"]
    assert set(table["kind"]) == {"identical"}
    assert set(table["conflict"]) == {"2 labels, in train and test"}


def table_of(*rows: tuple[int, str, str, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["group", "image_id", "class_name", "split"])
    return table.assign(path="p", kind="near", conflict="", action="")


def test_what_is_dropped_stays_or_stops() -> None:
    table = table_of(
        (1, "a", "x", "train"),
        (1, "b", "x", "test"),
        (1, "c", "x", "test"),
        (2, "d", "x", "train"),
        (2, "e", "y", "train"),
        (3, "f", "x", "train"),
        (3, "g", "x", "train"),
        (4, "h", "x", "train"),
        (4, "i", "x", "val"),
    )
    assert set(resolve(table, "report")["action"]) == {"kept"}
    dropped = resolve(table, "drop").set_index("image_id")["action"]
    assert dropped[dropped == "kept"].index.tolist() == ["b", "f", "i"]
    with pytest.raises(OpamError, match=r"(?s)9 photographs are copies.*a, b, c.*d, e.*f, g.*h, i"):
        resolve(table, "stop")
    empty = duplicate_table(
        pd.DataFrame(columns=["image_id", "path", "class_name", "split"]),
        np.empty((0, 2), dtype=np.int64),
        np.empty(0, dtype=np.int64),
    )
    for policy in ("report", "drop", "stop"):
        assert resolve(empty, policy).empty


def test_a_given_group_in_two_splits_stops() -> None:
    images = pd.DataFrame({"image_id": list("abcd"), "split": ["train", "train", "test", "test"]})
    images["group"] = ["nest 1", "nest 1", None, "nest 2"]
    assert grouped(images, []).tolist() == ["a", "a", "c", "d"]
    images["group"] = ["nest 1", "", "nest 1", ""]
    with pytest.raises(OpamError, match="one group lie in two splits \\(group 'nest 1'\\)"):
        grouped(images, [])


def test_twelve_thousand_are_compared_in_seconds() -> None:
    rng = np.random.default_rng(0)
    count = 12_000
    hashes = rng.integers(0, 2**63, count)
    hashes[: count // 10] = hashes[0]  # product shots: a tenth have one hash
    small = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    looks = pd.DataFrame(
        {
            "pixels": [str(number) for number in range(count)],
            "hash": hashes,
            "mirrored_hash": rng.integers(0, 2**63, count),
            "small": list(small),
        }
    )
    started = time.process_time()
    assert found(looks) == []
    assert time.process_time() - started < 60  # a few alone on a machine


def write_set(root: Path) -> None:
    """Two classes in train and test: a file twice, a file under two labels, a near copy."""
    for split, count in (("train", 6), ("test", 3)):
        for species, name in enumerate(("finch", "wren")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = bird(100 * len(split) + 10 * species + number, species)
                Image.fromarray(image).save(folder / f"{number}.jpg", quality=92)
    shutil.copy(root / "train/wren/0.jpg", root / "test/wren/same.jpg")
    shutil.copy(root / "train/wren/1.jpg", root / "train/finch/label.jpg")
    near = resized(Image.open(root / "train/wren/2.jpg"), 0.6)
    near.save(root / "test/wren/near.jpg", quality=70)


def prepare(folder: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    params = preset("imagefolder")
    params["dataset"]["path"] = str(folder / "photographs")
    params["prepare"] |= changes
    params["fusion"]["folds"] = 2
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("fetch_data", "prepare"):
        done = subprocess.run(
            [PYTHON, str(ROOT / f"stages/{name}.py")],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    return done


@pytest.mark.slow
def test_prepare_names_drops_or_stops(tmp_path: Path) -> None:
    write_set(tmp_path / "photographs")
    done = prepare(tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "copies: 2 identical photographs in 1 group (2 labels), all kept",
        "copies: 2 identical photographs in 1 group (in train and test), all kept",
        "copies: 2 near photographs in 1 group (in train and test), all kept",
        "bursts: none found",
    ):
        assert line in done.stdout
    listed = pd.read_csv(tmp_path / "data/duplicates.csv")
    assert listed["group"].tolist() == [1, 1, 2, 2, 3, 3]
    assert listed["image_id"].tolist() == [
        "test/wren/near.jpg",
        "train/wren/2.jpg",
        "test/wren/same.jpg",
        "train/wren/0.jpg",
        "train/finch/label.jpg",
        "train/wren/1.jpg",
    ]
    manifest = read_table(tmp_path / "data/manifest.parquet", "manifest")
    assert len(manifest) == 21
    group = manifest.set_index("image_id")["group"]
    assert group["train/wren/1.jpg"] == group["train/finch/label.jpg"] == "train/finch/label.jpg"
    assert group["train/wren/0.jpg"] == "train/wren/0.jpg"
    before = (tmp_path / "data/manifest.parquet").read_bytes()

    done = prepare(tmp_path, duplicates="drop", bursts="ignore")
    assert done.returncode == 0, done.stderr
    assert "1 group (2 labels), 2 dropped" in done.stdout
    assert "bursts" not in done.stdout
    manifest = read_table(tmp_path / "data/manifest.parquet", "manifest")
    assert set(listed["image_id"]) & set(manifest["image_id"]) == {
        "test/wren/near.jpg",
        "test/wren/same.jpg",
    }
    actions = pd.read_csv(tmp_path / "data/duplicates.csv")["action"].tolist()
    assert actions == ["kept", "dropped", "kept", "dropped", "dropped", "dropped"]

    done = prepare(tmp_path, duplicates="stop")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "6 photographs are copies" in done.stderr
    for name in listed["image_id"]:
        assert name in done.stderr

    assert prepare(tmp_path).returncode == 0
    assert (tmp_path / "data/manifest.parquet").read_bytes() == before


def test_rows_are_joined_by_chains() -> None:
    group = joined(5, [np.array([[0, 3]]), np.array([[3, 4], [2, 2]])])
    assert (group[:, None] == group).sum(1).tolist() == [3, 1, 1, 3, 3]
