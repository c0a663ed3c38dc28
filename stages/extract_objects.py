"""Extract objects: the box around the largest region of every photograph's object map.

Run by itself: ``python stages/extract_objects.py``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from opam.method.objects import ObjectParams, chosen_map, object_crops, object_or_window
from opam.method.saliency import to_image
from opam.pipeline.artifacts import BOX, read_table, read_table_in_pieces, write_table
from opam.pipeline.params import read_params
from opam.pipeline.progress import progress
from opam.pipeline.stage import run

MANIFEST = Path("data/manifest.parquet")
SALIENCY = Path("data/saliency.parquet")
OBJECT_MAPS = Path("data/object_maps.parquet")
OBJECTS = Path("data/objects.parquet")
OBJECT_CROPS = Path("data/object_crops.parquet")


def both_maps() -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """Every photograph's image_id, predicted label, CAM and co-localization map."""
    cams = read_table_in_pieces(SALIENCY, "saliency")
    common = read_table_in_pieces(OBJECT_MAPS, "object_maps")
    for one, other in zip(cams, common, strict=True):
        cam = one.cam.reshape(one.rows, one.columns)
        yield one.image_id, one.predicted_label, cam, other.map.reshape(other.rows, other.columns)


def main() -> None:
    """Write data/objects.parquet, and data/object_crops.parquet: what stands for the object."""
    params = read_params("objects", ObjectParams)
    manifest = read_table(MANIFEST, "manifest")
    sizes = {
        i: (int(h), int(w)) for i, h, w in manifest[["image_id", "height", "width"]].to_numpy()
    }
    rows, crops = [], []
    for image_id, label, cam, common in progress(both_maps(), len(manifest), "object boxes"):
        height, width = sizes[image_id]
        saliency = to_image(chosen_map(cam, common, params), height, width)
        box, fallback = object_or_window(saliency, cam, params)
        rows.append((image_id, *box, label, fallback))
        crops += [(image_id, *each) for each in object_crops(box, fallback, width, height)]
    columns = ["image_id", *BOX, "predicted_label", "fallback"]
    objects = pd.DataFrame(rows, columns=columns)
    write_table(OBJECTS, "objects", objects)
    crop_columns = ["image_id", *BOX]
    write_table(OBJECT_CROPS, "object_crops", pd.DataFrame(crops, columns=crop_columns))
    none = (objects["fallback"] != "none").mean()
    if none > 0.5:
        print(
            f"no one object in {none:.0%} of the photographs: see docs/method.md", file=sys.stderr
        )


if __name__ == "__main__":
    run(main)
