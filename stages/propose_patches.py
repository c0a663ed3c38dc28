"""Propose patches: selective search on every photograph.

Run by itself: ``python stages/propose_patches.py``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import delayed

from opam.method import proposals
from opam.method.proposals import ProposalParams, propose
from opam.photographs.decoding import images
from opam.photographs.decoding.images import Photographs, decoded
from opam.pipeline.artifacts import BOX, read_table, write_table_in_pieces
from opam.pipeline.device import ExecutionParams
from opam.pipeline.environment import installed_versions
from opam.pipeline.kept import digest_of, of_each, version_of
from opam.pipeline.params import read_params
from opam.pipeline.processes import in_processes
from opam.pipeline.progress import progress
from opam.pipeline.resume import fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
PROPOSALS = Path("data/proposals.parquet")


def propose_for(where: tuple[Any, ...], params: ProposalParams) -> np.ndarray:
    """Proposals of one photograph, int32 N x 4; ``where`` are the arguments of `decoded`."""
    return propose(decoded(*where).pixels, params)


def main() -> None:
    """Write data/proposals.parquet."""
    params = read_params("proposals", ProposalParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")

    photographs = Photographs(manifest, execution.decoded_gigabytes)

    code = Path(proposals.__file__), *sorted(Path(images.__file__).parent.glob("*.py"))
    version = version_of("proposals", code, params, installed_versions())

    def boxes_of(rows: pd.DataFrame) -> Iterator[np.ndarray]:
        """Of each photograph; one that was searched before on this machine is not again."""
        photographs_of = rows[["sha256", "width", "height"]].to_numpy(object)
        digests = [digest_of(*each) for each in photographs_of]

        def searched(places: list[int]) -> Iterator[np.ndarray]:
            where = map(photographs.where, rows["path"].iloc[places])
            jobs = (delayed(propose_for)(each, params) for each in where)
            for found in in_processes(jobs, execution.processes):
                yield found[:, None]

        for found in of_each(version, digests, searched, np.int32, execution.decoded_gigabytes):
            yield found[:, 0]

    def tables_from(first: int) -> Iterator[pd.DataFrame]:
        # On a cluster each shard begins anew.
        stop = first + execution.shard_size if execution.engine == "ray" else len(manifest)
        rows = manifest[first:stop]
        found = zip(rows["image_id"], boxes_of(rows), strict=True)
        for image_id, boxes in progress(found, len(rows), "selective search"):
            table = pd.DataFrame(boxes, columns=BOX)
            yield table.assign(image_id=image_id, rank=range(len(boxes)))

    inputs = fingerprint(RAW, MANIFEST, params)
    shards = in_shards(
        "proposals", inputs, "proposals", len(manifest), tables_from, execution, networks=False
    )
    write_table_in_pieces(PROPOSALS, "proposals", shards)
    finish("proposals")


if __name__ == "__main__":
    run(main)
