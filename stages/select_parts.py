"""Select parts: the proposals that cover the object best under both spatial constraints.

Run by itself: ``python stages/select_parts.py``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from opam.artifacts import (
    BOX,
    read_photographs,
    read_table,
    read_table_in_pieces,
    write_table,
)
from opam.config import read_params
from opam.device import ExecutionParams
from opam.parts import PartParams, choose_parts
from opam.progress import progress
from opam.saliency import to_image
from opam.stage import run

MANIFEST = Path("data/manifest.parquet")
SALIENCY = Path("data/saliency.parquet")
OBJECTS = Path("data/objects.parquet")
PROPOSALS = Path("data/proposals.parquet")
PARTS = Path("data/parts.parquet")


def parts_of(
    row: Any, size: tuple[int, int], object_box: np.ndarray, boxes: np.ndarray, params: PartParams
) -> list[tuple[Any, ...]]:
    """The part rows of one photograph."""
    saliency = to_image(row.cam.reshape(row.rows, row.columns), *size)
    chosen, selection = choose_parts(saliency, object_box, boxes, params)
    return [
        (row.image_id, part, *map(int, box), selection.score, selection.fallback)
        for part, box in enumerate(chosen)
    ]


def main() -> None:
    """Write data/parts.parquet."""
    params = read_params("parts", PartParams)
    workers = max(1, read_params("execution", ExecutionParams).workers)
    manifest = read_table(MANIFEST, "manifest").set_index("image_id")
    sizes = {i: (int(h), int(w)) for i, h, w in manifest[["height", "width"]].itertuples()}
    objects = read_table(OBJECTS, "objects").set_index("image_id")
    jobs = (
        delayed(parts_of)(
            row,
            sizes[row.image_id],
            objects.loc[row.image_id, BOX].to_numpy(np.int32),
            proposals[BOX].to_numpy(np.int32),
            params,
        )
        for row, (_, proposals) in zip(
            read_table_in_pieces(SALIENCY, "saliency"),
            read_photographs(PROPOSALS, "proposals"),
            strict=True,
        )
    )
    found = Parallel(n_jobs=workers, return_as="generator")(jobs)
    rows = [row for rows in progress(found, len(manifest), "parts") for row in rows]
    columns = ["image_id", "part", *BOX, "score", "fallback"]
    write_table(PARTS, "parts", pd.DataFrame(rows, columns=columns))


if __name__ == "__main__":
    run(main)
