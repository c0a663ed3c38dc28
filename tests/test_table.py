"""Labels in a table: columns found or named, rows checked all at once, only what it lists."""

import json
import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from test_datasets import params, photograph
from test_layouts import NFC, NFD, run_stages

from opam.photographs.datasets import Dataset, fetch, read
from opam.photographs.datasets.table_rows import TableColumns, parse
from opam.photographs.decoding.archive import pack
from opam.pipeline.artifacts import GT_BOX, read_json, read_table
from opam.pipeline.errors import OpamError

ROWS = [
    ("a/0.jpg", "007", "train"),
    ("a/1.jpg", "007", "Validation"),
    ("b/0.jpg", "wren", "training"),
    ("b/1.jpg", "wren", "TEST"),
]


def table_of(*rows: tuple[str, ...], header: str = "image,label,split", by: str = ",") -> str:
    lines = [header.split(","), *rows]
    return "".join(by.join(line) + "\n" for line in lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, *_ in ROWS:
        photograph(tmp_path / "set" / name)
    photograph(tmp_path / "set/b/unlisted.jpg")
    return tmp_path / "set"


def listed(source: Path, tmp_path: Path, **columns: object) -> Dataset:
    """Fetch, pack and read, as the stages do."""
    chosen = TableColumns.model_validate(columns)
    given = params("table", source).model_copy(update={"columns": chosen})
    pack(fetch(given, tmp_path / "raw"), tmp_path / "packed.zip")
    return read("table", tmp_path / "packed.zip", chosen)


def said(data: Dataset) -> list[tuple[str, ...]]:
    return list(data.images[["image_id", "class_name", "split"]].itertuples(index=False, name=None))


EXPECTED = [
    ("a/0.jpg", "007", "train"),
    ("a/1.jpg", "007", "val"),
    ("b/0.jpg", "wren", "train"),
    ("b/1.jpg", "wren", "test"),
]


def test_a_photograph_that_may_be_meant_is_named_only_where_there_is_one(tmp_path: Path) -> None:
    """Else a wrong label would be advised: names repeat from class to class."""
    for name in ("finch/0.jpg", "tit/0.jpg", "tit/1.jpg", "finch/7.jpg", "tit/7.png"):
        photograph(tmp_path / "set" / name)
    for row, told in (
        ("finch/0.JPG", "but there is 'finch/0.jpg'"),
        ("FINCH/0.JPG", "but there is 'finch/0.jpg'"),
        ("1.jpg", "but there is 'tit/1.jpg'"),
        ("0.jpg", None),
        ("wren/7.jpg", None),
    ):
        (tmp_path / "set/birds.csv").write_text(table_of((row, "x", "train")))
        with pytest.raises(OpamError) as caught:
            listed(tmp_path / "set", tmp_path)
        assert "no photograph" in str(caught.value)
        assert (told or "but there is") in str(caught.value) or told is None
        assert told is not None or "but there is" not in str(caught.value)


@pytest.mark.parametrize("by", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("form", ["folder", "its parent", "zip"])
def test_a_table_is_read_wherever_it_lies(
    folder: Path, tmp_path: Path, by: str, start: str, form: str
) -> None:
    (folder / "birds.csv").write_text(start + table_of(*ROWS, by=by), encoding="utf-8")
    source = {"folder": folder, "its parent": tmp_path}.get(form)
    if source is None:
        source = tmp_path / "birds.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in folder.rglob("*"):
                archive.write(path, path.relative_to(tmp_path))
    outside = tmp_path if form != "its parent" else tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir(exist_ok=True)
    data = listed(source, outside)
    assert said(data) == EXPECTED
    assert data.images["group"].isna().all()
    assert data.coarse_labels.empty
    assert len(data.skipped) == 1


def test_parquet_says_the_same(folder: Path, tmp_path: Path) -> None:
    table = pd.DataFrame(ROWS, columns=["image", "label", "split"]).assign(
        label=pd.Categorical(["7", "7", "wren", "wren"]), x0=[1, None, None, None]
    )
    table = table.assign(y0=table["x0"], x1=table["x0"] * 9, y1=table["x0"] * 8.5)
    table.to_parquet(folder / "birds.parquet")
    data = listed(folder, tmp_path)
    assert data.images["class_name"].tolist() == ["7", "7", "wren", "wren"]
    assert data.images[GT_BOX].iloc[0].tolist() == [1, 1, 9, 8]
    assert data.images[GT_BOX].iloc[1:].isna().all(axis=None)


@pytest.mark.parametrize(
    ("numbers", "text"), [([7, 7, 12, 12], ["7", "12"]), ([7.0, None, 12.0, 12.0], ["7", "12"])]
)
def test_whole_numbers_in_parquet_are_labels(
    folder: Path, numbers: list[float], text: list[str]
) -> None:
    pd.DataFrame({"image": [row[0] for row in ROWS], "label": numbers}).to_parquet(
        folder / "birds.parquet"
    )
    cells = parse(folder / "birds.parquet", (folder / "birds.parquet").read_bytes())
    assert list(dict.fromkeys(label for label in cells["label"] if label)) == text


def test_columns_of_parquet_that_hold_no_text_are_none(folder: Path, tmp_path: Path) -> None:
    pictures = [{"bytes": b"\xff\xd8", "path": row[0]} for row in ROWS]
    table = pd.DataFrame({"image": pictures, "label": [row[1] for row in ROWS]})
    table.to_parquet(folder / "birds.parquet")
    with pytest.raises(OpamError, match="has no column 'image', but label; name it"):
        listed(folder, tmp_path)


@pytest.mark.parametrize("label", ["007", "1.0", "NA", "null", "None", "nan", "True", "1e3", "ζ 1"])
def test_labels_keep_their_text(folder: Path, tmp_path: Path, label: str) -> None:
    rows = [(name, label if cls == "wren" else cls, split) for name, cls, split in ROWS]
    (folder / "birds.csv").write_text(table_of(*rows))
    assert set(listed(folder, tmp_path).images["class_name"]) == {"007", label}


@pytest.mark.parametrize(
    "header",
    [
        "Image,LABEL,Split",
        "filename,class,set",
        "File Name,class_name,subset",
        "path,Category,partition",
        "image_path,species,split",
        "file,label,split",
        " image , label , split ",
    ],
)
def test_columns_are_found_by_their_usual_names(folder: Path, tmp_path: Path, header: str) -> None:
    (folder / "birds.csv").write_text(table_of(*ROWS, header=header))
    data = listed(folder, tmp_path)
    assert said(data) == EXPECTED
    assert f"label from {header.split(',')[1].strip()}" in data.layout


def test_columns_that_params_name_come_first(folder: Path, tmp_path: Path) -> None:
    rows = [(name, "x", cls, "y", split) for name, cls, split in ROWS]
    (folder / "birds.csv").write_text(table_of(*rows, header="foto,label,art,split,teil"))
    data = listed(folder, tmp_path, image="foto", label="art", split="teil")
    assert said(data) == EXPECTED


def test_groups_boxes_and_coarser_labels_are_read(folder: Path, tmp_path: Path) -> None:
    header = "image,label,split,group,xmin,ymin,xmax,ymax,label_2,label_1"
    more = [
        ("burst 1", "1", "2", "30.4", "20", "animal", "gull"),
        ("burst 1", "", "", "", "", "animal", "gull"),
        ("", "0", "0", "40", "30", "animal", ""),
        ("2", "", "", "", "", "animal", ""),
    ]
    rows = [(*row, *rest) for row, rest in zip(ROWS, more, strict=True)]
    (folder / "birds.csv").write_text(table_of(*rows, header=header))
    data = listed(folder, tmp_path)
    assert data.images["group"].where(data.images["group"].notna(), "").tolist() == [
        "burst 1",
        "burst 1",
        "",
        "2",
    ]
    assert data.images[GT_BOX].iloc[[0, 2]].to_numpy().tolist() == [[1, 2, 30, 20], [0, 0, 40, 30]]
    assert data.images[GT_BOX].iloc[[1, 3]].isna().all(axis=None)
    coarse = data.coarse_labels.sort_values(["image_id", "level"])
    assert coarse.to_numpy().tolist() == [
        ["a/0.jpg", 1, "gull"],
        ["a/0.jpg", 2, "animal"],
        ["a/1.jpg", 1, "gull"],
        ["a/1.jpg", 2, "animal"],
        ["b/0.jpg", 2, "animal"],
        ["b/1.jpg", 2, "animal"],
    ]
    named = listed(folder, tmp_path, coarse=["label_2"], box=["xmin", "ymin", "xmax", "ymax"])
    assert set(named.coarse_labels["level"]) == {1}


def test_names_in_another_unicode_form_and_with_backslashes_match(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "a").rename(folder / NFD)
    rows = [(name.replace("a/", f".\\{NFC}\\"), cls, split) for name, cls, split in ROWS]
    for source in (folder, folder.parent):
        (folder / "birds.csv").write_text(table_of(*rows))
        assert said(listed(source, tmp_path))[0] == (f"{NFC}/0.jpg", "007", "train")


WRONG = [
    ("a/none.jpg", "wren", "train", "line 6: no photograph 'a/none.jpg'"),
    ("unlisted.jpg", "wren", "train", "line 7: .*'unlisted.jpg', but there is 'b/unlisted.jpg'"),
    ("unlisted", "wren", "train", "line 8: .*'unlisted', but there is 'b/unlisted.jpg'"),
    ("a/0.jpg", "007", "train", "line 9: 'a/0.jpg' is listed in line 2 already"),
    ("a\\1.jpg", "wren", "test", "line 10: .* is listed in line 3 already"),
    ("../set/b/0.jpg", "wren", "train", "line 11: .* leads out of the table's folder"),
    ("/etc/hostname", "wren", "train", "line 12: .* leads out"),
    ("", "wren", "train", "line 13: no image"),
    ("b/unlisted.jpg", "", "learn", "line 14: no label"),
    ("b/0.jpg", "wren", "", "line 15: split '' is none of train, val, test"),
]


def test_everything_wrong_in_its_rows_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    (folder / "birds.csv").write_text(table_of(*ROWS, *(row[:3] for row in WRONG)))
    done = run_stages(tmp_path / "run", str(folder), name="table")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for *_, message in WRONG:
        assert re.search(message, done.stderr), message
    assert "line 14: split 'learn' is none of" in done.stderr
    assert not (tmp_path / "run/data/raw.zip").exists()


@pytest.mark.parametrize(
    "box", ["5,5,5,9", "9,5,5,9", "1,2,3,", "a,1,2,3", "nan,1,2,3", "1,1,1.2,9", "0,0,1e12,4"]
)
def test_a_box_that_is_none_is_told(folder: Path, tmp_path: Path, box: str) -> None:
    rows = [(name, cls, "1", "1", "9", "9") for name, cls, _ in ROWS[1:]]
    rows.append(("a/0.jpg", "007", *box.split(",")))
    (folder / "birds.csv").write_text(table_of(*rows, header="image,label,x0,y0,x1,y1"))
    with pytest.raises(OpamError, match=r"1 wrong in its rows.*\n  line 5: .*is no box"):
        listed(folder, tmp_path)


def test_boxes_in_fractions_are_told(folder: Path, tmp_path: Path) -> None:
    rows = [(*row[:2], "0.1", "0.2", "0.8", "0.9") for row in ROWS]
    (folder / "birds.csv").write_text(table_of(*rows, header="ImageID,label,XMin,YMin,XMax,YMax"))
    with pytest.raises(OpamError, match=r"between 0 and 1: fractions, and pixels are expected"):
        listed(folder, tmp_path, image="ImageID")


def test_boxes_outside_their_photographs_are_told(folder: Path, tmp_path: Path) -> None:
    rows = [(name, cls, split, "0", "0", "9", "9") for name, cls, split in ROWS[:3]]
    rows.append((*ROWS[3], "50", "40", "60", "60"))
    (folder / "birds.csv").write_text(table_of(*rows, header="image,label,split,x0,y0,x1,y1"))
    done = run_stages(tmp_path / "run", str(folder), name="table")
    assert done.returncode == 1
    assert "1 boxes lie outside their photographs; correct them\n  b/1.jpg" in done.stderr


def test_one_class_in_two_coarser_ones_is_told(folder: Path, tmp_path: Path) -> None:
    rows = [(name, cls, coarse) for (name, cls, _), coarse in zip(ROWS, "xxxy", strict=True)]
    (folder / "birds.csv").write_text(table_of(*rows, header="image,label,label_1"))
    with pytest.raises(OpamError, match="label 'wren': label_1 is 'x' in one row and 'y' in"):
        listed(folder, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "birds.csv: is empty"),
        ("image,label\n", "birds.csv: holds no rows"),
        ("image\na/0.jpg\n", "has no column 'label', but image; name it in dataset.columns.label"),
        ("label,size\nwren,1\n", "has no column 'image', but label, size"),
        ("image,class,species\na/0.jpg,1,2\n", "'class' and 'species' may both be the column"),
        ("image,label,label\na/0.jpg,1,2\n", "column 'label' is there twice"),
        ("image,label,x0,y0\na/0.jpg,1,2,3\n", "of the box's columns x0, y0, x1, y1 only x0, y0"),
        ("image,label,label_2\na/0.jpg,1,2\n", "label_1 to label_2 are not all there"),
        ("image,label\na/0.jpg,1,2\nb/0.jpg\n", r"2 wrong.*\n  line 2: 3 fields, not 2\n  line 3"),
        ('image,label\n"a/0.jpg,1\n', "birds.csv, line 2: cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used_is_told(
    folder: Path, tmp_path: Path, content: str, message: str
) -> None:
    (folder / "birds.csv").write_text(content)
    with pytest.raises(OpamError, match=message):
        listed(folder, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_a_table_in_another_encoding_is_told(folder: Path, tmp_path: Path, encoding: str) -> None:
    (folder / "birds.csv").write_text(table_of(("a/0.jpg", "é", "train")), encoding=encoding)
    with pytest.raises(OpamError, match=r"birds\.csv: is not UTF-8 text; save it"):
        listed(folder, tmp_path)


def test_other_tables_and_columns_that_do_not_exist_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OpamError, match=r"holds no table \(\.csv"):
        listed(folder, tmp_path)
    (folder / "birds.csv").write_text(table_of(*ROWS))
    (folder / "b/labels.csv").write_text("not the uppermost")
    (folder / "._birds.csv").write_text("hidden")
    assert said(listed(folder, tmp_path)) == EXPECTED
    with pytest.raises(OpamError, match=r"no column 'art', which dataset\.columns\.label names"):
        listed(folder, tmp_path, label="art")
    (folder / "more.csv").write_text("image,label\n")
    with pytest.raises(OpamError, match=r"holds 2 tables \(birds\.csv, more\.csv\); name the one"):
        listed(folder, tmp_path)
    assert said(listed(folder, tmp_path, table="birds.csv")) == EXPECTED
    with pytest.raises(OpamError, match=r"holds no files 'owls\.csv', which dataset\.columns\.t"):
        listed(folder, tmp_path, table="owls.csv")
    with pytest.raises(OpamError, match=r"give the folder, .*columns\.table: birds\.csv"):
        listed(folder / "birds.csv", tmp_path)
    with pytest.raises(OpamError, match=r"birds\.csv: is a table; set dataset\.name: table"):
        fetch(params("imagefolder", folder / "birds.csv"), tmp_path / "raw")


def test_a_listed_file_that_is_no_photograph_is_bad(folder: Path, tmp_path: Path) -> None:
    (folder / "birds.csv").write_text(table_of(*ROWS, ("b/page.jpg", "wren", "train")))
    (folder / "b/page.jpg").write_text("<html>not found</html>")
    done = run_stages(tmp_path / "run", str(folder), name="table")
    assert done.returncode == 1
    assert "1 of 5 photographs are bad" in done.stderr
    assert "b/page.jpg" in done.stderr


def test_prepare_writes_what_the_table_says(folder: Path, tmp_path: Path) -> None:
    photograph(folder / "b/2.jpg")
    coarser = ("gull", "gull", "", "", "")
    rows = [*ROWS, ("b/2.jpg", "wren", "val")]
    rows = [(*row, coarse) for row, coarse in zip(rows, coarser, strict=True)]
    text = table_of(*rows, header="image,label,split,label_1")
    (folder / "birds.csv").write_text(text)
    done = run_stages(tmp_path / "run", str(folder), name="table")
    assert done.returncode == 0, done.stderr
    data = tmp_path / "run/data"
    manifest = read_table(data / "manifest.parquet", "manifest")
    assert manifest["split"].tolist() == ["train", "val", "train", "test", "val"]
    assert read_json(data / "classes.json") == ["007", "wren"]
    assert read_json(data / "parents.json") == [["gull", "wren"]]
    coarse = read_table(data / "coarse_labels.parquet", "coarse_labels")
    assert json.loads(coarse.to_json(orient="values")) == [
        ["a/0.jpg", 1, "gull"],
        ["a/1.jpg", 1, "gull"],
    ]
    assert "image from image, label from label, split from split" in done.stdout
    assert "val: 2 photographs of 2 classes, as given" in done.stdout
    (folder / "birds.csv").write_text(text.replace("TEST", "train"))
    done = run_stages(tmp_path / "run", str(folder), name="table")
    assert done.returncode == 1
    assert "no test image; add some, or name the val split test" in done.stderr
