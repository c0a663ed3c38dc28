"""Propose patches: selective search on every photograph.

Run by itself: ``python stages/propose_patches.py``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import delayed

from opam.method.proposals import ProposalParams, propose
from opam.photographs.decoding.images import Photographs, decoded
from opam.pipeline.artifacts import BOX, read_table, write_table_in_pieces
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.processes import in_processes
from opam.pipeline.progress import progress
from opam.pipeline.resume import fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
PROPOSALS = Path("data/proposals.parquet")


def propose_for(image_id: str, where: tuple[Any, ...], params: ProposalParams) -> pd.DataFrame:
    """The rows of one photograph; ``where`` are the arguments of `decoded`."""
    boxes = pd.DataFrame(propose(decoded(*where).pixels, params), columns=BOX)
    return boxes.assign(image_id=image_id, rank=range(len(boxes)))


def main() -> None:
    """Write data/proposals.parquet."""
    params = read_params("proposals", ProposalParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")

    photographs = Photographs(manifest, execution.decoded_gigabytes)

    def tables_from(first: int) -> Iterator[pd.DataFrame]:
        rest = manifest[first:]
        jobs = (
            delayed(propose_for)(image_id, photographs.where(path), params)
            for image_id, path in zip(rest["image_id"], rest["path"], strict=True)
        )
        tables = in_processes(jobs, execution.processes)
        yield from progress(tables, len(rest), "selective search")

    inputs = fingerprint(RAW, MANIFEST, params)
    shards = in_shards(
        "proposals", inputs, "proposals", len(manifest), tables_from, execution, networks=False
    )
    write_table_in_pieces(PROPOSALS, "proposals", shards)
    finish("proposals")


if __name__ == "__main__":
    run(main)
