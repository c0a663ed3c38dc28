"""Fetch the data set: downloaded, unpacked, drawn, or taken over from a local folder.

Run by itself: ``python stages/fetch_data.py``.
"""

import shutil
from pathlib import Path

from opam.photographs.datasets import DatasetParams, fetch
from opam.photographs.decoding.archive import pack
from opam.photographs.decoding.images import ignored
from opam.pipeline.artifacts import write_json
from opam.pipeline.params import read_params
from opam.pipeline.resume import RESUME
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
HIDDEN = Path("data/hidden.json")
"""Files that are not packed: a program's own file, come or gone, must train nothing again."""
UNPACKED = RESUME / "unpacked"


def main() -> None:
    """Write data/raw.zip, the data set as its publisher lays it out, and data/hidden.json."""
    params = read_params("dataset", DatasetParams)
    shutil.rmtree(UNPACKED, ignore_errors=True)
    UNPACKED.mkdir(parents=True)
    try:
        hidden = pack(fetch(params, UNPACKED), RAW, ignored)
        write_json(HIDDEN, hidden)
    finally:
        shutil.rmtree(UNPACKED, ignore_errors=True)


if __name__ == "__main__":
    run(main)
