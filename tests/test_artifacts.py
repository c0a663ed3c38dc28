"""Artifacts: whole files or none, and only tables that are what they should be."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from opam.pipeline.artifacts import (
    MAPS_A_GROUP,
    ROWS_A_GROUP,
    SCHEMAS,
    atomic,
    read_json,
    read_photographs,
    read_table,
    read_table_in_pieces,
    write_csv,
    write_json,
    write_table,
    write_table_in_pieces,
)
from opam.pipeline.errors import OpamError


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
    table = pd.DataFrame([{**row, "sha256": "0", "group": "a", "width": 4, "height": 3}])
    for name in ("gt_x0", "gt_y0", "gt_x1", "gt_y1"):
        table[name] = pd.array([None], dtype="Int32")
    write_table(tmp_path / "a", "manifest", table)
    assert read_table(tmp_path / "a", "manifest")["gt_x0"].isna().all()


def test_pieces_are_the_whole_and_row_groups_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    count = 2 * ROWS_A_GROUP + 3
    whole = _proposals([f"{number // 100:05}" for number in range(count)])
    for size in (count, 30_000, 70_001):
        pieces = (whole[i : i + size] for i in range(0, count, size))
        write_table_in_pieces(tmp_path / f"{size}.parquet", "proposals", pieces)
        assert pq.ParquetFile(tmp_path / f"{size}.parquet").num_row_groups == 3
        assert (tmp_path / f"{size}.parquet").read_bytes() == (
            tmp_path / f"{count}.parquet"
        ).read_bytes()
    rows = [tuple(row) for row in read_table_in_pieces(tmp_path / f"{count}.parquet", "proposals")]
    assert rows == [tuple(row) for row in whole.itertuples(index=False)]
    write_table(
        path, "crop_scores", pd.DataFrame({"image_id": ["a"] * 600, "probabilities": [[1.0]] * 600})
    )
    assert pq.ParquetFile(path).metadata.row_group(0).num_rows == MAPS_A_GROUP


def test_photographs_come_one_by_one_whatever_the_row_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 3000, 80)
    whole = _proposals([f"{i:03}" for i, count in enumerate(counts) for _ in range(count)])
    assert len(whole) > ROWS_A_GROUP
    write_table(tmp_path / "a.parquet", "proposals", whole)
    found = list(read_photographs(tmp_path / "a.parquet", "proposals"))
    assert [image_id for image_id, _ in found] == [f"{i:03}" for i in range(len(counts))]
    assert [len(rows) for _, rows in found] == counts.tolist()
    again = pd.concat([rows for _, rows in found], ignore_index=True)
    pd.testing.assert_frame_equal(again, whole, check_dtype=False)
    write_table(tmp_path / "none.parquet", "proposals", whole[:0])
    assert list(read_photographs(tmp_path / "none.parquet", "proposals")) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.json.x1y2.tmp").write_text("half")
    (tmp_path / ".b.json.x1y2.tmp").write_text("of another")
    write_json(tmp_path / "a.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.x1y2.tmp", "a.json"]


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
