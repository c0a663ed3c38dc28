"""Which patches are kept, and which of them an epoch shows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from opam.engine.training.samples import draw_patches
from opam.method.filtering import keep
from opam.pipeline.artifacts import BOX, read_photographs, write_table

COUNTS = {"a": 7, "b": 2, "c": 30}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    ids = [image_id for image_id, count in COUNTS.items() for _ in range(count)]
    rows = pd.DataFrame({"image_id": ids, "rank": range(len(ids)), "confidence": 0.99})
    path = tmp_path / "kept.parquet"
    write_table(path, "kept_patches", rows.assign(**dict.fromkeys(BOX, 1)))
    return path


def draw(kept: Path, per_image: int, *seed: int) -> pd.DataFrame:
    return draw_patches(read_photographs(kept, "kept_patches"), per_image, seed)


def test_the_threshold_itself_is_kept() -> None:
    assert keep(np.array([0.94, 0.95, 1.0]), 0.95).tolist() == [False, True, True]


def test_no_photograph_gives_more_than_its_share(kept: Path) -> None:
    drawn = draw(kept, 5, 0, 0)
    assert drawn["image_id"].value_counts().to_dict() == {"a": 5, "b": 2, "c": 5}
    assert drawn["rank"].is_monotonic_increasing
    assert drawn["rank"].is_unique


def test_epochs_draw_differently_and_again_the_same(kept: Path) -> None:
    first = draw(kept, 5, 0, 0)
    pd.testing.assert_frame_equal(first, draw(kept, 5, 0, 0))
    assert first["rank"].tolist() != draw(kept, 5, 0, 1)["rank"].tolist()
    seen = {rank for epoch in range(60) for rank in draw(kept, 5, 0, epoch)["rank"]}
    assert len(seen) == sum(COUNTS.values())


def test_zero_keeps_all(kept: Path) -> None:
    assert draw(kept, 0, 0)["rank"].tolist() == list(range(sum(COUNTS.values())))


def test_nothing_kept_draws_nothing_of_the_same_types() -> None:
    drawn = draw_patches([], 5, (0,))
    assert drawn.empty
    assert pd.api.types.is_integer_dtype(drawn["x0"])
