"""Patch filtering (paper, section III-A): keep the patches that show the photograph's class."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from pydantic import Field

from opam.artifacts import SCHEMAS
from opam.config import Params


class FilterParams(Params):
    """Which patches FilterNet lets through."""

    threshold: float = Field(
        0.95, ge=0, le=1, description="least softmax probability of the photograph's own label"
    )


def keep(confidence: np.ndarray, threshold: float) -> np.ndarray:
    """Bool N: confidence (0..1) of a patch at or above ``threshold``."""
    return confidence >= threshold


def draw_patches(
    photographs: Iterable[tuple[str, pd.DataFrame]], per_image: int, seed: tuple[int, ...]
) -> pd.DataFrame:
    """At most ``per_image`` kept patches of each photograph, drawn at random; 0 keeps all.

    Photographs with hundreds of kept patches would otherwise outvote those with a few.

    Args:
        photographs: ``image_id`` and its rows of a kept-patches table, one photograph at a time.
        per_image: rows an image.
        seed: of the draw.

    Returns:
        The drawn rows, those of a photograph in the order they came in.
    """
    generator = np.random.default_rng(seed)
    drawn = [SCHEMAS["kept_patches"].empty_table().to_pandas()]
    for _, rows in photographs:
        if per_image:
            chosen = generator.permutation(len(rows))[:per_image]
            rows = rows.iloc[np.sort(chosen)]
        drawn.append(rows)
    return pd.concat(drawn, ignore_index=True)
