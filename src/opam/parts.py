"""Part selection under object and part spatial constraints (paper, section III-C).

Of all n-subsets P of the candidates the one with the greatest

    Delta(P) = Delta_box(P) * Delta_part(P)

is taken. Delta_box is 1 where every part overlaps the object enough, else 0. Delta_part is

    log(A_U - A_I - A_O) + log(mean saliency over the union)

with A_U the pixels of the union of the parts, A_I those that two or more parts cover, and A_O
those of the union outside the object box: parts should cover the object, without overlap,
where it is salient.

The maximum is exact. Every quantity is an inclusion-exclusion sum over intersections of boxes,
which are boxes again; their saliency comes from one integral image. So all pairs are scored in
a few array operations; larger subsets fix their first n - 2 parts and score all pairs that
complete them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from pydantic import Field

from opam.config import Params

EQUAL = 1e-9
"""Scores this close are equal: rounding must not decide between subsets."""

SALIENCY_STEPS = 2.0**24
"""Saliency is rounded to this many steps, so that its sums are exact integers."""


class PartParams(Params):
    """How many parts, and what a candidate must fulfil."""

    n_parts: int = Field(2, ge=1, le=4, description="parts a photograph")
    min_iou: float = Field(
        0.2, ge=0, lt=1, description="a part's IoU with the object box is above this"
    )
    max_iou: float = Field(
        1.0,
        gt=0,
        le=1,
        description="and at most this: below 1, no part is the whole object (1: as in the paper)",
    )
    min_inside: float = Field(
        0.7, ge=0, le=1, description="least share of a part that lies inside the object box"
    )
    max_candidates: int = Field(200, ge=4, description="at most so many candidates a photograph")


@dataclass(frozen=True)
class Selection:
    """The chosen parts of one photograph.

    Attributes:
        indices: positions among the candidates, rising; -1 stands for the object box itself.
        score: Delta of the chosen parts; minus infinity where undefined.
        fallback: "none"; "min_iou" where the least IoU was relaxed to 0; "saliency" where the
            candidates of highest mean saliency were taken; "object_box" where there were too
            few candidates.
    """

    indices: tuple[int, ...]
    score: float
    fallback: str


def score_parts(
    saliency: np.ndarray, object_box: Sequence[int] | np.ndarray, boxes: Sequence[Sequence[int]]
) -> float:
    """Delta_part of a set of parts, by its definition, pixel by pixel.

    Args:
        saliency: float H x W, 0..1.
        object_box: x0, y0, x1, y1, half-open, pixels.
        boxes: one box a part.

    Returns:
        The score; minus infinity where a logarithm is undefined.
    """
    cover = np.zeros(saliency.shape, dtype=np.int64)
    for x0, y0, x1, y1 in boxes:
        cover[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] += 1
    union = cover > 0
    inside = np.zeros(saliency.shape, dtype=bool)
    x0, y0, x1, y1 = object_box
    inside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    own = int(union.sum()) - int((cover > 1).sum()) - int((union & ~inside).sum())
    if own <= 0:
        return -np.inf
    mean = float(saliency[union].mean(dtype=np.float64))
    return float(np.log(own) + np.log(mean)) if mean > 0 else -np.inf


def select_parts(
    saliency: np.ndarray,
    object_box: Sequence[int] | np.ndarray,
    candidates: np.ndarray,
    n_parts: int = 2,
    min_iou: float = 0.2,
    min_inside: float = 0.7,
    max_candidates: int | None = None,
    max_iou: float = 1.0,
) -> Selection:
    """The n parts of greatest Delta, exactly; among equals those of lowest rank.

    Args:
        saliency: float H x W, 0..1.
        object_box: x0, y0, x1, y1, half-open, pixels.
        candidates: int K x 4 in order of rank; boxes are clipped to the photograph, and empty
            ones are never chosen.
        n_parts: parts to choose, 1 to 4.
        min_iou: every part's IoU with the object box is above this.
        min_inside: at least this share of every part's pixels lies inside the object box.
        max_candidates: where more qualify, so many of them, evenly over the ranks; None: all.
        max_iou: every part's IoU with the object box is at most this.

    Returns:
        The selection; never fewer than ``n_parts`` indices (see `Selection` for fallbacks).
    """
    measure = Measure(saliency, object_box)
    height, width = saliency.shape
    boxes = np.clip(np.asarray(candidates, dtype=np.int64).reshape(-1, 4), 0, [width, height] * 2)
    for fallback, least in (("none", min_iou), ("min_iou", 0.0)):
        indices = qualified(measure, boxes, least, max_iou, min_inside, max_candidates)
        if len(indices) < n_parts:
            continue
        score, chosen = _best_subset(measure, boxes[indices], n_parts)
        if np.isfinite(score):
            return Selection(tuple(int(indices[i]) for i in chosen), score, fallback)
    real = np.flatnonzero(measure(boxes)[0] > 0)
    if len(real) >= n_parts:
        salient = mean_saliency(saliency, boxes[real])
        top = np.sort(real[np.argsort(-salient, kind="stable")[:n_parts]])
        score = score_parts(saliency, object_box, boxes[top].tolist())
        return Selection(tuple(int(i) for i in top), score, "saliency")
    return Selection((-1,) * n_parts, -np.inf, "object_box")


def choose_parts(
    saliency: np.ndarray, object_box: np.ndarray, candidates: np.ndarray, params: PartParams
) -> tuple[np.ndarray, Selection]:
    """The boxes of `select_parts`, int32 n x 4, and the selection."""
    selection = select_parts(
        saliency,
        object_box,
        candidates,
        params.n_parts,
        params.min_iou,
        params.min_inside,
        params.max_candidates,
        params.max_iou,
    )
    chosen = [object_box if index < 0 else candidates[index] for index in selection.indices]
    return np.array(chosen, dtype=np.int32), selection


def mean_saliency(saliency: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Mean saliency inside each of int K x 4 boxes, clipped; float64 K, 0 for empty boxes."""
    height, width = saliency.shape
    clipped = np.clip(np.asarray(boxes, dtype=np.int64).reshape(-1, 4), 0, [width, height] * 2)
    area, _, total = Measure(saliency, (0, 0, 0, 0))(clipped)
    return total / SALIENCY_STEPS / np.maximum(area, 1)


class Measure:
    """Area, area inside the object box, and summed saliency of boxes, all exact.

    Args:
        saliency: float H x W, 0..1.
        object_box: x0, y0, x1, y1.
    """

    def __init__(self, saliency: np.ndarray, object_box: Sequence[int] | np.ndarray) -> None:
        height, width = saliency.shape
        self.object_box = np.clip(np.asarray(object_box, dtype=np.int64), 0, [width, height] * 2)
        self.object_area = int((self.object_box[2:] - self.object_box[:2]).clip(0).prod())
        steps = np.rint(np.asarray(saliency, dtype=np.float64) * SALIENCY_STEPS)
        self.integral = cv2.integral(steps, sdepth=cv2.CV_64F).ravel()
        self.stride = width + 1

    def __call__(self, boxes: np.ndarray) -> np.ndarray:
        """Float64 3 x ... (area, area inside the object, saliency steps) of int ... x 4 boxes."""
        x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)
        x1, y1 = np.maximum(x0, x1), np.maximum(y0, y1)
        ox0, oy0, ox1, oy1 = self.object_box
        area = (x1 - x0) * (y1 - y0)
        inside = (np.minimum(x1, ox1) - np.maximum(x0, ox0)).clip(0) * (
            np.minimum(y1, oy1) - np.maximum(y0, oy0)
        ).clip(0)
        top, bottom, table = y0 * self.stride, y1 * self.stride, self.integral
        total = table[bottom + x1] - table[top + x1] - table[bottom + x0] + table[top + x0]
        return np.stack([area, np.minimum(inside, area), total]).astype(np.float64)


def qualified(
    measure: Measure,
    boxes: np.ndarray,
    min_iou: float,
    max_iou: float,
    min_inside: float,
    max_candidates: int | None,
) -> np.ndarray:
    """Positions of the boxes, int K x 4 and clipped, that may become a part (`select_parts`)."""
    area, inside, _ = measure(boxes)
    iou = inside / np.maximum(area + measure.object_area - inside, 1)
    overlaps = (iou > min_iou) & (iou <= max_iou)
    found = np.flatnonzero((area > 0) & overlaps & (inside >= min_inside * area))
    if max_candidates is not None and len(found) > max_candidates:
        found = found[np.arange(max_candidates) * len(found) // max_candidates]
    return found


def _intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersections of broadcast ... x 4 boxes; an empty one may have x1 < x0."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    return np.concatenate([low, np.minimum(boxes[..., 2:], others[..., 2:])], axis=-1)


def _best_subset(measure: Measure, boxes: np.ndarray, n: int) -> tuple[float, tuple[int, ...]]:
    """The greatest Delta_part over all n-subsets, and the first subset that reaches it."""
    best, chosen = -np.inf, tuple(range(n))
    if n == 1:
        scores = _scores(measure(boxes)[:, :, None], [1])
        index = int(np.argmax(scores >= scores.max() - EQUAL))
        return float(scores[index]), (index,)
    first, second = np.triu_indices(len(boxes), 1)
    singles = measure(boxes)
    pairs = measure(_intersections(boxes[first], boxes[second]))
    for prefix, start in _prefixes(len(boxes), n - 2):
        rows = slice(int(np.searchsorted(first, start)), None)
        a, b = first[rows], second[rows]
        terms, sizes = [], []
        for size in range(n - 1):
            for inner in combinations(prefix, size):
                # Intersections of the fixed parts ``inner`` with neither, one, both of a pair.
                if inner:
                    common = boxes[inner[0]]
                    for index in inner[1:]:
                        common = _intersections(common, boxes[index])
                    alone = measure(common)[:, None]
                    one = measure(_intersections(boxes, common))
                    both = measure(_intersections(_intersections(boxes[a], boxes[b]), common))
                    terms += [np.broadcast_to(alone, (3, len(a)))]
                    sizes += [size]
                else:
                    one, both = singles, pairs[:, rows]
                terms += [one[:, a], one[:, b], both]
                sizes += [size + 1, size + 1, size + 2]
        scores = _scores(np.stack(terms, axis=-1), sizes)
        top = float(scores.max(initial=-np.inf))
        if top > best + EQUAL or (np.isfinite(top) and not np.isfinite(best)):
            index = int(np.argmax(scores >= top - EQUAL))
            best, chosen = top, (*prefix, int(a[index]), int(b[index]))
    return best, chosen


def _prefixes(count: int, length: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Rising prefixes of subsets, and the least index that may follow."""
    for prefix in combinations(range(count), length):
        start = prefix[-1] + 1 if prefix else 0
        if count - start >= 2:
            yield prefix, start


def _scores(terms: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Delta_part of many subsets at once by inclusion-exclusion.

    Args:
        terms: 3 x S x T: area, inside area and saliency of the intersection of each of T
            non-empty sets of parts, for S subsets.
        sizes: how many parts each of the T intersections is of.

    Returns:
        float64 S.
    """
    size = np.asarray(sizes)
    sign = np.where(size % 2 == 1, 1.0, -1.0)
    union, inside, saliency = terms @ sign
    shared = terms[0] @ (-sign * (size - 1))
    own = union - shared - (union - inside)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.log(own) + np.log(saliency / SALIENCY_STEPS / union)
    return np.where((own > 0) & (saliency > 0), scores, -np.inf)
