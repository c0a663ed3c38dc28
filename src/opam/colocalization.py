"""Co-localization: what the photographs of a data set have in common, without any label.

A class activation map lights up what tells classes apart, often one part of the object. What
all photographs share is the object, whatever its class: the feature vectors of object and
background differ most along the first principal component of all vectors at all places of all
training photographs (Wei et al., "Unsupervised object discovery and co-localization by deep
descriptor transforming", Pattern Recognition 2019). The projection on it is a map of the
object. Which of its two signs is the object is told by the class activation maps
(`opam.objects.orientation`).
"""

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from opam.config import Params


class ColocalizationParams(Params):
    """Which feature maps are compared."""

    layer: str | None = Field(
        None, description="module of the backbone that gives the feature maps; null: its last maps"
    )
    input_size: int = Field(320, ge=32, le=2048, description="side of a photograph in pixels")


def principal_component(features: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and first principal component of the feature vectors at all places.

    Args:
        features: float C x h x w a photograph; each is looked at once and let go.

    Returns:
        float64 C and float64 C; the component has length 1, and its entry of greatest absolute
        value is positive.
    """
    count, total, products = 0, np.zeros(()), np.zeros(())
    for maps in features:
        vectors = maps.reshape(len(maps), -1).astype(np.float64)
        count += vectors.shape[1]
        total = total + vectors.sum(1)
        products = products + vectors @ vectors.T
    mean = total / count
    _, components = np.linalg.eigh(products / count - np.outer(mean, mean))
    first = components[:, -1]
    return mean, first * np.sign(first[np.abs(first).argmax()])


def project(features: np.ndarray, mean: np.ndarray, component: np.ndarray) -> np.ndarray:
    """The map of a photograph: its feature vectors on the component, float32 h x w.

    Args:
        features: float C x h x w.
        mean: float C.
        component: float C.
    """
    centred = features - mean[:, None, None]
    return np.einsum("chw,c->hw", centred, component, dtype=np.float64).astype(np.float32)
