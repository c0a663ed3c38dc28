import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from opam.photographs.datasets import DatasetParams, fetch
from opam.photographs.datasets import read as read_archive
from opam.photographs.datasets import synthetic_shelves as shelves
from opam.photographs.datasets.synthetic_birds import SyntheticBirdsParams
from opam.photographs.datasets.synthetic_shelves import PRODUCTS, draw_shelf
from opam.photographs.datasets.table_rows import TableColumns
from opam.photographs.decoding.archive import pack
from opam.photographs.decoding.images import read_image
from opam.pipeline.artifacts import GT_BOX

FEW = SyntheticBirdsParams(seed=3, train_per_class=2, test_per_class=1)


def hashes(raw: Path) -> dict[str, str]:
    files = (path for path in raw.rglob("*") if path.is_file())
    return {str(p.relative_to(raw)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_several_marks_are_needed() -> None:
    codes = list(PRODUCTS.values())
    for mark in range(3):
        forms = [code[mark] for code in codes]
        assert all(forms.count(form) == 2 for form in range(4))
    for one, other in itertools.combinations(codes, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) <= 1


@pytest.mark.parametrize("number", range(3))
def test_product_changes_small_marks_all_over_the_photograph(number: int) -> None:
    one, other = (draw_shelf(product, np.random.default_rng([5, number])) for product in (0, 3))
    assert one.dtype == np.uint8
    assert one.shape == other.shape
    differs = (one != other).any(axis=2)
    assert 0.01 < differs.mean() < 0.3
    rows, columns = (np.flatnonzero(differs.any(axis)) for axis in (1, 0))
    assert np.ptp(rows) > 0.5 * one.shape[0]
    assert np.ptp(columns) > 0.8 * one.shape[1]


def test_what_was_drawn_is_read_and_has_no_box(tmp_path: Path) -> None:
    params = DatasetParams(name="synthetic_shelves", synthetic_birds=FEW)
    pack(fetch(params, tmp_path / "drawn"), tmp_path / "raw.zip")
    found = read_archive("synthetic_shelves", tmp_path / "raw.zip", TableColumns())
    assert found.images["split"].value_counts().to_dict() == {"train": 16, "test": 8}
    assert set(found.images["class_name"]) == set(PRODUCTS)
    assert found.images[GT_BOX].isna().all(axis=None)
    path = next(each for each in found.images["path"] if each.endswith("train/cherry_tea/0001.jpg"))
    drawn = draw_shelf(2, np.random.default_rng([FEW.seed, 2, 0, 1]))
    assert np.abs(read_image(path).astype(float) - drawn).mean() < 6  # JPEG


def test_workers_and_numbers_change_nothing_and_the_seed_does(tmp_path: Path) -> None:
    raw = hashes(shelves.fetch(tmp_path / "one", FEW, workers=1))
    assert len(set(raw.values())) == len(raw) == 8 * 3
    more = FEW.model_copy(update={"test_per_class": 2})
    assert raw.items() <= hashes(shelves.fetch(tmp_path / "two", more, workers=2)).items()
    other = FEW.model_copy(update={"seed": 4})
    seeded = hashes(shelves.fetch(tmp_path / "seed", other, workers=1))
    assert not set(seeded.values()) & set(raw.values())
