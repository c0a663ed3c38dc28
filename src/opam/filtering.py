"""Patch filtering (paper, section III-A): keep the patches that show the photograph's class."""

import numpy as np
import pandas as pd
from pydantic import Field

from opam.config import Params


class FilterParams(Params):
    """Which patches FilterNet lets through."""

    threshold: float = Field(
        0.95, ge=0, le=1, description="least softmax probability of the photograph's own label"
    )


def keep(confidence: np.ndarray, threshold: float) -> np.ndarray:
    """Bool N: confidence (0..1) of a patch at or above ``threshold``."""
    return confidence >= threshold


def draw_patches(kept: pd.DataFrame, per_image: int, seed: tuple[int, ...]) -> pd.DataFrame:
    """At most ``per_image`` rows of each ``image_id``, drawn at random; 0 keeps all.

    Photographs with hundreds of kept patches would otherwise outvote those with a few.

    Args:
        kept: a kept-patches table.
        per_image: rows an image.
        seed: of the draw.
    """
    if per_image == 0:
        return kept
    order = np.random.default_rng(seed).permutation(len(kept))
    drawn = kept.iloc[order].groupby("image_id").head(per_image)
    return drawn.sort_values(["image_id", "rank"])
