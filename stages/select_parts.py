"""Select parts: the proposals that cover the object best under both spatial constraints.

Run by itself: ``python stages/select_parts.py``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import delayed

from opam.method.parts import PartParams, choose_parts
from opam.method.saliency import to_image
from opam.pipeline.artifacts import (
    BOX,
    read_photographs,
    read_table,
    read_table_in_pieces,
    write_table_in_pieces,
)
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.processes import in_processes
from opam.pipeline.progress import progress
from opam.pipeline.resume import fingerprint, finish, in_shards
from opam.pipeline.stage import run

MANIFEST = Path("data/manifest.parquet")
SALIENCY = Path("data/saliency.parquet")
OBJECTS = Path("data/objects.parquet")
PROPOSALS = Path("data/proposals.parquet")
PARTS = Path("data/parts.parquet")


def parts_of(
    row: Any, size: tuple[int, int], object_box: np.ndarray, boxes: np.ndarray, params: PartParams
) -> pd.DataFrame:
    """The part rows of one photograph."""
    saliency = to_image(row.cam.reshape(row.rows, row.columns), *size)
    chosen, selection = choose_parts(saliency, object_box, boxes, params)
    return pd.DataFrame(np.asarray(chosen), columns=BOX).assign(
        image_id=row.image_id,
        part=range(len(chosen)),
        score=selection.score,
        fallback=selection.fallback,
    )


def main() -> None:
    """Write data/parts.parquet."""
    params = read_params("parts", PartParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest").set_index("image_id")
    sizes = {i: (int(h), int(w)) for i, h, w in manifest[["height", "width"]].itertuples()}
    objects = read_table(OBJECTS, "objects").set_index("image_id")

    def tables_from(first: int) -> Iterator[pd.DataFrame]:
        first_id = str(manifest.index[first])
        jobs = (
            delayed(parts_of)(
                row,
                sizes[row.image_id],
                objects.loc[row.image_id, BOX].to_numpy(np.int32),
                proposals[BOX].to_numpy(np.int32),
                params,
            )
            for row, (_, proposals) in zip(
                read_table_in_pieces(SALIENCY, "saliency", first_id),
                read_photographs(PROPOSALS, "proposals", first_id),
                strict=True,
            )
        )
        tables = in_processes(jobs, execution.processes)
        yield from progress(tables, len(manifest) - first, "parts")

    inputs = fingerprint(MANIFEST, SALIENCY, OBJECTS, PROPOSALS, params)
    shards = in_shards(
        "parts", inputs, "parts", len(manifest), tables_from, execution, networks=False
    )
    write_table_in_pieces(PARTS, "parts", shards)
    finish("parts")


if __name__ == "__main__":
    run(main)
