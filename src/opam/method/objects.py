"""Object extraction (paper, section III-B): the box around the largest salient region.

Of a map M, 0..1, the largest connected region in which

    M(x, y) >= threshold.

Where that is the whole photograph there is no one object: shelves, crates, herds. A window of half
the sides then shows each of the many at twice the scale: the one where the class shows most stands
in, and with it nine are looked at, in steps of a quarter.

>>> saliency = np.zeros((6, 8))
>>> saliency[1:4, 3:7] = 0.9
>>> object_box(saliency, threshold=0.2)
(3, 1, 7, 4)
"""

from typing import Literal

import cv2
import numpy as np
from pydantic import Field
from scipy import ndimage

from opam.pipeline.params import Params

Box = tuple[int, int, int, int]
GRID = 32
"""Cells a side of a photograph at which objects end. Maps are no finer; and an object that moves by
a hair, because a photograph came to the set, would be looked at anew by all that follows."""
WHOLE = 0.95
"""Of a photograph's area: a box of so much tells no object from it."""
WINDOW = GRID // 2
"""Cells a side of what is looked at where there is no one object."""


class ObjectParams(Params):
    """What is salient."""

    map: Literal["colocalization", "cam"] = Field(
        "colocalization",
        description="colocalization: what the photographs share (see docs/method.md); "
        "cam: the class activation map alone, as in the paper",
    )
    threshold: float = Field(
        0.3, ge=0, le=1, description="salient is at least so much of the map's range"
    )


def chosen_map(cam: np.ndarray, common: np.ndarray | None, params: ObjectParams) -> np.ndarray:
    """The map that ``params.map`` names; of a co-localization map the object's side, above 0.

    Args:
        cam: float h x w.
        common: float h x w, which may be None where the map is the cam.
        params: which of them.
    """
    return cam if params.map == "cam" or common is None else np.maximum(common, 0)


def find_object(saliency: np.ndarray, threshold: float) -> tuple[Box, str]:
    """The object box and where it comes from.

    Args:
        saliency: float H x W, 0..1.
        threshold: pixels of at least this saliency are salient.

    Returns:
        x0, y0, x1, y1 (half-open, pixels) around the largest 8-connected salient region, by
        pixels, the first in reading order among equals, moved to a grid (`on_grid`); and "none",
        or "whole_image" where the map says nothing and the box is the whole photograph.
    """
    height, width = saliency.shape
    if saliency.max(initial=0) <= 0:
        return (0, 0, width, height), "whole_image"
    regions, count = ndimage.label(saliency >= threshold, structure=np.ones((3, 3)))
    if count == 0:
        return (0, 0, width, height), "whole_image"
    pixels = np.bincount(regions.ravel())[1:]
    rows, columns = ndimage.find_objects(regions)[int(pixels.argmax())]
    box = (columns.start, rows.start, columns.stop, rows.stop)
    return on_grid(box, width, height), "none"


def object_or_window(
    saliency: np.ndarray, cam: np.ndarray, params: ObjectParams
) -> tuple[Box, str]:
    """`find_object`, or where the photographs' common map finds no one object a window.

    Args:
        saliency: float H x W, 0..1, of `chosen_map`.
        cam: float h x w, the class activation map.
        params: which map it was, and its threshold.

    Returns:
        As `find_object`; or the `telling_window` and "window" where the box is `WHOLE`.
    """
    box, fallback = find_object(saliency, params.threshold)
    height, width = saliency.shape
    area = (box[2] - box[0]) * (box[3] - box[1])
    if params.map == "cam" or area < WHOLE * width * height or not np.ptp(cam) > 0:
        return box, fallback
    return telling_window(cam, width, height), "window"


def telling_window(cam: np.ndarray, width: int, height: int) -> Box:
    """The window of half the sides in which the class activation map is greatest.

    Args:
        cam: float h x w.
        width: of the photograph, pixels.
        height: of it.

    Returns:
        x0, y0, x1, y1, half-open, pixels, on the grid; the first in reading order among equals.
    """
    cells = cv2.resize(cam.astype(np.float64), (GRID, GRID), interpolation=cv2.INTER_AREA)
    windows = np.lib.stride_tricks.sliding_window_view(cells, (WINDOW, WINDOW)).mean((2, 3))
    y, x = np.unravel_index(windows.argmax(), windows.shape)
    return _window(int(x), int(y), width, height)


def object_crops(box: Box, fallback: str, width: int, height: int) -> list[Box]:
    """The boxes that stand for the object: its own first; where there is no one, nine windows too.

    Args:
        box: of `object_or_window`.
        fallback: of it.
        width: of the photograph, pixels.
        height: of it.
    """
    if fallback != "window":
        return [box]
    steps = range(0, GRID - WINDOW + 1, WINDOW // 2)
    return [box, *(_window(x, y, width, height) for y in steps for x in steps)]


def _window(x: int, y: int, width: int, height: int) -> Box:
    """`WINDOW` cells from x, y of the grid, in pixels."""
    corners = np.array([[x, y], [x + WINDOW, y + WINDOW]]) * [width, height] / GRID
    (x0, y0), (x1, y1) = np.rint(corners).astype(int).tolist()
    return on_grid((x0, y0, x1, y1), width, height)


def on_grid(box: Box, width: int, height: int) -> Box:
    """The box, its sides moved to the nearest of `GRID` cells, at least one wide and high.

    Args:
        box: half-open, pixels.
        width: of the photograph, pixels.
        height: of it.
    """
    sides = np.array([width, height])
    corners = np.rint(np.reshape(box, (2, 2)) / sides * GRID)
    corners[0] = np.minimum(corners[0], GRID - 1)
    corners[1] = np.maximum(corners[1], corners[0] + 1)
    low, high = np.rint(corners * sides / GRID).astype(int)
    (x0, y0), (x1, y1) = low, np.maximum(high, low + 1)  # a cell may be less than a pixel
    return int(x0), int(y0), int(x1), int(y1)


def object_box(saliency: np.ndarray, threshold: float) -> Box:
    """The box of `find_object`."""
    return find_object(saliency, threshold)[0]
