"""Shards: what is computed once is not computed again, and nothing of another run is used."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import Params
from opam.pipeline.resume import DEPENDS_ON, RESUME, fingerprint, finish, in_shards

ROOT = Path(__file__).parents[1]


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
    tables = list(in_shards("work", {"params": key}, "crop_scores", 7, work, execution))
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


def test_shards_of_other_inputs_are_removed_with_a_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows_of(Work(), 2, key="old")
    rows_of(Work(), 2, key="old")
    assert "thrown away" not in capsys.readouterr().err
    other = Work()
    rows_of(other, 2, key="new")
    assert other.computed == list(range(7))
    assert "work: kept work is thrown away, for params changed since" in capsys.readouterr().err
    (RESUME / "work" / DEPENDS_ON).write_bytes(b"torn")
    again = Work()
    rows_of(again, 2, key="new")
    assert again.computed == list(range(7))
    assert "not known" in capsys.readouterr().err


def test_a_damaged_shard_is_computed_again() -> None:
    expected = rows_of(Work(), 2)
    (RESUME / "work/2-4.parquet").write_bytes(b"torn")
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

    path = tmp_path / "a"
    path.write_text("1")
    first = fingerprint(path, Some(), threads=2)
    assert first == fingerprint(path, Some(), threads=2)
    assert first != fingerprint(path, Some(size=2), threads=2)
    assert first != fingerprint(path, Some(), threads=1)
    assert fingerprint(first, more=1).items() >= first.items()
    path.write_text("2")
    assert first != fingerprint(path, Some(), threads=2)


def test_the_fingerprint_is_of_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint(seed=1)
    monkeypatch.setattr("opam.pipeline.resume.installed_versions", lambda: {"torch": "other"})
    assert first != fingerprint(seed=1)


STAGE = """
import sys
import pandas as pd
import opam.method.filtering
from opam.pipeline.device import ExecutionParams
from opam.pipeline.resume import fingerprint, in_shards

def rows_from(first):
    for number in range(first, 4):
        if number == int(sys.argv[1]):
            sys.exit("killed")
        yield pd.DataFrame({"image_id": [str(number)], "probabilities": [[VALUE]]})

execution = ExecutionParams(shard_size=1)
shards = in_shards("work", fingerprint(), "crop_scores", 4, rows_from, execution)
print(*(row.probabilities[0] for rows in shards for row in rows.itertuples()))
"""


def test_a_stage_edited_between_kill_and_restart_computes_its_rows_anew(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "work.py"

    def run(value: float, killed: int) -> subprocess.CompletedProcess[str]:
        script.write_text(STAGE.replace("VALUE", str(value)))
        return subprocess.run(
            [sys.executable, str(script), str(killed)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
            capture_output=True,
            text=True,
            check=False,
        )

    def edit(module: str) -> None:
        path = tmp_path / "src/opam" / module
        path.write_text(path.read_text() + "# edited\n")

    assert "killed" in run(1.0, killed=3).stderr
    done = run(2.0, killed=3)
    assert "work.py changed since" in done.stderr
    assert "resumed" not in done.stderr
    edit("method/parts.py")  # not loaded by this script
    edit("pipeline/artifacts.py")  # computes nothing
    assert "resumed behind piece 3" in run(2.0, killed=3).stderr
    edit("method/filtering.py")
    done = run(2.0, killed=9)
    assert "opam/method/filtering.py changed since" in done.stderr
    assert done.stdout.split() == ["2.0"] * 4
