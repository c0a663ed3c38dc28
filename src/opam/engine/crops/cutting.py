"""Crops cut from decoded photographs, from the original pixels to the network's in one go.

A crop is a box of the photograph seen the way the paper sees a whole image: scaled to
``resize`` x ``resize`` pixels, of which ``input_size`` x ``input_size`` are shown, at random
in training and in the centre in test. Both steps are one here: the shown part of the box is
computed first, so that nothing is blurred twice.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch

Read = Callable[[Any], np.ndarray]
"""A photograph by its path, uint8 H x W x 3, RGB: `Photographs`, say."""
FloatBox = tuple[float, float, float, float]


def shown_box(box: Sequence[float], fraction: float, across: float, down: float) -> FloatBox:
    """The part of ``box`` that a crop of ``fraction`` of its sides shows.

    Args:
        box: x0, y0, x1, y1.
        fraction: side of the shown part over side of the box, 0..1.
        across: horizontal place of the shown part, 0 (left) to 1 (right).
        down: vertical place, 0 (top) to 1 (bottom).
    """
    x0, y0, x1, y1 = box
    width, height = (x1 - x0) * fraction, (y1 - y0) * fraction
    left = x0 + across * (x1 - x0 - width)
    top = y0 + down * (y1 - y0 - height)
    return left, top, left + width, top + height


def centre_boxes(boxes: np.ndarray, fraction: float) -> np.ndarray:
    """The centred shown part of every box, as in test. float64 N x 4."""
    return np.array([shown_box(box, fraction, 0.5, 0.5) for box in boxes]).reshape(-1, 4)


def whole_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Boxes rounded to whole pixels of a photograph, at least one, int64 N x 4.

    Args:
        boxes: float N x 4, in pixels; what lies outside the photograph is left away.
        width: of the photograph.
        height: of the photograph.
    """
    ends = np.floor(np.asarray(boxes, dtype=np.float64) + 0.5).astype(np.int64).reshape(-1, 4)
    first = np.clip(ends[:, :2], 0, [width - 1, height - 1])
    return np.hstack([first, np.maximum(np.minimum(ends[:, 2:], [width, height]), first + 1)])


def cut(
    image: np.ndarray,
    boxes: np.ndarray,
    size: int,
    mirrored: Sequence[bool] | np.ndarray | None = None,
) -> torch.Tensor:
    """Cut boxes, rounded to whole pixels, and resample each to ``size`` x ``size``.

    Bilinear where a side grows, the mean over the pixels' areas where it shrinks.

    Args:
        image: uint8 H x W x 3.
        boxes: float N x 4, in pixels; what lies outside the image is left away.
        size: side of a crop in pixels.
        mirrored: which crops are mirrored; None: none.

    Returns:
        uint8 N x 3 x size x size, channels last in memory.
    """
    crops = np.empty((len(boxes), size, size, 3), dtype=np.uint8)
    ends = whole_pixels(boxes, *image.shape[1::-1])
    for crop, (left, top, right, bottom) in zip(crops, ends.tolist(), strict=True):
        part = image[top:bottom, left:right]
        columns, rows = min(size, part.shape[1]), min(size, part.shape[0])
        if part.shape[:2] != (rows, columns):
            part = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
        cv2.resize(part, (size, size), dst=crop, interpolation=cv2.INTER_LINEAR)
    if mirrored is not None:
        chosen = np.asarray(mirrored, dtype=bool)
        crops[chosen] = crops[chosen, :, ::-1]
    return torch.from_numpy(crops).permute(0, 3, 1, 2)
