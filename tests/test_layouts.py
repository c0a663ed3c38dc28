"""Folders and archives as people have them: read right, or told in one line; nothing vanishes."""

import struct
import subprocess
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from scipy.io import savemat
from small_project import PYTHON, preset
from test_datasets import lay_out_cub200, lay_out_stanford_cars, photograph

from opam.photographs.datasets import Dataset, DatasetName, read
from opam.photographs.datasets.layout import is_plain, split_of
from opam.photographs.datasets.source import take_over
from opam.photographs.datasets.table_rows import TableColumns
from opam.photographs.decoding.archive import pack, read_file
from opam.photographs.preparation import draw_test
from opam.pipeline.artifacts import GT_BOX, read_json, read_table
from opam.pipeline.errors import OpamError

ROOT = Path(__file__).parents[1]
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def lay_out(root: Path, *names: str) -> Path:
    for name in names:
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
        elif name.endswith(".jpg"):
            photograph(root / name)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("no photograph")
    return root


def classes(*folders: str) -> list[str]:
    """Two classes of one photograph in each of the folders."""
    return [f"{folder}{name}/0.jpg" for folder in folders for name in ("finch", "wren")]


def listed(folder: Path, tmp_path: Path, name: DatasetName = "imagefolder") -> Dataset:
    pack(folder, tmp_path / "packed.zip")
    return read(name, tmp_path / "packed.zip", TableColumns())


SPLITS = {
    "another case": (["Train/", "TEST/"], ["train", "test"]),
    "training and testing": (["training/", "Testing/"], ["train", "test"]),
    "a prefix": (["seg_train/", "seg_test/"], ["train", "test"]),
    "a prefix of their own": (["birds-train/", "birds-test/"], ["train", "test"]),
    "a suffix": (["train_set/", "test_set/"], ["train", "test"]),
    "words": (["Training Set/", "my-test/"], ["train", "test"]),
    "capitals": (["TrainImages/", "TestImages/"], ["train", "test"]),
    "a year": (["train2017/", "val2017/", "test2017/"], ["train", "val", "test"]),
    "trainval": (["trainval/", "test/"], ["train", "test"]),
    "val": (["train/", "val/", "test/"], ["train", "val", "test"]),
    "valid": (["train/", "valid/", "test/"], ["train", "val", "test"]),
    "validation": (["Train/", "Validation/", "Test/"], ["train", "val", "test"]),
    "doubled": (["seg_train/seg_train/", "seg_test/seg_test/"], ["train", "test"]),
    "one doubled": (["train/", "test/test/"], ["train", "test"]),
    "images in them": (["train/images/", "test/images/"], ["train", "test"]),
    "wrapped": (["birds-main/train/", "birds-main/test/"], ["train", "test"]),
    "wrapped twice": (["a/b/train/", "a/b/test/"], ["train", "test"]),
    "wrapped in their words": (["train_test_split/train/", "train_test_split/test/"], None),
    "wrapped in one word": (["test/train/", "test/test/"], ["train", "test"]),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_are_known_by_their_words(tmp_path: Path, name: str) -> None:
    folders, splits = SPLITS[name]
    data = listed(lay_out(tmp_path / "set", *classes(*folders)), tmp_path)
    assert sorted(data.images["class_name"].unique()) == ["finch", "wren"]
    assert data.images["split"].tolist() == list(np.repeat(splits or ["train", "test"], 2))
    assert data.skipped.empty
    for split in splits or ():
        assert f"{split} from " in data.layout


CLASSES = {
    "plain": ["finch", "wren"],
    "words in other words": ["testudo", "valley_wren", "trainbearer"],
    "a split's word in one": ["train_horn", "wren"],
    "a split's word in all": ["train_horn", "train_whistle", "test_tone"],
    "several words": ["train_test", "wren"],
}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("around", ["", "photographs/", "a/b/", "train/"])
def test_class_names_are_no_splits(tmp_path: Path, name: str, around: str) -> None:
    folders = [f"{around}{each}/0.jpg" for each in CLASSES[name]]
    if around == "train/":
        folders += [each.replace("train/", "test/", 1) for each in folders]
    data = listed(lay_out(tmp_path / "set", *folders), tmp_path)
    assert sorted(data.images["class_name"].unique()) == sorted(CLASSES[name])
    assert data.images["split"].notna().all() == (around == "train/")


REFUSED = {
    "a copy in a class folder": (
        [*classes(""), *classes("Birds/")],
        r"Birds/: a class folder that holds only folders \(finch/, wren/\)",
    ),
    "splits in class folders": (
        ["finch/train/0.jpg", "finch/test/0.jpg", "wren/train/0.jpg", "wren/test/0.jpg"],
        r"finch/: a class folder that holds only folders \(test/, train/\); expected are",
    ),
    "years in class folders": (
        ["finch/2019/0.jpg", "finch/2020/0.jpg", "wren/2019/0.jpg"],
        "finch/: a class folder that holds only folders",
    ),
    "a folder beside photographs": (
        ["finch/0.jpg", "finch/more/1.jpg", "wren/0.jpg"],
        r"finch/: a class folder that holds 1 files and folders beside them \(more/\)",
    ),
    "train beside classes": (
        [*classes("train/"), "finch/0.jpg"],
        "train/: is named as the train split, beside the folders finch/; expected",
    ),
    "train of files beside classes": (
        [*classes(""), "train/0.jpg"],
        "train/: is named as the train split, beside the folders finch/, wren/",
    ),
    "another folder beside splits": (
        [*classes("train/", "test/"), "seg_pred/0.jpg"],
        "is named as the (test|train) split, beside the folders seg_pred/",
    ),
    "splits without classes": (
        ["train/0.jpg", "test/0.jpg"],
        "test/: is named as the test split, but holds no class folders",
    ),
    "named splits without classes": (
        ["birds_train/0.jpg", "birds_test/0.jpg"],
        "birds_test/: is named as the test split, but holds no class folders",
    ),
    "test without classes": (
        [*classes("train/"), "test/0.jpg"],
        "test/: is named as the test split, but holds no class folders",
    ),
    "an empty val": (
        [*classes("train/", "test/"), "val/"],
        "val/: is named as the val split, but holds no class folders",
    ),
    "splits in a split": (
        classes("train/train/", "train/val/", "test/"),
        "train/train/: is named as the train split, where classes are expected",
    ),
    "two trains": (
        classes("train/", "training/", "test/"),
        "'train' and 'training' are both named as the train split; keep one",
    ),
    "val twice": (
        classes("trainval/", "val/", "test/"),
        "trainval/ says that it holds val too",
    ),
    "no test": (classes("train/"), "has train/ but no test/; add it"),
    "val for test": (
        classes("train/", "valid/"),
        r"has train/, valid/ but no test/; add it, or rename valid/ to test/: val is then drawn",
    ),
    "no train": (classes("val/", "test/"), "has test/, val/ but no train/"),
    "no folders": (["0.jpg", "1.jpg"], "holds no class folders"),
    "backslashes in names": (["finch\\0.jpg", "wren\\0.jpg"], "backslashes in their names"),
    "case": (
        ["Wren/0.jpg", "wren/0.jpg"],
        "classes 'Wren' and 'wren' differ only in case",
    ),
    "case across splits": (
        ["train/Wren/0.jpg", "train/finch/0.jpg", "test/wren/0.jpg"],
        "classes 'Wren' and 'wren' differ only in case",
    ),
    "a class of hidden files": (["finch/0.jpg", "wren/.0.jpg"], "wren/: holds no photographs"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("around", ["", "photographs/"])
def test_what_could_mean_two_things_is_told_in_one_line(
    tmp_path: Path, name: str, around: str
) -> None:
    names, message = REFUSED[name]
    if name == "no folders" and around:
        pytest.skip("is one class folder")
    folder = lay_out(tmp_path / "set", *(around + each for each in names))
    with pytest.raises(OpamError, match=message) as caught:
        listed(folder, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split", "plain"),
    [
        ("Train", "train", True),
        ("TrainingSet", "train", True),
        ("train_val", "train", True),
        ("seg_train", "train", True),
        ("val2017", "val", True),
        ("the validation photos", "val", True),
        ("birds-test", "test", False),
        ("train_test_split", None, False),
        ("testudo", None, False),
        ("testé", None, False),
        ("contest", None, False),
        ("2017", None, False),
    ],
)
def test_a_split_is_a_whole_word(name: str, split: str | None, plain: bool) -> None:
    assert split_of(name) == split
    assert is_plain(name) == plain


def test_every_file_left_out_is_listed(tmp_path: Path) -> None:
    folder = lay_out(
        tmp_path / "set",
        *classes("birds/train/", "birds/test/"),
        *("LICENSE", "birds/README.md", "birds/train/cover.jpg", "birds/train/.DS_Store"),
        *("birds/train/wren/@eaDir/0.jpg", "birds/train/wren/Thumbs.db", "__MACOSX/birds/x.jpg"),
        "birds/.ipynb_checkpoints/a/0.jpg",
    )
    data = listed(folder, tmp_path)
    assert len(data.images) == 4
    reasons = dict(zip(data.skipped["path"], data.skipped["reason"], strict=True))
    hidden = "hidden, or a program's own file"
    assert reasons == {
        "LICENSE": "no photograph is expected there",
        "birds/README.md": "no photograph is expected there",
        "birds/train/cover.jpg": "no photograph is expected there",
        "birds/train/.DS_Store": hidden,
        "birds/train/wren/@eaDir/0.jpg": hidden,
        "birds/train/wren/Thumbs.db": hidden,
        "__MACOSX/birds/x.jpg": hidden,
        "birds/.ipynb_checkpoints/a/0.jpg": hidden,
    }


def test_photographs_that_annotations_do_not_list_are_listed(tmp_path: Path) -> None:
    lay_out_cub200(tmp_path / "a/CUB_200_2011")
    photograph(tmp_path / "a/CUB_200_2011/images/007.Auklet/new.jpg")
    data = listed(tmp_path / "a", tmp_path, "cub200")
    assert data.skipped.to_numpy().tolist() == [
        ["CUB_200_2011/images/007.Auklet/new.jpg", "the annotations do not list it"]
    ]


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path: Path) -> None:
    assert NFC != NFD
    names = [f"train/{NFC}/0.jpg", "train/wren/0.jpg", f"test/{NFD}/0.jpg", f"train/{NFD}/1.jpg"]
    data = listed(lay_out(tmp_path / "set", *names), tmp_path)
    assert sorted(data.images["class_name"].unique()) == [NFC, "wren"]
    assert data.images["image_id"].tolist() == [
        *(f"train/{NFC}/{number}.jpg" for number in (0, 1)),
        "train/wren/0.jpg",
        f"test/{NFC}/0.jpg",
    ]
    lay_out(tmp_path / "set", f"train/{NFD}/0.jpg")
    with pytest.raises(OpamError, match="there twice, in two Unicode forms"):
        listed(tmp_path / "set", tmp_path)


def test_annotations_in_another_unicode_form_match_their_files(tmp_path: Path) -> None:
    lay_out_cub200(tmp_path / "set")
    for path in (tmp_path / "set").glob("*.txt"):
        path.write_text(path.read_text().replace("Auklet", NFC))
    (tmp_path / "set/images/007.Auklet").rename(tmp_path / f"set/images/007.{NFD}")
    images = listed(tmp_path / "set", tmp_path, "cub200").images
    assert images["image_id"].tolist()[0] == f"007.{NFC}/a.jpg"
    assert images["class_name"].tolist()[0] == f"007.{NFC}"
    assert images[GT_BOX].notna().all(axis=None)


def zip_of(path: Path, names: list[bytes], flag: int = 0, extra: bool = False) -> Path:
    """A zip whose members have just these bytes as names; with Info-ZIP's field of the name."""
    drawn = path.parent / "drawn.jpg"
    photograph(drawn)
    with zipfile.ZipFile(path, "w") as to:
        for number, name in enumerate(names):
            member = zipfile.ZipInfo(f"{number:x}" * len(name))
            if extra:
                text = name.decode("cp932").encode()
                field = struct.pack("<BL", 1, zlib.crc32(name)) + text
                member.extra = struct.pack("<HH", 0x7075, len(field)) + field
            to.writestr(member, drawn.read_bytes())
    content = path.read_bytes()
    for number, name in enumerate(names):
        content = content.replace((f"{number:x}" * len(name)).encode(), name)
    for mark, at in ((b"PK\x03\x04", 2), (b"PK\x01\x02", 4)):  # where the flags are
        first, *rest = content.split(mark)
        flagged = (part[:at] + struct.pack("<H", flag) + part[at + 2 :] for part in rest)
        content = mark.join([first, *flagged])
    path.write_bytes(content)
    return path


JAPANESE = "すずめ"
ZIPS: dict[str, tuple[list[bytes], int, bool, list[str]]] = {
    "backslashes": ([b"wren\\10.jpg", b"finch\\10.jpg"], 0, False, ["finch", "wren"]),
    "UTF-8 by its flag": (
        [f"{NFC}/10.jpg".encode(), b"wren/10.jpg"],
        0x800,
        False,
        [NFC, "wren"],
    ),
    "UTF-8 without a flag, as macOS": (
        [f"{NFD}/10.jpg".encode(), f"{JAPANESE}/10.jpg".encode()],
        0,
        False,
        [NFC, JAPANESE],
    ),
    "CP437": (
        [f"{NFC}/10.jpg".encode("cp437"), "grünfink/10.jpg".encode("cp437")],
        0,
        False,
        [NFC, "grünfink"],
    ),
    "Info-ZIP's field": (
        [f"{JAPANESE}/10.jpg".encode("cp932"), "カラス/10.jpg".encode("cp932")],
        0,
        True,
        [JAPANESE, "カラス"],
    ),
}


@pytest.mark.parametrize("name", ZIPS)
def test_names_in_zips_are_read_right(tmp_path: Path, name: str) -> None:
    members, flag, extra, expected = ZIPS[name]
    source = zip_of(tmp_path / "set.zip", members, flag, extra)
    data = listed(take_over(source, tmp_path / "raw"), tmp_path)
    assert sorted(data.images["class_name"]) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("すずめ", "cp932"),
        ("カラス", "cp932"),
        ("雀", "cp932"),
        ("麻雀", "gbk"),
        ("山雀", "big5"),
        ("참새", "cp949"),
        ("воробей", "cp866"),
        ("ДРОЗД", "cp866"),
        ("воробей", "cp1251"),
        ("café", "cp1252"),
    ],
)
def test_names_in_an_unknown_encoding_are_told(tmp_path: Path, text: str, encoding: str) -> None:
    names = [f"{text}/10.jpg".encode(encoding), b"wren/10.jpg"]
    source = zip_of(tmp_path / "set.zip", names)
    with pytest.raises(OpamError, match=r"set\.zip: .*encoding that it does not state") as caught:
        take_over(source, tmp_path / "raw")
    assert "\n" not in str(caught.value)


def test_members_that_lead_out_by_backslashes_are_refused(tmp_path: Path) -> None:
    source = zip_of(tmp_path / "set.zip", [b"..\\10.jpg"])
    with pytest.raises(OpamError, match="leads out"):
        take_over(source, tmp_path / "raw/deep")
    source = zip_of(tmp_path / "set.zip", [b"wren\\10.jpg", b"wren/10.jpg"])
    with pytest.raises(OpamError, match=r"two of its members read 'wren/10\.jpg'"):
        take_over(source, tmp_path / "raw/deep")


def test_a_tars_names_that_are_no_text_are_told(tmp_path: Path) -> None:
    photograph(tmp_path / "0.jpg")
    with tarfile.open(
        tmp_path / "set.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        tar.add(tmp_path / "0.jpg", arcname="café/0.jpg")
    with pytest.raises(OpamError, match=r"set\.tar: .*not UTF-8 text"):
        take_over(tmp_path / "set.tar", tmp_path / "raw")


def double(root: Path) -> None:
    lay_out_stanford_cars(root)
    for name in ("cars_train", "cars_test"):
        (root / name).rename(root / "moved")
        (root / name).mkdir()
        (root / "moved").rename(root / name / name)


def labels_in_devkit(root: Path) -> None:
    double(root)
    name = "cars_test_annos_withlabels"
    (root / f"{name}.mat").rename(root / f"devkit/{name} (1).mat")
    (root / "devkit").rename(root / "moved")
    (root / "car_devkit").mkdir()
    (root / "moved").rename(root / "car_devkit/devkit")
    (root / "cars_train/readme.txt").write_text("no photograph")


@pytest.mark.parametrize("mirror", [double, labels_in_devkit])
@pytest.mark.parametrize("around", ["", "archive/stanford cars"])
def test_mirrors_of_stanford_cars_are_read(
    tmp_path: Path, mirror: Callable[[Path], None], around: str
) -> None:
    lay_out_stanford_cars(tmp_path / "publisher's")
    expected = listed(tmp_path / "publisher's", tmp_path, "stanford_cars").images
    mirror(tmp_path / "set" / around)
    found = listed(tmp_path / "set", tmp_path, "stanford_cars").images
    pd.testing.assert_frame_equal(found.drop(columns="path"), expected.drop(columns="path"))
    assert all(read_file(path) for path in found["path"])


def test_stanford_cars_in_class_folders_are_read(tmp_path: Path) -> None:
    names = [
        f"car_data/car_data/{split}/{name}/0.jpg"
        for split in ("train", "test")
        for name in ("Audi S4 2007", "Ram C-V Cargo Van 2012")
    ]
    lay_out(tmp_path / "set", *names, "names.csv", "anno_train.csv", "anno_test.csv")
    data = listed(tmp_path / "set", tmp_path, "stanford_cars")
    assert data.images["split"].tolist() == ["train", "train", "test", "test"]
    assert set(data.images["class_name"]) == {"Audi S4 2007", "Ram C-V Cargo Van 2012"}
    assert set(data.skipped["path"]) == {"names.csv", "anno_train.csv", "anno_test.csv"}


def test_stanford_cars_in_no_known_layout_are_told(tmp_path: Path) -> None:
    lay_out(tmp_path / "set", "car_ims/0.jpg")
    savemat(tmp_path / "set/cars_annos.mat", {"annotations": np.zeros(1)})
    with pytest.raises(OpamError, match=r"cars_meta\.mat not found; a folder with cars_train/"):
        listed(tmp_path / "set", tmp_path, "stanford_cars")
    (tmp_path / "set/cars_annos.mat").unlink()
    lay_out(tmp_path / "set", "more/a/0.jpg", "more/b/0.jpg")
    with pytest.raises(OpamError, match=r"neither cars_train/.* nor train/ and test/"):
        listed(tmp_path / "set", tmp_path, "stanford_cars")


def run_stages(folder: Path, source: str, **dataset: object) -> subprocess.CompletedProcess[str]:
    """`fetch_data`, then `prepare`, as scripts; the last one that ran."""
    params = preset("imagefolder")
    params["dataset"] |= {"path": source, **dataset}
    params["execution"]["workers"] = 1
    params["fusion"]["folds"] = 2
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("fetch_data", "prepare"):
        script = [PYTHON, str(ROOT / f"stages/{name}.py")]
        done = subprocess.run(script, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            break
    return done


def test_content_decides_and_prepare_says_what_it_found(tmp_path: Path) -> None:
    folder = lay_out(
        tmp_path / "set",
        *(f"train/{name}/{number}.jpg" for name in ("finch", "wren") for number in range(4)),
        *(f"{split}/{name}/9.jpg" for split in ("valid", "test") for name in ("finch", "wren")),
        *("train/wren/notes.txt", "train/wren/.hidden.jpg", "train/wren/page.jpeg", "README.md"),
    )
    pixels = Image.new("RGB", (40, 30), (90, 120, 60))
    for name, kind in (("a.jfif", "JPEG"), ("b.gif", "GIF"), ("c", "PNG"), ("d.txt", "WEBP")):
        pixels.save(folder / "train/wren" / name, format=kind)
    done = run_stages(tmp_path / "run", str(folder))
    assert done.returncode == 0, done.stderr
    manifest = read_table(tmp_path / "run/data/manifest.parquet", "manifest")
    endings = {f"train/wren/{name}" for name in ("a.jfif", "b.gif", "c", "d.txt")}
    assert endings <= set(manifest["image_id"])
    assert manifest.groupby("split").size().to_dict() == {"test": 2, "train": 12, "val": 2}
    assert set(manifest.loc[manifest["split"] == "val", "image_id"]) == {
        "valid/finch/9.jpg",
        "valid/wren/9.jpg",
    }
    skipped = pd.read_csv(tmp_path / "run/data/skipped.csv")
    assert skipped[["path", "reason"]].to_numpy().tolist() == [
        ["README.md", "no photograph is expected there"],
        ["train/wren/.hidden.jpg", "hidden, or a program's own file"],
        ["train/wren/notes.txt", "no photograph"],
        ["train/wren/page.jpeg", "no photograph"],
    ]
    for line in (
        "2 classes, from 'finch' to 'wren'; the smallest is 'finch' (6 photographs), the largest "
        "'wren' (10)",
        "train: 12 photographs of 2 classes",
        "val: 2 photographs of 2 classes, as given",
        "test: 2 photographs of 2 classes, as given",
        "1 (hidden, or a program's own file), 2 (no photograph), 1 (no photograph is expected",
    ):
        assert line in done.stdout
    assert read_table(tmp_path / "run/data/coarse_labels.parquet", "coarse_labels").empty
    assert read_json(tmp_path / "run/data/classes.json") == ["finch", "wren"]


def test_a_class_folder_without_photographs_stops(tmp_path: Path) -> None:
    lay_out(tmp_path / "set", *classes("train/", "test/"), "train/owl/notes.txt")
    done = run_stages(tmp_path / "run", str(tmp_path / "set"))
    assert done.returncode == 1
    assert "class 'owl': no file in its folder is a photograph" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_no_photograph_changes_no_split(tmp_path: Path) -> None:
    names = [f"{name}/{number}.jpg" for name in ("finch", "wren") for number in range(9)]
    lay_out(tmp_path / "set", *names)
    manifests = []
    for run in ("first", "second"):
        assert run_stages(tmp_path / run, str(tmp_path / "set")).returncode == 0
        manifests.append((tmp_path / run / "data/manifest.parquet").read_bytes())
        lay_out(tmp_path / "set", "finch/0.txt", "wren/notes", "finch/.DS_Store", "README")
    assert manifests[0] == manifests[1]


def test_a_hidden_file_more_runs_nothing_again(tmp_path: Path) -> None:
    """It is listed, but not packed: what all stages depend on stays as it is."""
    source, run = tmp_path / "set", tmp_path / "run"
    lay_out(source, *(f"{name}/{n}.jpg" for name in ("finch", "wren") for n in range(9)))
    packed = []
    for hidden in ((), ("finch/.DS_Store", "wren/@eaDir/0.jpg", "Thumbs.db")):
        lay_out(source, *hidden)
        assert run_stages(run, str(source)).returncode == 0
        packed.append((run / "data/raw.zip").read_bytes())
        skipped = pd.read_csv(run / "data/skipped.csv")
        assert skipped["path"].tolist() == sorted(hidden)
    assert packed[0] == packed[1]


def test_a_set_without_splits_gets_a_test_split_and_others_do_not(tmp_path: Path) -> None:
    lay_out(tmp_path / "set", *(f"{name}/{n}.jpg" for name in ("a", "b") for n in range(10)))
    images = listed(tmp_path / "set", tmp_path).images
    assert images["split"].isna().all()
    own = images["image_id"].map(lambda name: f"of {name}")
    images = images.assign(group=images["image_id"], sha256=own)
    drawn = draw_test(images, 0.3, 0)
    assert drawn.groupby(["class_name", "split"]).size().tolist() == [3, 7, 3, 7]
    pd.testing.assert_frame_equal(draw_test(drawn, 0.5, 1), drawn)
    assert not draw_test(images, 0.3, 1)["split"].equals(drawn["split"])


def test_other_classes_leave_a_photograph_in_its_split() -> None:
    names = np.repeat([*"bcd"], 10)
    images = pd.DataFrame({"class_name": names, "sha256": [f"{n:064x}" for n in range(30)]})
    images = images.assign(split=None, group=np.arange(30))

    def of_test(images: pd.DataFrame) -> set[str]:
        drawn = draw_test(images, 0.3, 0)
        return {*drawn.loc[drawn["split"] == "test", "sha256"]}

    before = of_test(images)
    assert len(before) == 9
    new = images.iloc[:7].assign(class_name="a", sha256=[f"new {n}" for n in range(7)])
    assert of_test(pd.concat([new.assign(group=np.arange(40, 47)), images])) >= before
    assert of_test(images.replace({"class_name": {"b": "z"}})) == before  # the last one now
    assert of_test(images[images["class_name"] != "c"]) == before & {
        *images["sha256"].drop(range(10, 20))
    }


@pytest.mark.parametrize("form", ["home", "relative"])
def test_a_path_from_the_home_folder_or_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    names = [f"birds/{name}/{number}.jpg" for name in ("finch", "wren") for number in range(4)]
    lay_out(tmp_path / "set", *names)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run_stages(tmp_path / "run", "~/set" if form == "home" else "../set")
    assert done.returncode == 0, done.stderr
    assert "2 classes, from 'finch' to 'wren'" in done.stdout
