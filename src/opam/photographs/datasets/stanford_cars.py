"""Stanford Cars (Krause et al., 2013): 196 makes, models and years, with boxes."""

import re
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from opam.photographs.datasets import imagefolder
from opam.photographs.datasets.dataset import Dataset, below, dataset, read_mat, unlisted
from opam.photographs.datasets.source import take_over
from opam.photographs.decoding.archive import names
from opam.photographs.decoding.images import ignored
from opam.pipeline.artifacts import GT_BOX
from opam.pipeline.errors import OpamError, cause

LAYOUT = (
    "cars_train/, cars_test/, cars_meta.mat, cars_train_annos.mat and "
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
    """Read the development kit's .mat files, wherever a mirror put them.

    Photographs may lie in doubled folders (cars_train/cars_train/). Mirrors that have class
    folders and no .mat file are read as an imagefolder, without boxes.

    Raises:
        OpamError: files missing, damaged, without their fields, or not matching each other.
    """
    every = sorted(
        (name for name in names(raw) if not ignored(name)), key=lambda name: (len(name.parts), name)
    )
    if not any(name.suffix == ".mat" for name in every):
        return _class_folders(raw)
    meta = _mat(raw, every, "cars_meta")
    classes = [str(name).replace("/", "-") for name in read_mat(meta, "class_names")]
    rows = []
    folders = []
    for split, stem in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        file = _mat(raw, every, stem)
        folder = _photographs(raw, every, f"cars_{split}")
        folders.append(folder)
        for row in read_mat(file, "annotations"):
            label, name, box = _annotation(row, file)
            if not 1 <= label <= len(classes):
                raise OpamError(f"{file}: class {label} is not among the {len(classes)} named")
            path = below(folder, name, file)
            rows.append((f"cars_{split}/{name}", path, classes[label - 1], split, *box))
    columns = ["image_id", "path", "class_name", "split"]
    table = pd.DataFrame(rows, columns=[*columns, *GT_BOX])
    return dataset(
        table[columns],
        boxes=table[["image_id", *GT_BOX]],
        skipped=unlisted(table["path"], *folders),
    )


def _class_folders(raw: zipfile.Path) -> Dataset:
    try:
        return imagefolder.read(raw)
    except OpamError as error:
        raise OpamError(
            f"{raw}: holds neither {LAYOUT}, nor train/ and test/ with class folders ({error})"
        ) from None


def _mat(raw: zipfile.Path, every: list[PurePosixPath], stem: str) -> zipfile.Path:
    """The uppermost .mat file that is named so; a browser may have added " (1)" to its name."""
    for name in every:
        if name.suffix == ".mat" and re.fullmatch(rf"{stem}( ?\(\d+\))?", name.stem):
            return raw / str(name)
    raise OpamError(f"{raw}: {stem}.mat not found; a folder with {LAYOUT} is expected")


def _photographs(raw: zipfile.Path, every: list[PurePosixPath], folder: str) -> zipfile.Path:
    """The folder of that name that holds the most files itself: mirrors double it."""
    parents = Counter(name.parent for name in every if name.parent.name == folder)
    empty = [name for name in every if name.name == folder]
    if not parents and not empty:
        raise OpamError(f"{raw}: {folder}/ not found; a folder with {LAYOUT} is expected")
    return raw / str(parents.most_common(1)[0][0] if parents else empty[0])


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
