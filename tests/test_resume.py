"""Shards: what is computed once is not computed again, and nothing of another run is used."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from opam.config import Params
from opam.device import ExecutionParams
from opam.resume import RESUME, fingerprint, finish, in_shards


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Work:
    """Seven pieces of two rows; killed before piece ``killed``."""

    def __init__(self, killed: int = 7) -> None:
        self.killed = killed
        self.computed: list[int] = []

    def __call__(self, first: int) -> Iterator[pd.DataFrame]:
        for number in range(first, 7):
            if number == self.killed:
                raise KeyboardInterrupt
            self.computed.append(number)
            rows = {"image_id": [f"{number}"] * 2, "probabilities": [[float(number)], [0.5]]}
            yield pd.DataFrame(rows)


def rows_of(work: Work, size: int, key: str = "key") -> list[tuple[str, float]]:
    execution = ExecutionParams(shard_size=size)
    tables = list(in_shards("work", key, "crop_scores", 7, work, execution))
    whole = pd.concat(tables)
    return [(row.image_id, row.probabilities[0]) for row in whole.itertuples()]


@pytest.mark.parametrize("killed", range(7))
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_finished_shards_are_not_computed_again(killed: int, size: int) -> None:
    expected = rows_of(Work(), 7)
    finish("work")
    with pytest.raises(KeyboardInterrupt):
        rows_of(Work(killed), size)
    rest = Work()
    assert rows_of(rest, size) == expected
    assert rest.computed == list(range(killed // size * size, 7))
    again = Work()
    assert rows_of(again, size) == expected
    assert again.computed == []


def test_another_shard_size_goes_on_with_what_there_is() -> None:
    expected = rows_of(Work(), 7)
    finish("work")
    with pytest.raises(KeyboardInterrupt):
        rows_of(Work(killed=5), 2)
    rest = Work()
    assert rows_of(rest, 3) == expected
    assert rest.computed == [4, 5, 6]


def test_shards_of_other_inputs_are_removed() -> None:
    rows_of(Work(), 2, key="old")
    other = Work()
    rows_of(other, 2, key="new")
    assert other.computed == list(range(7))
    assert [path.name for path in (RESUME / "work").iterdir()] == ["new"]


def test_a_damaged_shard_is_computed_again() -> None:
    expected = rows_of(Work(), 2)
    (RESUME / "work/key/2-4.parquet").write_bytes(b"torn")
    again = Work()
    assert rows_of(again, 2) == expected
    assert again.computed == [2, 3, 4, 5, 6]


def test_finish_leaves_nothing() -> None:
    rows_of(Work(), 2)
    (RESUME / "work.pt").write_bytes(b"")
    finish("work")
    assert list(RESUME.iterdir()) == []


def test_the_fingerprint_is_of_contents(tmp_path: Path) -> None:
    class Some(Params):
        size: int = 1

    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("1")
    first = fingerprint(tmp_path / "a", Some(), {"threads": 2})
    assert first == fingerprint(tmp_path / "b", Some(), {"threads": 2})
    (tmp_path / "b").write_text("2")
    assert first != fingerprint(tmp_path / "b", Some(), {"threads": 2})
    assert first != fingerprint(tmp_path / "a", Some(size=2), {"threads": 2})
    assert first != fingerprint(tmp_path / "a", Some(), {"threads": 1})


def test_the_fingerprint_is_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(1)
    (tmp_path / "code").mkdir()
    (tmp_path / "code/a.py").write_text("x = 1")
    monkeypatch.setattr("opam.resume.SOURCE", tmp_path / "code")
    assert fingerprint(1) != first
