"""Clear what a killed `dvc repro` can leave half-written: dvc.lock, or DVC's list of its locks.

DVC writes both in place, and refuses to start with half a file. Nothing is lost: what a stage
gave is in DVC's run cache, and is put back from there.

Run: ``python -m opam.report.mend`` (`make repro` does, before it starts).
"""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

from opam.artifacts import atomic
from opam.errors import run

LOCK = Path("dvc.lock")
RUNNING = Path(".dvc/tmp/rwlock")
SECONDS = 0.5
"""A file that is being written is whole after this time."""


def is_whole(path: Path, parse: Callable[[str], object]) -> bool:
    """Whether ``parse`` accepts the file, now or when whoever writes it has finished."""
    for wait in (SECONDS, 0.0):
        try:
            parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return True
        except Exception:  # YAML, JSON and DVC's schema each raise types of their own
            time.sleep(wait)
        else:
            return True
    return False


def committed() -> str | None:
    """dvc.lock as git has it, or None."""
    command = ["git", "show", f"HEAD:./{LOCK}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def main() -> None:
    """Put back or remove what is half-written, and say so."""
    if not is_whole(LOCK, lambda text: COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))):
        content = committed()
        if content is None:
            LOCK.unlink()
        else:
            with atomic(LOCK) as temporary:
                temporary.write_text(content, encoding="utf-8")
        put = "removed" if content is None else "put back as committed"
        print(f"{LOCK}: half-written by a run that was killed; {put}")
    if not is_whole(RUNNING, json.loads):
        RUNNING.unlink()
        print(f"{RUNNING}: half-written by a run that was killed; removed")


if __name__ == "__main__":
    run(main)
