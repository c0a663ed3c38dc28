"""Stanford Cars (Krause et al., 2013): 196 makes, models and years, with boxes."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from opam.artifacts import GT_BOX
from opam.datasets.dataset import Dataset, below, dataset, inner_folder, read_mat, take_over
from opam.errors import OpamError, cause

LAYOUT = (
    "cars_train/, cars_test/, devkit/cars_meta.mat, devkit/cars_train_annos.mat and "
    "cars_test_annos_withlabels.mat"
)


def fetch(raw: Path, source: Path | None) -> Path:
    """The publisher's folder: itself, or an archive unpacked under ``raw``.

    Raises:
        OpamError: no source: the publisher's own address is gone.
    """
    if source is None:
        raise OpamError(
            f"dataset.path: stanford_cars has no download any more; give a folder with {LAYOUT}"
        )
    return take_over(source, raw)


def read(raw: zipfile.Path) -> Dataset:
    """Read the development kit's .mat files.

    Raises:
        OpamError: files missing, damaged, without their fields, or not matching each other.
    """
    root = inner_folder(raw, "stanford_cars", ["cars_train", "cars_test", "devkit"])
    names = read_mat(root / "devkit" / "cars_meta.mat", "class_names")
    classes = [str(name).replace("/", "-") for name in names]
    rows = []
    for split, file in (
        ("train", root / "devkit" / "cars_train_annos.mat"),
        ("test", root / "cars_test_annos_withlabels.mat"),
    ):
        for row in read_mat(file, "annotations"):
            label, name, box = _annotation(row, file)
            if not 1 <= label <= len(classes):
                raise OpamError(f"{file}: class {label} is not among the {len(classes)} named")
            image_id = f"cars_{split}/{name}"
            path = below(root, image_id, file)
            rows.append((image_id, path, classes[label - 1], split, *box))
    columns = ["image_id", "path", "class_name", "split"]
    table = pd.DataFrame(rows, columns=[*columns, *GT_BOX])
    return dataset(table[columns], boxes=table[["image_id", *GT_BOX]])


def _annotation(row: np.void, file: zipfile.Path) -> tuple[int, str, tuple[int, int, int, int]]:
    """Label from 1, file name and half-open box of one row."""
    try:
        x0, y0, x1, y1 = (int(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2"))
        # The publisher counts pixels from 1 and includes the last one.
        return int(row["class"]), str(row["fname"]), (x0 - 1, y0 - 1, x1, y1)
    except (ValueError, TypeError, IndexError) as error:
        raise OpamError(
            f"{file}: a row lacks its class, file name or box ({cause(error)}); a folder with "
            f"{LAYOUT} is expected"
        ) from None
