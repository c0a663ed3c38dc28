"""Clear what a killed `dvc repro` leaves half-written: dvc.lock, its locks, its run cache.

DVC writes dvc.lock and the list of its locks in place, and refuses to start with half a file; a
folder of the run cache that has no entry yet stops it, too. Nothing is lost: what a stage gave is
in DVC's run cache, and is put back from there; a stage whose entry was not written yet runs again.

Run: ``python -m opam.app.mend`` (`make repro` does, before it starts).
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

from opam.pipeline.artifacts import atomic
from opam.pipeline.errors import OpamError, run

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


def without_entry(runs: Path) -> list[Path]:
    """Folders of the run cache in which no entry was written to its end."""
    return [
        folder
        for folder in sorted(runs.glob("??/*"))
        if not any(re.fullmatch(r"[0-9a-f]{64}", entry.name) for entry in folder.iterdir())
    ]


def run_cache() -> Path | None:
    """Where DVC keeps which code and parameters gave which artifacts; None where it cannot say."""
    try:
        return Path(Repo().cache.legacy.path) / "runs"
    except DvcException:  # a broken setting, say: `dvc repro` tells it better
        return None


def check_merged() -> None:
    """Raise `OpamError` where git's merge has left both sides in dvc.lock: none is thrown away."""
    if LOCK.is_file() and re.search(rb"(?m)^<<<<<<< ", LOCK.read_bytes()):
        raise OpamError(
            f"{LOCK}: holds both sides of a merge; take one, `git checkout --ours {LOCK}` or "
            "--theirs, then `dvc repro` runs what differs, or takes it from the run cache"
        )


def main() -> None:
    """Put back or remove what is half-written, and say so."""
    check_merged()
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
    runs = run_cache()
    if runs is not None and without_entry(runs):
        time.sleep(SECONDS)  # another clone that shares the cache may be writing one
        for folder in without_entry(runs):
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{folder}: half-written by a run that was killed; removed")


if __name__ == "__main__":
    run(main)
