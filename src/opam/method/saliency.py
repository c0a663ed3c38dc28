"""Saliency (paper, section III-B): the class activation map of Zhou et al. (CVPR 2016).

Of the feature maps f_u under the global average and the linear layer's weights w_u^c of class c:

    M_c(x, y) = sum over u of w_u^c f_u(x, y)

>>> features = np.array([[[[0.0, 1.0]], [[2.0, 0.0]]]])
>>> class_activation_maps(features, weights=np.array([[1.0, 0.25]]))
array([[[0.5, 1. ]]])
"""

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field

from opam.pipeline.params import Params

Array = Any
"""NumPy's or torch's: maps are made where the network is."""


class SaliencyParams(Params):
    """How a photograph is looked at, and how fine the merged map is."""

    input_size: int = Field(224, ge=32, le=2048, description="side of a crop in pixels")
    crops: Literal["ten", "two"] = Field(
        "ten",
        description="ten: corners, centre and their mirrors, as in the paper; two: the photograph "
        "and its mirror image, a fifth of the work",
    )
    map_size: int = Field(32, ge=4, le=512, description="cells a side of the merged map")


CROP_FRACTION = 224 / 256
"""Side of a crop over side of the photograph, in the paper."""

CONSTANT = 1e-6
"""A map whose range is at most this share of its greatest absolute value is constant."""


def views_of(crops: Literal["ten", "two"]) -> tuple[np.ndarray, list[bool]]:
    """Corners and centre of a photograph, and their mirrors; or the photograph and its mirror.

    Returns:
        float64 V x 4 boxes x0, y0, x1, y1 in 0..1 of the photograph's sides, and which of
        them are mirrored.
    """
    if crops == "two":
        return np.array([[0.0, 0.0, 1.0, 1.0]] * 2), [False, True]
    margin = 1 - CROP_FRACTION
    corners = [(0, 0), (margin, 0), (0, margin), (margin, margin), (margin / 2, margin / 2)]
    boxes = np.array([(x, y, x + CROP_FRACTION, y + CROP_FRACTION) for x, y in corners])
    return np.tile(boxes, (2, 1)), [False] * len(boxes) + [True] * len(boxes)


def class_activation_maps(features: Array, weights: Array) -> Array:
    """``M_c = sum_u w_u^c f_u`` (paper, section III-B).

    Args:
        features: float B x C x h x w, the maps under global average pooling.
        weights: float B x C, the linear layer's weights of one class an image.

    Returns:
        float B x h x w; the mean of a map is the class's logit without bias.
    """
    batch, channels, height, width = features.shape
    maps = weights[:, None] @ features.reshape(batch, channels, -1)
    return maps.reshape(batch, height, width)


def difference_maps(features: Array, answers: Array, others: Array) -> Array:
    """What each place adds to the lead of one class over another: of both maps the difference.

    Args:
        features: float B x C x h x w, the maps under global average pooling.
        answers: float B x C, the linear layer's weights of one class an image.
        others: the same of another class.

    Returns:
        float B x h x w; the sum of a map is the difference of both logits without their bias.
    """
    return class_activation_maps(features, answers - others) / features[0, 0].size


def predicted_class_maps(
    features: Array, logits: Array, weights: Array, views: int
) -> tuple[Array, Array]:
    """The class that all views of a photograph together ask for, and its map in each view.

    Args:
        features: float (P * V) x C x h x w, a network's maps of the views of P photographs.
        logits: float (P * V) x classes.
        weights: float classes x C, of the linear layer.
        views: V.

    Returns:
        int P labels, and float P x V x h x w.
    """
    labels = logits.reshape(-1, views, logits.shape[1]).mean(1).argmax(1)
    photographs = np.arange(len(features)) // views
    maps = class_activation_maps(features, weights[labels][photographs])
    return labels, maps.reshape(-1, views, *maps.shape[1:])


def merge_views(
    cams: Sequence[np.ndarray], boxes: np.ndarray, mirrored: Sequence[bool], size: int
) -> np.ndarray:
    """The mean of several views' maps on one grid over the whole photograph.

    Args:
        cams: one float h x w map a view.
        boxes: V x 4, each view's place in 0..1.
        mirrored: which views were mirrored before the network saw them.
        size: cells a side of the grid.

    Returns:
        float32 size x size; cells that no view covers hold the least value.
    """
    total = np.zeros((size, size))
    count = np.zeros((size, size))
    for cam, box, mirror in zip(cams, boxes, mirrored, strict=True):
        x0, y0, x1, y1 = np.rint(np.asarray(box) * size).astype(int)
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        view = np.ascontiguousarray(cam[:, ::-1] if mirror else cam, dtype=np.float32)
        total[y0:y1, x0:x1] += cv2.resize(view, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        count[y0:y1, x0:x1] += 1
    seen = count > 0
    merged = np.full((size, size), (total[seen] / count[seen]).min())
    merged[seen] = total[seen] / count[seen]
    return merged.astype(np.float32)


def to_image(cam: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a map to the photograph (bilinear) and its values to 0..1.

    Args:
        cam: float h x w.
        height: of the photograph, pixels.
        width: of the photograph, pixels.

    Returns:
        float32 height x width, least value 0 and greatest 1; all 0 where the map is constant
        or not finite.
    """
    scaled = cv2.resize(
        np.asarray(cam, dtype=np.float32), (int(width), int(height)), interpolation=cv2.INTER_LINEAR
    )
    low, high = float(scaled.min()), float(scaled.max())
    # Interpolation of equal values rounds; that noise must not be stretched to 0..1.
    if not np.isfinite(high - low) or high - low <= CONSTANT * max(abs(low), abs(high)):
        return np.zeros_like(scaled)
    return (scaled - low) / (high - low)
