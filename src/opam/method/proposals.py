"""Patch proposals: selective search (Uijlings et al., IJCV 2013; paper, section III-A).

A photograph is cut into segments, and the two neighbours that are most alike,

    s(a, b) = s_colour + s_texture + s_size + s_fill,

are joined until one is left. The box around each segment that there ever was is a proposal.

>>> image = np.zeros((64, 64, 3), dtype=np.uint8)
>>> image[16:48, 24:56] = 255
>>> [24, 16, 56, 48] in propose(image, ProposalParams(max_boxes=9)).tolist()
True
"""

from typing import Literal

import cv2
import numpy as np
from pydantic import Field, model_validator

from opam.pipeline.errors import OpamError
from opam.pipeline.params import Params


class ProposalParams(Params):
    """Which boxes of a photograph are looked at."""

    engine: Literal["opencv", "selectivesearch"] = Field(
        "opencv", description="whose selective search: OpenCV's, or the package selectivesearch"
    )
    mode: Literal["fast", "quality", "single"] = Field(
        "fast", description="opencv only: how many segmentations and strategies are combined"
    )
    max_side: int = Field(
        1000, ge=64, le=4000, description="a larger photograph is searched at this longest side"
    )
    min_side: int = Field(20, ge=1, description="least side of a box, pixels of the searched image")
    max_boxes: int = Field(1000, ge=1, description="at most so many boxes a photograph")

    @model_validator(mode="after")
    def _some_fit(self) -> "ProposalParams":
        if self.min_side > self.max_side:
            raise ValueError(
                f"min_side is {self.min_side}, more than max_side, {self.max_side}; no box could "
                "be so large"
            )
        return self


ENGINES = ("opencv", "selectivesearch")
MODES = ("fast", "quality", "single")
SIGMA = 0.8
LEAST_SIDE = 32
"""OpenCV's search has crashed on narrower images; they are padded up to this."""


def selective_search(
    image: np.ndarray,
    engine: str = "opencv",
    mode: str = "fast",
    min_side: int = 20,
    max_boxes: int = 1000,
) -> np.ndarray:
    """Boxes around regions that a hierarchical segmentation finds.

    The result is the same again, whatever the library's own order: boxes are sorted, largest
    first, and where there are more than ``max_boxes``, every k-th of them is taken, so that
    all sizes stay represented. One call keeps one thread busy; photographs are searched side
    by side.

    Args:
        image: uint8 H x W x 3, RGB.
        engine: "opencv" (contrib) or "selectivesearch" (the Python package).
        mode: opencv only: "fast", "quality" or "single".
        min_side: least side of a box in pixels.
        max_boxes: at most so many boxes.

    Returns:
        int32 N x 4: x0, y0, x1, y1, half-open; by falling area, then by x0, y0, x1, y1. N may
        be 0.

    Raises:
        OpamError: unknown engine or mode.
    """
    for name, value, known in (("engine", engine, ENGINES), ("mode", mode, MODES)):
        if value not in known:
            raise OpamError(f"proposals.{name}: unknown '{value}'; use one of {', '.join(known)}")
    found = _opencv(image, mode) if engine == "opencv" else _selectivesearch(image)
    height, width = image.shape[:2]
    boxes = np.clip(found, 0, [width, height, width, height]).astype(np.int32)
    sides = boxes[:, 2:] - boxes[:, :2]
    boxes = np.unique(boxes[(sides >= max(1, min_side)).all(1)], axis=0)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    boxes = boxes[np.argsort(-area, kind="stable")]
    if len(boxes) > max_boxes:
        boxes = boxes[np.arange(max_boxes) * len(boxes) // max_boxes]
    return boxes


def _opencv(image: np.ndarray, mode: str) -> np.ndarray:
    cv2.setNumThreads(1)
    height, width = image.shape[:2]
    below, right = max(0, LEAST_SIDE - height), max(0, LEAST_SIDE - width)
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(padded[..., ::-1]))
    if mode == "single":
        search.switchToSingleStrategy(k=150, sigma=SIGMA)
    elif mode == "quality":
        search.switchToSelectiveSearchQuality(base_k=150, inc_k=150, sigma=SIGMA)
    else:
        search.switchToSelectiveSearchFast(base_k=150, inc_k=150, sigma=SIGMA)
    boxes = np.asarray(search.process(), dtype=np.int64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _selectivesearch(image: np.ndarray) -> np.ndarray:
    import selectivesearch

    _, regions = selectivesearch.selective_search(image, scale=100, sigma=SIGMA, min_size=50)
    boxes = np.array([region["rect"] for region in regions], dtype=np.int64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] + 1
    return boxes


def propose(image: np.ndarray, params: ProposalParams) -> np.ndarray:
    """The boxes of one photograph, searched at a bounded size; never none.

    Args:
        image: uint8 H x W x 3, RGB.
        params: engine, size and number.

    Returns:
        int32 N x 4 in pixels of ``image``, as `selective_search`; where the search finds
        nothing, the whole photograph and its four quarters.
    """
    height, width = image.shape[:2]
    scale = min(1.0, params.max_side / max(height, width))
    searched = image
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        searched = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    boxes = selective_search(
        searched, params.engine, params.mode, params.min_side, params.max_boxes
    )
    if len(boxes) == 0:
        return whole_and_quarters(height, width)
    factors = np.array([width, height] * 2) / np.array([searched.shape[1], searched.shape[0]] * 2)
    outward = np.concatenate(
        [np.floor(boxes[:, :2] * factors[:2]), np.ceil(boxes[:, 2:] * factors[2:])], 1
    )
    return np.clip(outward, 0, [width, height, width, height]).astype(np.int32)


def whole_and_quarters(height: int, width: int) -> np.ndarray:
    """int32 N x 4: the photograph, then its quarters where it has any."""
    x, y = width // 2, height // 2
    boxes = np.array(
        [
            (0, 0, width, height),
            (0, 0, x, y),
            (x, 0, width, y),
            (0, y, x, height),
            (x, y, width, height),
        ],
        dtype=np.int32,
    )
    return boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)]
