"""Fetch the data set: downloaded, unpacked, drawn, or taken over from a local folder.

Run by itself: ``python stages/fetch_data.py``.
"""

import shutil
from pathlib import Path

from opam.archive import pack
from opam.config import read_params
from opam.datasets import DatasetParams, fetch, wanted
from opam.resume import RESUME
from opam.stage import run

RAW = Path("data/raw.zip")
UNPACKED = RESUME / "unpacked"


def main() -> None:
    """Write data/raw.zip: the files of the data set, as its publisher lays them out."""
    params = read_params("dataset", DatasetParams)
    shutil.rmtree(UNPACKED, ignore_errors=True)
    UNPACKED.mkdir(parents=True)
    try:
        pack(fetch(params, UNPACKED), RAW, wanted(params))
    finally:
        shutil.rmtree(UNPACKED, ignore_errors=True)


if __name__ == "__main__":
    run(main)
