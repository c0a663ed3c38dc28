"""An error while other processes compute is told, and nothing else is."""

import subprocess
import sys
from pathlib import Path

import pytest

FAILS = """
import sys
from joblib import delayed
from opam.pipeline import errors
from opam.pipeline.processes import in_processes

def square(number):
    if sys.argv[1] == "a job" and number == 9:
        raise errors.OpamError("no nine")
    return number**2

def main():
    for number, squared in enumerate(in_processes(map(delayed(square), range(1000)), 2)):
        assert squared == number**2
        if sys.argv[1] == "who reads" and number == 9:
            raise errors.OpamError("no nine")

errors.run(main)
"""


@pytest.mark.parametrize("who", ["a job", "who reads"])
def test_an_error_is_all_that_is_told(tmp_path: Path, who: str) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    done = subprocess.run(
        [sys.executable, tmp_path / "fails.py", who], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "error: no nine\n")
