"""Patch filtering (paper, section III-A): keep the patches that show the photograph's class.

Of a photograph of class c the patches p are kept of which FilterNet says

    P(c | p) >= threshold.

>>> keep(np.array([0.99, 0.4]), threshold=0.95)
array([ True, False])
"""

import numpy as np
from pydantic import Field

from opam.pipeline.params import Params


class FilterParams(Params):
    """Which patches FilterNet lets through."""

    threshold: float = Field(
        0.95, ge=0, le=1, description="least softmax probability of the photograph's own label"
    )


def keep(confidence: np.ndarray, threshold: float) -> np.ndarray:
    """Bool N: confidence (0..1) of a patch at or above ``threshold``."""
    return confidence >= threshold
