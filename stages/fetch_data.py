"""Fetch the data set: downloaded, unpacked, drawn, or taken over from a local folder.

Run by itself: ``python stages/fetch_data.py``.
"""

import shutil
from pathlib import Path

from opam.config import read_params
from opam.datasets import DatasetParams, fetch
from opam.errors import run

RAW = Path("data/raw")


def main() -> None:
    """Write data/raw/, all of it or nothing."""
    params = read_params("dataset", DatasetParams)
    unfinished = RAW.with_name(".raw.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(exist_ok=True)
    try:
        fetch(params, unfinished)
        shutil.rmtree(RAW, ignore_errors=True)
        unfinished.rename(RAW)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    run(main)
