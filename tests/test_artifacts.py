"""Artifacts: whole files or none, and only tables that are what they should be."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from opam.artifacts import (
    PIECES_A_ROW_GROUP,
    SCHEMAS,
    atomic,
    read_json,
    read_table,
    read_table_in_pieces,
    write_csv,
    write_json,
    write_table,
    write_table_in_pieces,
)
from opam.errors import OpamError


def _proposals(image_ids: list[str]) -> pd.DataFrame:
    side = np.arange(len(image_ids))
    boxes = {"x0": side, "y0": side, "x1": side + 5, "y1": side + 6}
    return pd.DataFrame({"image_id": image_ids, "rank": side, **boxes})


def test_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_success_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    for content in ("one", "two"):
        with atomic(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert len(list(path.parent.iterdir())) == 1


def test_full_disk_is_told_with_its_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with (
        pytest.raises(OpamError, match=r"a\.txt: cannot be written \(No space left.*free space"),
        atomic(path),
    ):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(OpamError, match="cannot be written"):
        write_json(tmp_path / "data" / "a.json", [])


def test_table_comes_back_in_schema_order_and_type(tmp_path: Path) -> None:
    path = tmp_path / "proposals.parquet"
    table = _proposals(["a", "b"])
    write_table(path, "proposals", table[table.columns[::-1]].set_index(pd.Index([7, 3])))
    back = read_table(path, "proposals")
    assert list(back.columns) == SCHEMAS["proposals"].names
    assert set(back.dtypes[1:]) == {np.dtype("int32")}
    pd.testing.assert_frame_equal(back, table, check_dtype=False)


def test_same_table_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_table(tmp_path / name, "proposals", _proposals(["a", "b"]))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("schema", SCHEMAS)
def test_empty_table_of_every_schema(tmp_path: Path, schema: str) -> None:
    write_table(tmp_path / "a", schema, pd.DataFrame(columns=SCHEMAS[schema].names))
    assert len(read_table(tmp_path / "a", schema)) == 0


def test_missing_boxes_stay_missing(tmp_path: Path) -> None:
    row = {"image_id": "a", "path": "a", "label": 0, "class_name": "x", "split": "val"}
    table = pd.DataFrame([{**row, "width": 4, "height": 3}])
    for name in ("gt_x0", "gt_y0", "gt_x1", "gt_y1"):
        table[name] = pd.array([None], dtype="Int32")
    write_table(tmp_path / "a", "manifest", table)
    assert read_table(tmp_path / "a", "manifest")["gt_x0"].isna().all()


def test_pieces_are_the_whole_and_row_groups_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    whole = _proposals([f"{number:04}" for number in range(2 * PIECES_A_ROW_GROUP + 3)])
    write_table_in_pieces(path, "proposals", (whole[i : i + 1] for i in range(len(whole))))
    assert pq.ParquetFile(path).num_row_groups == 3
    rows = [tuple(row) for row in read_table_in_pieces(path, "proposals")]
    assert rows == [tuple(row) for row in whole.itertuples(index=False)]


def test_failing_pieces_leave_no_table(tmp_path: Path) -> None:
    def pieces() -> object:
        yield _proposals(["a"])
        raise OpamError("stop")

    with pytest.raises(OpamError, match="stop"):
        write_table_in_pieces(tmp_path / "a.parquet", "proposals", pieces())  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [read_table, lambda *args: list(read_table_in_pieces(*args))])
def test_table_that_is_not_what_it_should_be(tmp_path: Path, read: object) -> None:
    assert callable(read)
    path = tmp_path / "a.parquet"
    with pytest.raises(OpamError, match=r"a\.parquet: not found; run `dvc repro`"):
        read(path, "objects")
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(OpamError, match=r"a\.parquet: cannot be read .*remove it"):
        read(path, "objects")
    write_table(path, "proposals", _proposals(["a"]))
    with pytest.raises(OpamError, match=r"a\.parquet: columns are not those of a objects table"):
        read(path, "objects")


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    with pytest.raises(OpamError, match=r"classes\.json: not found"):
        read_json(path)
    write_json(path, ["b", "a"])
    assert read_json(path) == ["b", "a"]
    path.write_text("[1,")
    with pytest.raises(OpamError, match=r"classes\.json: not valid JSON"):
        read_json(path)


def test_csv_has_a_header_even_when_empty(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", pd.DataFrame(columns=["image_id", "problem"]))
    assert (tmp_path / "a.csv").read_text() == "image_id,problem\n"
