"""Co-localization: what the photographs of a data set have in common, without any label.

A class activation map lights up what tells classes apart, often one part of the object. What all
photographs share is the object, whatever its class. It is found in three steps:

1. The feature vectors of object and background differ most along the first principal component of
   all vectors at all places (Wei et al., "Unsupervised object discovery and co-localization by
   deep descriptor transforming", Pattern Recognition 2019), here of features of unit variance. Of
   its two signs, that of the photographs' borders is the background's: people put the object
   inside.
2. From where a photograph's projection is high or low its own colours say what belongs to the
   object (GrabCut; Rother, Kolmogorov and Blake, SIGGRAPH 2004): right to the pixel, or quite
   wrong.
3. What such segmentations of all photographs agree on is a linear function of the features, by
   ridge regression: one that is wrong by its colours is outvoted, and the outlines that the others
   have stay.

With the vectors' mean m, and the direction w and intercept b of step 3, the object's share of what
a place sees:

    M(x, y) = (f(x, y) - m) . w + b

>>> birds = torch.zeros(2, 2, 3, 3)
>>> birds[:, 0, 1, 1], birds[:, 1] = 4.0, 1.0
>>> places = joined([moments(birds)])
>>> where = np.zeros((2, 3, 3))
>>> where[:, 1, 1] = 1.0
>>> found = shared_direction(places, [agreement(birds.numpy(), where)])
>>> project(birds[:1], found).numpy().round(1)
array([[[0. , 0. , 0. ],
        [0. , 0.9, 0. ],
        [0. , 0. , 0. ]]], dtype=float32)
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from pydantic import Field

from opam.pipeline.params import Params

SIDE = 128
"""Pixels a side of a photograph that is segmented."""
OUTSIDE, LIKELY, INSIDE = 0.0, 0.25, 0.55
"""Of a photograph's greatest projection: below the first is background, above the last the object;
between them colours decide, with the second in the middle."""
ALIKE = 0.4
"""IoU with where it began, at least, of a segmentation that is believed."""
ROUNDS = 3
"""Of GrabCut, in which colours and outline settle."""
RIDGE = 0.1
"""Of the features' variance."""
TIMES = 2
"""Steps 2 and 3 are taken, the second time from what the first found."""
CLEAR = 0.25
"""Standard deviations of the projection by which the borders lie on one side of all places, at
least, where the photographs show one object each."""
MOST = 2000
"""Photographs that are asked what they share; of more, as many, evenly spread."""


class ColocalizationParams(Params):
    """Which feature maps are compared."""

    layer: str | None = Field(
        None,
        description="module of the backbone that gives the feature maps, beside the last of finer "
        "ones; null: its last maps, of EfficientNets those of the last stage but one",
    )
    input_size: int = Field(320, ge=32, le=2048, description="side of a photograph in pixels")


class Direction(NamedTuple):
    """A linear function of features: `project`.

    Attributes:
        mean: float64 C.
        component: float64 C.
        intercept: what it is at the mean.
    """

    mean: np.ndarray
    component: np.ndarray
    intercept: float = 0.0


class Places(NamedTuple):
    """What all places of all photographs say together.

    Attributes:
        mean: float64 C, of the feature vectors.
        covariance: float64 C x C.
        border: float64 C, mean of the vectors at the photographs' borders.
    """

    mean: np.ndarray
    covariance: np.ndarray
    border: np.ndarray


def moments(maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What `joined` must know of some photographs; of more it is the sum.

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


def joined(found: Iterable[Sequence[np.ndarray | torch.Tensor]]) -> Places:
    """`Places` by the `moments` of all photographs; each is looked at once and let go."""
    sums: list[np.ndarray] = []
    for each in found:
        own = [np.asarray(value).sum(0) for value in each]
        sums = [a + b for a, b in zip(sums, own, strict=True)] if sums else own
    count, total, products, edge_count, edge_total = sums
    mean = total / count
    return Places(mean, products / count - np.outer(mean, mean), edge_total / edge_count)


def spread(places: Places) -> np.ndarray:
    """Standard deviation of each feature, float64 C; 1 where it is always the same."""
    variances = np.diag(places.covariance)
    varied = variances > 1e-9 * max(variances.max(), 1e-30)
    return np.sqrt(np.where(varied, variances, 1.0))


def principal_component(places: Places) -> Direction:
    """Step 1: the first principal component of the features, each of unit variance.

    The projection's variance is the component's; on the borders its mean is not above 0.
    """
    scale = spread(places)
    _, components = np.linalg.eigh(places.covariance / np.outer(scale, scale))
    first = components[:, -1] / scale
    outwards = (places.border - places.mean) @ first > 0
    return Direction(places.mean, -first if outwards else first)


def border_contrast(places: Places, direction: Direction) -> float:
    """How far the projection's mean on the borders is below that of all places.

    In its standard deviations: objects in the middle give 0.5 to 1, and photographs that are
    the same all over, such as shelves, about 0.
    """
    component = direction.component
    variance = component @ places.covariance @ component
    return float((places.mean - places.border) @ component / np.sqrt(variance))


def no_direction(places: Places) -> Direction:
    """Whose `project` is 0 everywhere: the photographs have no one object in common."""
    return Direction(places.mean, np.zeros_like(places.mean))


def segment(photograph: np.ndarray, projection: np.ndarray) -> np.ndarray | None:
    """Step 2: the share of each place that is the object, by the photograph's own colours.

    Args:
        photograph: uint8 H x W x 3, RGB.
        projection: float h x w, its `project`.

    Returns:
        float32 h x w, 0..1; None where the projection tells nothing apart, or colours tell
        something else apart than it does.
    """
    rows, columns = projection.shape
    greatest = float(projection.max())
    if not 0 < greatest < np.inf:
        return None
    small = cv2.resize(photograph, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    relative = cv2.resize((projection / greatest).astype(np.float32), (SIDE, SIDE))
    where = np.full((SIDE, SIDE), cv2.GC_BGD, dtype=np.uint8)
    where[relative > OUTSIDE] = cv2.GC_PR_BGD
    where[relative >= LIKELY] = cv2.GC_PR_FGD
    where[relative >= INSIDE] = cv2.GC_FGD
    begun = where % 2 == 1
    if begun.all() or not begun.any():
        return None
    cv2.setRNGSeed(0)  # of this thread: colours are clustered from random beginnings
    cv2.grabCut(small, where, (0, 0, 1, 1), np.empty(0), np.empty(0), ROUNDS, cv2.GC_INIT_WITH_MASK)
    count, regions, boxes, _ = cv2.connectedComponentsWithStats(where & 1, connectivity=8)
    if count == 1:
        return None
    inside = regions == 1 + int(boxes[1:, cv2.CC_STAT_AREA].argmax())
    if (inside & begun).sum() < ALIKE * (inside | begun).sum():
        return None
    return cv2.resize(inside.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)


def agreement(maps: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, ...]:
    """What `shared_direction` must know of some photographs; of more it is the sum.

    Args:
        maps: float B x C x h x w.
        shares: float B x h x w, of `segment`.

    Returns:
        float64: number of places, C features' sum, the same weighted by the shares, the shares'
        sum.
    """
    weighted = np.einsum("bchw,bhw->c", maps, shares, dtype=np.float64, optimize=True)
    total = maps.sum((0, 2, 3), dtype=np.float64)
    count, shared = np.array(float(shares.size)), shares.sum(dtype=np.float64)
    return count, total, weighted, np.asarray(shared)


def shared_direction(places: Places, found: Iterable[tuple[np.ndarray, ...]]) -> Direction | None:
    """Step 3: the ridge regression of the object's share on features of unit variance.

    Args:
        places: of all photographs.
        found: `agreement` of those that could be segmented.

    Returns:
        None where there are none.
    """
    every = [*found]
    if not every:
        return None
    count, total, weighted, shares = (np.sum(each, 0) for each in zip(*every, strict=True))
    mean, share = total / count, shares / count
    scale = spread(places)
    along = (weighted / count - mean * share) / scale
    correlation = places.covariance / np.outer(scale, scale)
    direction = np.linalg.solve(correlation + RIDGE * np.eye(len(scale)), along)
    return Direction(mean, direction / scale, float(share))


def project(features: torch.Tensor, direction: Direction) -> torch.Tensor:
    """The maps of photographs, float32 B x h x w: a linear function of their feature vectors.

    Args:
        features: float B x C x h x w.
        direction: of C features.
    """
    component = torch.from_numpy(direction.component).to(features.device)
    along = torch.einsum("bchw,c->bhw", features.double(), component)
    return (along - float(direction.mean @ direction.component) + direction.intercept).float()


def object_maps(views: torch.Tensor, direction: Direction) -> torch.Tensor:
    """`project` of photographs and their mirror images, merged: float32 P x h x w.

    Args:
        views: float (P * 2) x C x h x w, each photograph as it is and mirrored.
        direction: of C features.
    """
    projected = project(views, direction)
    return (projected[::2] + projected[1::2].flip(2)) / 2
