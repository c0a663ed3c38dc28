"""Propose patches: selective search on every photograph.

Run by itself: ``python stages/propose_patches.py``.
"""

from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed

from opam.artifacts import BOX, read_table, write_table
from opam.config import read_params
from opam.device import ExecutionParams
from opam.errors import run
from opam.images import read_image
from opam.progress import progress
from opam.proposals import ProposalParams, propose

MANIFEST = Path("data/manifest.parquet")
PROPOSALS = Path("data/proposals.parquet")


def propose_for(image_id: str, path: str, params: ProposalParams) -> pd.DataFrame:
    """The rows of one photograph."""
    boxes = pd.DataFrame(propose(read_image(path), params), columns=BOX)
    return boxes.assign(image_id=image_id, rank=range(len(boxes)))


def main() -> None:
    """Write data/proposals.parquet."""
    params = read_params("proposals", ProposalParams)
    workers = max(1, read_params("execution", ExecutionParams).workers)
    manifest = read_table(MANIFEST, "manifest")
    jobs = (
        delayed(propose_for)(image_id, path, params)
        for image_id, path in zip(manifest["image_id"], manifest["path"], strict=True)
    )
    tables = Parallel(n_jobs=workers, return_as="generator")(jobs)
    rows = list(progress(tables, len(manifest), "selective search"))
    write_table(PROPOSALS, "proposals", pd.concat(rows))


if __name__ == "__main__":
    run(main)
