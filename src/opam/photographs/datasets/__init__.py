"""Data sets: each publisher's own layout becomes one table."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field

from opam.photographs.datasets import (
    cub200,
    fgvc_aircraft,
    flowers102,
    imagefolder,
    oxford_pets,
    stanford_cars,
    synthetic_birds,
    synthetic_shelves,
    table,
)
from opam.photographs.datasets.dataset import HIDDEN, Dataset, skipped_files
from opam.photographs.datasets.synthetic_birds import SyntheticBirdsParams
from opam.photographs.datasets.table_rows import TableColumns
from opam.photographs.decoding.archive import files, open_archive
from opam.photographs.decoding.images import ignored
from opam.pipeline.outside import given_photographs
from opam.pipeline.params import Params

DatasetName = Literal[
    "synthetic_birds",
    "synthetic_shelves",
    "cub200",
    "stanford_cars",
    "oxford_pets",
    "flowers102",
    "fgvc_aircraft",
    "imagefolder",
    "table",
]

PUBLISHED = {
    "cub200": cub200,
    "stanford_cars": stanford_cars,
    "oxford_pets": oxford_pets,
    "flowers102": flowers102,
    "fgvc_aircraft": fgvc_aircraft,
}


class DatasetParams(Params):
    """Which photographs."""

    name: DatasetName = Field(description="whose layout the files have; see docs/photographs.md")
    path: str = Field(
        "data/photographs",
        min_length=1,
        description="local folder or archive, whose content DVC watches; as it comes, and empty: "
        "photographs are downloaded where possible, or drawn",
    )
    columns: TableColumns = Field(
        TableColumns(), description="of a table: which column says what; null: found by name"
    )
    synthetic_birds: SyntheticBirdsParams = Field(
        description="how many are drawn, birds or shelves"
    )


def fetch(params: DatasetParams, raw: Path) -> Path:
    """The folder that holds the data set as its publisher lays it out.

    Args:
        params: which data set.
        raw: where it is drawn, downloaded or unpacked; a local folder is left where it is.

    Raises:
        OpamError: it cannot be had; the message says how to provide it.
    """
    source = given_photographs(params.path)
    if params.name == "table":
        return table.fetch(raw, source, params.columns)
    if params.name == "synthetic_birds":
        return synthetic_birds.fetch(raw, params.synthetic_birds)
    if params.name == "synthetic_shelves":
        return synthetic_shelves.fetch(raw, params.synthetic_birds)
    if params.name == "imagefolder":
        return imagefolder.fetch(raw, source)
    return PUBLISHED[params.name].fetch(raw, source)


def read(name: DatasetName, archive: Path, columns: TableColumns) -> Dataset:
    """Read what `fetch` brought and `archive.pack` packed.

    Args:
        name: of the data set.
        archive: with all its files.
        columns: of a table.

    Raises:
        OpamError: the files are not as the publisher lays them out.
    """
    raw = open_archive(archive)
    if name == "table":
        data = table.read(raw, columns)
    elif name == "synthetic_birds":
        data = synthetic_birds.read(raw)
    elif name in ("imagefolder", "synthetic_shelves"):
        data = imagefolder.read(raw)
    else:
        data = PUBLISHED[name].read(raw)
    hidden = [str(path) for path in files(raw) if ignored(path)]
    skipped = pd.concat([data.skipped, skipped_files(hidden, HIDDEN)])
    return replace(data, skipped=skipped.sort_values("path", ignore_index=True))
