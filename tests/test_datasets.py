"""Every data set on files laid out as its publisher does."""

import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from opam.photographs.datasets import Dataset, DatasetName, DatasetParams, fetch
from opam.photographs.datasets import read as read_archive
from opam.photographs.datasets.synthetic_birds import SyntheticBirdsParams
from opam.photographs.datasets.table_rows import TableColumns
from opam.photographs.decoding.archive import pack
from opam.photographs.preparation import check_photographs, draw_test, leave_out_others
from opam.pipeline.artifacts import GT_BOX
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError

ROOT = Path(__file__).parents[1]
EXECUTION = ExecutionParams(workers=1, decoded_gigabytes=0)
CUB = ROOT.parent / "shared/data/CUB_200_2011_small"


def photograph(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    """No two alike: copies would be kept on one side of a split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-3:]).encode()))
    pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def lay_out_cub200(root: Path) -> None:
    """Image and class numbers have gaps, as in a subset of the official set."""
    names = {3: "007.Auklet/a.jpg", 9: "007.Auklet/b.jpg", 12: "030.Crow/c d.jpg"}
    for name in names.values():
        photograph(root / "images" / name)
    text(root / "images.txt", *(f"{number} {name}" for number, name in names.items()))
    text(root / "classes.txt", "7 007.Auklet", "30 030.Crow")
    text(root / "image_class_labels.txt", "3 7", "9 7", "12 30")
    text(root / "train_test_split.txt", "3 1", "9 0", "12 1")
    text(root / "bounding_boxes.txt", "3 1.0 2.0 20.0 10.0", "9 0 0 40 30", "12 5 5 10 10")
    text(root / "parts/parts.txt", "1 back", "2 left eye")
    text(root / "parts/part_locs.txt", "3 1 4.5 6.0 1", "3 2 0.0 0.0 0", "12 2 7 8 1")


def lay_out_stanford_cars(root: Path) -> None:
    names = ["Audi S4 2007", "Ram C/V Cargo Van 2012"]
    savemat_of_rows(root / "devkit/cars_train_annos.mat", [(1, "00001.jpg"), (2, "00002.jpg")])
    savemat_of_rows(root / "cars_test_annos_withlabels.mat", [(2, "00001.jpg")])
    cells = np.empty((1, 2), dtype=object)
    cells[0, :] = names
    savemat(root / "devkit/cars_meta.mat", {"class_names": cells})
    for name in ("cars_train/00001.jpg", "cars_train/00002.jpg", "cars_test/00001.jpg"):
        photograph(root / name)


def savemat_of_rows(path: Path, rows: list[tuple[int, str]]) -> None:
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    table = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for index, (label, name) in enumerate(rows):
        table[0, index] = (3, 2, 30, 20, label, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": table})


def lay_out_oxford_pets(root: Path) -> None:
    for name in ("Abyssinian_1", "great_pyrenees_2", "Abyssinian_3"):
        photograph(root / "images" / f"{name}.jpg")
    text(root / "annotations/trainval.txt", "Abyssinian_1 1 1 1", "great_pyrenees_2 2 2 1")
    text(root / "annotations/test.txt", "Abyssinian_3 1 1 1")


def lay_out_flowers102(root: Path) -> None:
    for number in range(1, 5):
        photograph(root / f"jpg/image_{number:05}.jpg")
    savemat(root / "imagelabels.mat", {"labels": [[77, 5, 77, 5]]})
    savemat(root / "setid.mat", {"trnid": [[1, 2]], "valid": [[4]], "tstid": [[3]]})


def lay_out_fgvc_aircraft(root: Path) -> None:
    for number in ("0034309", "0034958", "1231232"):
        photograph(root / f"data/images/{number}.jpg")
    text(root / "data/images_variant_trainval.txt", "0034309 707-320", "0034958 F/A-18")
    text(root / "data/images_variant_test.txt", "1231232 707-320")
    text(root / "data/images_box.txt", "0034309 3 2 30 20", "0034958 1 1 40 30")


LAYOUTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "cub200": ("CUB_200_2011", lay_out_cub200),
    "stanford_cars": ("stanford_cars", lay_out_stanford_cars),
    "oxford_pets": ("oxford-iiit-pet", lay_out_oxford_pets),
    "flowers102": ("flowers-102", lay_out_flowers102),
    "fgvc_aircraft": ("fgvc-aircraft-2013b", lay_out_fgvc_aircraft),
}

EXPECTED = {
    "cub200": [
        ("007.Auklet/a.jpg", "007.Auklet", "train", (1, 2, 21, 12)),
        ("007.Auklet/b.jpg", "007.Auklet", "test", (0, 0, 40, 30)),
        ("030.Crow/c d.jpg", "030.Crow", "train", (5, 5, 15, 15)),
    ],
    "stanford_cars": [
        ("cars_train/00001.jpg", "Audi S4 2007", "train", (2, 1, 30, 20)),
        ("cars_train/00002.jpg", "Ram C-V Cargo Van 2012", "train", (2, 1, 30, 20)),
        ("cars_test/00001.jpg", "Ram C-V Cargo Van 2012", "test", (2, 1, 30, 20)),
    ],
    "oxford_pets": [
        ("Abyssinian_1.jpg", "Abyssinian", "train", None),
        ("great_pyrenees_2.jpg", "great_pyrenees", "train", None),
        ("Abyssinian_3.jpg", "Abyssinian", "test", None),
    ],
    "flowers102": [
        ("image_00001.jpg", "flower_077", "train", None),
        ("image_00002.jpg", "flower_005", "train", None),
        ("image_00004.jpg", "flower_005", "train", None),
        ("image_00003.jpg", "flower_077", "test", None),
    ],
    "fgvc_aircraft": [
        ("0034309.jpg", "707-320", "train", (2, 1, 30, 20)),
        ("0034958.jpg", "F/A-18", "train", (0, 0, 40, 30)),
        ("1231232.jpg", "707-320", "test", None),
    ],
}


def params(name: str, path: Path | None) -> DatasetParams:
    birds = SyntheticBirdsParams(seed=0, train_per_class=2, test_per_class=2)
    return DatasetParams(
        name=name, path=str(path) if path else "data/photographs", synthetic_birds=birds
    )


def read(name: DatasetName, folder: Path, test_fraction: float, seed: int) -> Dataset:
    """Pack a folder and read the archive, as the stages do."""
    with tempfile.TemporaryDirectory() as outside:
        pack(folder, Path(outside) / "raw.zip")
        data = read_archive(name, Path(outside) / "raw.zip", TableColumns())
        images = data.images.join(check_photographs(data.images, 1600, EXECUTION))
        if not data.listed:
            images, _ = leave_out_others(images)
        assert (images["problem"] == "").all()
        images = images.assign(group=images["image_id"])
        return replace(data, images=draw_test(images, test_fraction, seed))


def images_of(table: pd.DataFrame) -> list[tuple[str, str, str, tuple[int, ...] | None]]:
    rows = []
    for row in table.itertuples():
        box = tuple(getattr(row, name) for name in GT_BOX)
        found = None if pd.isna(box[0]) else tuple(int(value) for value in box)
        rows.append((row.image_id, row.class_name, row.split, found))
    return rows


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "its parent", "tgz", "zip"])
def test_the_publishers_layout_is_read(tmp_path: Path, name: str, form: str) -> None:
    folder, lay_out = LAYOUTS[name]
    source = tmp_path / "source" / folder
    lay_out(source)
    if form == "tgz":
        with tarfile.open(tmp_path / "set.tgz", "w:gz") as tar:
            tar.add(source, arcname=folder)
        given = tmp_path / "set.tgz"
    elif form == "zip":
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for path in source.rglob("*"):
                archive.write(path, path.relative_to(source.parent))
        given = tmp_path / "set.zip"
    else:
        given = source if form == "folder" else source.parent
    raw = tmp_path / "raw"
    folder = fetch(params(name, given), raw)
    assert images_of(read(name, folder, 0.3, 0).images) == EXPECTED[name]


def test_cub_keypoints_are_read(tmp_path: Path) -> None:
    lay_out_cub200(tmp_path)
    keypoints = read("cub200", tmp_path, 0.3, 0).keypoints
    assert keypoints.to_numpy().tolist() == [
        ["007.Auklet/a.jpg", "back", 4.5, 6.0, True],
        ["007.Auklet/a.jpg", "left eye", 0.0, 0.0, False],
        ["030.Crow/c d.jpg", "left eye", 7.0, 8.0, True],
    ]


def test_cub_without_boxes_and_parts_is_read(tmp_path: Path) -> None:
    lay_out_cub200(tmp_path)
    (tmp_path / "bounding_boxes.txt").unlink()
    (tmp_path / "parts/part_locs.txt").unlink()
    data = read("cub200", tmp_path, 0.3, 0)
    assert data.images[GT_BOX].isna().all(axis=None)
    assert len(data.keypoints) == 0


@pytest.mark.skipif(not CUB.exists(), reason="needs the real photographs, which are not here")
def test_real_photographs_are_read() -> None:
    data = read("cub200", CUB, 0.3, 0)
    assert data.images["class_name"].nunique() == 20
    assert set(data.images["split"]) == {"train", "test"}
    assert data.images[GT_BOX].notna().all(axis=None)
    assert data.keypoints["part"].nunique() == 15


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("images.txt", "15 030.Crow/e.jpg", "030.Crow/e.jpg: named in .*no such photograph"),
        ("images.txt", "15 ../../secret.jpg", "leads out of"),
        ("images.txt", "15 /etc/hostname", "leads out of"),
        ("images.txt", "15", "images.txt, line 4: expected 2 fields"),
        ("image_class_labels.txt", "15 30", "no photograph of the annotation row for '15'"),
        ("image_class_labels.txt", "3 99", "classes.txt: no name of class for '99'"),
        ("train_test_split.txt", "12 yes", "neither 0 nor 1"),
        ("bounding_boxes.txt", "15 1 1 5 5", "no photograph of the box for '15'"),
        ("bounding_boxes.txt", "3 a 1 5 5", "'a' is not a number"),
        ("bounding_boxes.txt", "3 1 1 5", "expected 5 fields"),
        ("parts/part_locs.txt", "15 1 1 1 1", "no photograph of the location for '15'"),
        ("parts/part_locs.txt", "3 9 1 1 1", "no name of part for '9'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, file: str, line: str, message: str) -> None:
    lay_out_cub200(tmp_path)
    with (tmp_path / file).open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(OpamError, match=message):
        read("cub200", tmp_path, 0.3, 0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_photograph_is_named(tmp_path: Path, name: str) -> None:
    LAYOUTS[name][1](tmp_path)
    lost = sorted(tmp_path.rglob("*.jpg"))[0]
    lost.unlink()
    with pytest.raises(OpamError, match=lost.name):
        read(name, tmp_path, 0.3, 0)


@pytest.mark.parametrize("name", [*LAYOUTS, "imagefolder"])
def test_missing_and_empty_folders_stop(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "none", "not found"), (tmp_path / "empty", "is empty")):
        with pytest.raises(OpamError, match=rf"{path.name}.*{message}"):
            fetch(params(name, path), tmp_path / "raw")
    (tmp_path / "other/thing").mkdir(parents=True)
    folder = fetch(params(name, tmp_path / "other"), tmp_path / "raw")
    with pytest.raises(OpamError):
        read(name, folder, 0.3, 0)


@pytest.mark.parametrize("name", ["cub200", "stanford_cars", "imagefolder"])
def test_sets_without_download_ask_for_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(OpamError, match=r"dataset\.path"):
        fetch(params(name, None), tmp_path / "raw")


@pytest.mark.parametrize("name", ["oxford_pets", "flowers102", "fgvc_aircraft"])
def test_downloads_are_torchvisions_and_fail_with_a_remedy(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test downloads: the loader is called with the folder, and its error is told."""
    import torchvision.datasets

    loaders = {
        "oxford_pets": "OxfordIIITPet",
        "flowers102": "Flowers102",
        "fgvc_aircraft": "FGVCAircraft",
    }
    calls = []

    def loader(root: str, download: bool) -> None:
        calls.append((root, download))
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, loaders[name], loader)
    with pytest.raises(OpamError, match=r"dataset\.path.*no network"):
        fetch(params(name, None), tmp_path / "raw")
    assert calls == [(str(tmp_path / "raw"), True)]


def class_folders(root: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        for number in range(count):
            photograph(root / name / f"{number}.jpg")


def test_imagefolder_with_train_and_test(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"b": 2, "a": 1})
    class_folders(tmp_path / "test", {"a": 1})
    (tmp_path / "train/a/notes.txt").write_text("not a photograph")
    photograph(tmp_path / "train/a/.hidden.jpg")
    assert images_of(read("imagefolder", tmp_path, 0.3, 0).images) == [
        ("train/a/0.jpg", "a", "train", None),
        ("train/b/0.jpg", "b", "train", None),
        ("train/b/1.jpg", "b", "train", None),
        ("test/a/0.jpg", "a", "test", None),
    ]


def test_one_folder_is_split_by_class_and_seed(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 10, "c": 2})
    first = read("imagefolder", tmp_path, 0.3, 0).images
    assert first[first["split"] == "test"].groupby("class_name").size().to_dict() == {
        "a": 6,
        "b": 3,
        "c": 1,
    }
    again = read("imagefolder", tmp_path, 0.3, 0).images
    other = read("imagefolder", tmp_path, 0.3, 1).images
    assert first["split"].equals(again["split"])
    assert not first["split"].equals(other["split"])


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "c").mkdir()
    with pytest.raises(OpamError, match="c/: holds no photographs"):
        read("imagefolder", tmp_path, 0.3, 0)


def test_a_single_folder_around_the_classes_does_not_count(tmp_path: Path) -> None:
    class_folders(tmp_path / "photographs", {"a": 2, "b": 2})
    (tmp_path / "photographs/c").mkdir()
    with pytest.raises(OpamError, match="photographs/c/: holds no photographs"):
        read("imagefolder", tmp_path, 0.3, 0)
    (tmp_path / "photographs/c").rmdir()
    found = read("imagefolder", tmp_path, 0.3, 0).images
    assert found["image_id"].tolist() == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"]


def test_train_without_test_stops(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"a": 2, "b": 2})
    with pytest.raises(OpamError, match="no test/"):
        read("imagefolder", tmp_path, 0.3, 0)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    photograph(tmp_path / "elsewhere/x.jpg")
    class_folders(tmp_path / "set", {"a": 2, "b": 2})
    (tmp_path / "set/a/link.jpg").symlink_to(tmp_path / "elsewhere/x.jpg")
    with pytest.raises(OpamError, match="links out of"):
        read("imagefolder", tmp_path / "set", 0.3, 0)


def test_archives_that_lead_out_are_refused(tmp_path: Path) -> None:
    photograph(tmp_path / "a.jpg")
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.write(tmp_path / "a.jpg", "../a.jpg")
    with tarfile.open(tmp_path / "out.tgz", "w:gz") as tar:
        tar.add(tmp_path / "a.jpg", arcname="../a.jpg")
    (tmp_path / "link.jpg").symlink_to("/etc/hostname")
    with tarfile.open(tmp_path / "link.tgz", "w:gz") as tar:
        tar.add(tmp_path / "link.jpg", arcname="link.jpg")
    (tmp_path / "torn.tgz").write_bytes((tmp_path / "out.tgz").read_bytes()[:40])
    for name in ("out.zip", "out.tgz", "link.tgz", "torn.tgz"):
        with pytest.raises(OpamError, match=name):
            fetch(params("imagefolder", tmp_path / name), tmp_path / "raw/deep")
    assert not (tmp_path / "raw/a.jpg").exists()
