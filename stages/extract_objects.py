"""Extract objects: the box around the largest salient region of every photograph.

Run by itself: ``python stages/extract_objects.py``.
"""

from pathlib import Path

import pandas as pd
from opam.objects import ObjectParams, find_object
from opam.saliency import to_image

from opam.artifacts import BOX, read_table, read_table_in_pieces, write_table
from opam.config import read_params
from opam.errors import run
from opam.progress import progress

MANIFEST = Path("data/manifest.parquet")
SALIENCY = Path("data/saliency.parquet")
OBJECTS = Path("data/objects.parquet")


def main() -> None:
    """Write data/objects.parquet."""
    params = read_params("objects", ObjectParams)
    manifest = read_table(MANIFEST, "manifest").set_index("image_id")
    rows = []
    maps = read_table_in_pieces(SALIENCY, "saliency")
    for row in progress(maps, len(manifest), "object boxes"):
        photograph = manifest.loc[row.image_id]
        cam = row.cam.reshape(row.rows, row.columns)
        saliency = to_image(cam, photograph["height"], photograph["width"])
        box, fallback = find_object(saliency, params.threshold)
        rows.append((row.image_id, *box, row.predicted_label, fallback))
    columns = ["image_id", *BOX, "predicted_label", "fallback"]
    write_table(OBJECTS, "objects", pd.DataFrame(rows, columns=columns))


if __name__ == "__main__":
    run(main)
