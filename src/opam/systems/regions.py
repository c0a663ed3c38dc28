"""Where a network looked: from a map over the cells of an image to a box."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from opam.systems.prediction import Prediction

THRESHOLD = 0.2
"""Share of a map's range from which on a place is active (Zhou et al., CVPR 2016, section 3)."""

FINENESS = 8
"""Places a side of a cell: a box may end inside a cell."""

CONSTANT = 1e-6
"""A map whose range is at most this share of its greatest absolute value is constant."""


def class_activation_maps(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``M(x, y) = sum_u w_u f_u(x, y)`` (Zhou et al., CVPR 2016, section 2).

    Args:
        features: float B x D x h x w, the maps under global average pooling.
        weights: float B x D, the linear layer's weights of one class an image.

    Returns:
        float B x h x w; the mean of a map is the class's logit without bias.
    """
    return torch.einsum("bdhw,bd->bhw", features, weights)


def pooled_logits(features: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Float B x C: ``head`` on the spatial means of float B x D x h x w maps."""
    return head(features.mean((2, 3))).float()


def cam_prediction(features: torch.Tensor, head: nn.Linear) -> Prediction:
    """`pooled_logits`, and the box of the predicted class's activation map."""
    logits = pooled_logits(features, head)
    cams = class_activation_maps(features, head.weight[logits.argmax(1)])
    return Prediction(logits, activation_boxes(cams))


def activation_boxes(maps: torch.Tensor) -> torch.Tensor:
    """The box around the largest 8-connected active region of each map.

    A map is interpolated between the centres of its cells first (bilinear). Active is what lies
    at least `THRESHOLD` of the map's range above its least value. Regions are compared by area;
    the first in reading order wins among equals.

    Args:
        maps: float B x h x w, of any range.

    Returns:
        float32 B x 1 x 4: x0, y0, x1, y1 in 0..1 of the image's sides; the whole image where a
        map is constant or not finite. No gradient.
    """
    maps = maps.detach().float()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    fine = F.interpolate(maps[:, None], scale_factor=FINENESS, mode="bilinear")[:, 0]
    # "Not greater" is true of NaN too.
    flat = ~(high - low > CONSTANT * maps.abs().amax((1, 2), keepdim=True))
    active = (fine >= low + THRESHOLD * (high - low)) | flat
    boxes = [_largest_region(each) for each in active.cpu().numpy()]
    return torch.tensor(boxes, dtype=torch.float32, device=maps.device).view(-1, 1, 4)


def _largest_region(active: np.ndarray) -> tuple[float, float, float, float]:
    height, width = active.shape
    regions, _ = ndimage.label(active, structure=np.ones((3, 3)))
    places = np.bincount(regions.ravel())[1:]
    rows, columns = ndimage.find_objects(regions)[int(places.argmax())]
    return columns.start / width, rows.start / height, columns.stop / width, rows.stop / height
