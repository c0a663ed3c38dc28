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

>>> birds = torch.zeros(2, 2, 3, 3)
>>> birds[:, 0, 1, 1], birds[:, 1] = 4.0, 1.0
>>> mean, component = principal_component([moments(birds)])
>>> project(birds[:1], mean, component).numpy().round(1)
array([[[-0.4, -0.4, -0.4],
        [-0.4,  3.6, -0.4],
        [-0.4, -0.4, -0.4]]], dtype=float32)
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from pydantic import Field

from opam.pipeline.params import Params


class ColocalizationParams(Params):
    """Which feature maps are compared."""

    layer: str | None = Field(
        None,
        description="module of the backbone that gives the feature maps; null: its last maps, of "
        "EfficientNets those of the last stage but one",
    )
    input_size: int = Field(320, ge=32, le=2048, description="side of a photograph in pixels")


def moments(maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What `principal_component` must know of some photographs; of more it is the sum.

    Args:
        maps: float B x C x h x w.

    Returns:
        float64 1, 1 x C and 1 x C x C: number, sum, and sum of products of the feature vectors;
        1 and 1 x C: number and sum of those at the photographs' borders.
    """
    places = maps.double().flatten(2)
    inner = torch.zeros(maps.shape[2:], dtype=torch.bool, device=maps.device)
    inner[1:-1, 1:-1] = True
    edges = places[:, :, ~inner.flatten()]
    vectors = places.transpose(0, 1).flatten(1)
    count, edge_count = (
        torch.tensor([each.shape[0] * each.shape[2]], dtype=torch.float64, device=maps.device)
        for each in (places, edges)
    )
    products = (vectors @ vectors.T)[None]
    return count, vectors.sum(1)[None], products, edge_count, edges.sum((0, 2))[None]


def principal_component(found: Iterable[Sequence[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and first principal component of the feature vectors at all places.

    Args:
        found: `moments` of all photographs; each is looked at once and let go.

    Returns:
        float64 C and float64 C; the component has length 1, and on the borders of the
        photographs the mean projection is not above 0.
    """
    sums: list[np.ndarray] = []
    for each in found:
        own = [np.asarray(value).sum(0) for value in each]
        sums = [a + b for a, b in zip(sums, own, strict=True)] if sums else own
    count, total, products, edge_count, edge_total = sums
    mean = total / count
    _, components = np.linalg.eigh(products / count - np.outer(mean, mean))
    first = components[:, -1]
    outwards = (edge_total / edge_count - mean) @ first > 0
    return mean, -first if outwards else first


def project(features: torch.Tensor, mean: np.ndarray, component: np.ndarray) -> torch.Tensor:
    """The maps of photographs, float32 B x h x w: their feature vectors on the component.

    Args:
        features: float B x C x h x w.
        mean: float C.
        component: float C.
    """
    direction = torch.from_numpy(component).to(features.device)
    along = torch.einsum("bchw,c->bhw", features.double(), direction)
    return (along - float(mean @ component)).float()


def object_maps(views: torch.Tensor, mean: np.ndarray, component: np.ndarray) -> torch.Tensor:
    """`project` of photographs and their mirror images, merged: float32 P x h x w.

    Args:
        views: float (P * 2) x C x h x w, each photograph as it is and mirrored.
        mean: float C.
        component: float C.
    """
    projected = project(views, mean, component)
    return (projected[::2] + projected[1::2].flip(2)) / 2
