"""The frame of a stage script: errors in one line, one at a time."""

import errno
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from opam.pipeline.device import ExecutionParams, prepare_device
from opam.pipeline.errors import OpamError, cause
from opam.pipeline.stage import run


@pytest.fixture(autouse=True)
def _script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stages/some_stage.py"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OpamError("a.txt: torn; restore it"), "a.txt: torn; restore it"),
        (OSError(errno.ENOSPC, "No space left on device", "a.txt"), "a.txt: No space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk: Disk quota exceeded; free space"),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "correct the permissions"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "the GPU's memory is full"),
    ],
)
def test_what_a_person_can_mend_is_one_line(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert told in lines[0]


@pytest.mark.parametrize("error", [ValueError("a mistake in the code"), FileNotFoundError("a")])
def test_mistakes_keep_their_traceback(error: Exception) -> None:
    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run(main)


def test_a_stage_may_run_again_after_it_ran() -> None:
    calls: list[int] = []
    for number in range(2):
        run(lambda number=number: calls.append(number))  # type: ignore[misc]
    assert calls == [0, 1]


def test_causes_are_short_and_on_one_line() -> None:
    assert cause(ValueError("a\n b")) == "a b"
    assert cause(ValueError()) == "ValueError"
    assert len(cause(ValueError("long " * 1000))) <= 200


@pytest.fixture
def _as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_as_before")
def test_deterministic_asks_torch_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    prepare_device(ExecutionParams(device="cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    prepare_device(ExecutionParams(device="cpu", deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
