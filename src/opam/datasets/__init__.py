"""Data sets: each publisher's own layout becomes one table."""

from pathlib import Path
from typing import Literal

from pydantic import Field

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

    name: DatasetName
    path: str | None = Field(
        None, description="local folder or archive; null: downloaded where possible, or drawn"
    )
    synthetic_birds: SyntheticBirdsParams = Field(description="what is drawn")


def fetch(params: DatasetParams, raw: Path) -> None:
    """Bring the data set under ``raw`` as its publisher lays it out.

    Raises:
        OpamError: it cannot be had; the message says how to provide it.
    """
    source = Path(params.path).expanduser() if params.path else None
    if params.name == "synthetic_birds":
        synthetic_birds.fetch(raw, params.synthetic_birds)
    elif params.name == "imagefolder":
        imagefolder.fetch(raw, source)
    else:
        PUBLISHED[params.name].fetch(raw, source)


def read(name: DatasetName, raw: Path, test_fraction: float, seed: int) -> Dataset:
    """Read what `fetch` brought.

    Args:
        name: of the data set.
        raw: its folder.
        test_fraction: imagefolder without a test folder only: share of each class for test.
        seed: of that split.

    Raises:
        OpamError: the files are not as the publisher lays them out.
    """
    if name == "synthetic_birds":
        return synthetic_birds.read(raw)
    if name == "imagefolder":
        return imagefolder.read(raw, test_fraction, seed)
    return PUBLISHED[name].read(raw)
