"""Data sets: each publisher's own layout becomes one table."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from opam.archive import open_archive
from opam.config import Params
from opam.datasets import (
    cub200,
    fgvc_aircraft,
    flowers102,
    imagefolder,
    oxford_pets,
    stanford_cars,
    synthetic_birds,
)
from opam.datasets.dataset import Dataset
from opam.datasets.synthetic_birds import SyntheticBirdsParams

DatasetName = Literal[
    "synthetic_birds",
    "cub200",
    "stanford_cars",
    "oxford_pets",
    "flowers102",
    "fgvc_aircraft",
    "imagefolder",
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

    name: DatasetName = Field(description="whose layout the files have; see README.md")
    path: str | None = Field(
        None, description="local folder or archive; null: downloaded where possible, or drawn"
    )
    synthetic_birds: SyntheticBirdsParams = Field(description="what is drawn")


def fetch(params: DatasetParams, raw: Path) -> Path:
    """The folder that holds the data set as its publisher lays it out.

    Args:
        params: which data set.
        raw: where it is drawn, downloaded or unpacked; a local folder is left where it is.

    Raises:
        OpamError: it cannot be had; the message says how to provide it.
    """
    source = Path(params.path).expanduser() if params.path else None
    if params.name == "synthetic_birds":
        return synthetic_birds.fetch(raw, params.synthetic_birds)
    if params.name == "imagefolder":
        return imagefolder.fetch(raw, source)
    return PUBLISHED[params.name].fetch(raw, source)


def read(name: DatasetName, archive: Path) -> Dataset:
    """Read what `fetch` brought and `opam.archive.pack` packed.

    Args:
        name: of the data set.
        archive: with all its files.

    Raises:
        OpamError: the files are not as the publisher lays them out.
    """
    raw = open_archive(archive)
    if name == "synthetic_birds":
        return synthetic_birds.read(raw)
    if name == "imagefolder":
        return imagefolder.read(raw)
    return PUBLISHED[name].read(raw)
