"""Co-localization: what the photographs of a data set have in common, without any label.

A class activation map lights up what tells classes apart, often one part of the object. What
all photographs share is the object, whatever its class: the feature vectors of object and
background differ most along the first principal component of all vectors at all places of all
training photographs (Wei et al., "Unsupervised object discovery and co-localization by deep
descriptor transforming", Pattern Recognition 2019). The projection on it is a map of the
object. Of its two signs, that of the photographs' borders is the background's: people put the
object inside.

With the vectors' mean m and first principal component v (of length 1):

    M(x, y) = (f(x, y) - m) . v

>>> bird = np.zeros((2, 3, 3))
>>> bird[0, 1, 1], bird[1] = 4.0, 1.0
>>> mean, component = principal_component([bird, bird])
>>> project(bird, mean, component).round(1)
array([[-0.4, -0.4, -0.4],
       [-0.4,  3.6, -0.4],
       [-0.4, -0.4, -0.4]], dtype=float32)
"""

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from opam.pipeline.params import Params


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
        float64 C and float64 C; the component has length 1, and on the borders of the
        photographs the mean projection is not above 0.
    """
    count, total, products = 0, np.zeros(()), np.zeros(())
    edge_count, edge_total = 0, np.zeros(())
    for maps in features:
        vectors = maps.reshape(len(maps), -1).astype(np.float64)
        count += vectors.shape[1]
        total = total + vectors.sum(1)
        products = products + vectors @ vectors.T
        inner = np.zeros(maps.shape[1:], dtype=bool)
        inner[1:-1, 1:-1] = True
        edge_count += int((~inner).sum())
        edge_total = edge_total + maps[:, ~inner].sum(1, dtype=np.float64)
    mean = total / count
    _, components = np.linalg.eigh(products / count - np.outer(mean, mean))
    first = components[:, -1]
    outwards = (edge_total / edge_count - mean) @ first > 0
    return mean, -first if outwards else first


def project(features: np.ndarray, mean: np.ndarray, component: np.ndarray) -> np.ndarray:
    """The map of a photograph, float32 h x w: its feature vectors on the component.

    Args:
        features: float C x h x w.
        mean: float C.
        component: float C.
    """
    centred = features - mean[:, None, None]
    return np.einsum("chw,c->hw", centred, component, dtype=np.float64).astype(np.float32)


def object_map(views: np.ndarray, mean: np.ndarray, component: np.ndarray) -> np.ndarray:
    """`project` of a photograph and its mirror image, merged: float32 h x w.

    Args:
        views: float 2 x C x h x w, as it is and mirrored.
        mean: float C.
        component: float C.
    """
    plain, mirrored = views
    return project((plain + mirrored[:, :, ::-1]) / 2, mean, component)
