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
a few array operations; larger subsets fix their first n - 2 parts and score those pairs that
complete them and whose bound allows for the maximum.

>>> saliency = np.ones((20, 20))
>>> halves = np.array([[2, 2, 10, 18], [8, 2, 18, 18], [10, 2, 18, 18]])
>>> select_parts(saliency, [2, 2, 18, 18], halves).indices
(0, 2)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import combinations

import cv2
import numpy as np
from pydantic import Field, model_validator

from opam.pipeline.params import Params

EQUAL = 1e-9
"""Delta_part this close is equal: rounding must not decide between subsets."""

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
    spatial: bool = Field(
        True,
        description="parts are chosen together, by Delta_part; false: each by its saliency alone, "
        "to see what that is worth",
    )

    @model_validator(mode="after")
    def _some_fit(self) -> "PartParams":
        if self.max_iou <= self.min_iou:
            raise ValueError(
                f"max_iou is {self.max_iou}, not above min_iou, {self.min_iou}; no part could be "
                "between them"
            )
        return self


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
    spatial: bool = True,
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
        spatial: False takes, of those that qualify, the boxes of greatest mean saliency instead.

    Returns:
        The selection; never fewer than ``n_parts`` indices (see `Selection` for fallbacks).
    """
    measure = Measure(saliency, object_box)
    height, width = saliency.shape
    boxes = np.clip(np.asarray(candidates, dtype=np.int64).reshape(-1, 4), 0, [width, height] * 2)
    for fallback, least in (("none", min_iou), ("min_iou", 0.0)):
        qualified = qualifying(measure, boxes, least, min_inside, max_candidates, max_iou)
        if len(qualified) < n_parts:
            continue
        if not spatial:
            return _most_salient(saliency, object_box, boxes, qualified, n_parts, fallback)
        score, chosen = _best_subset(measure, boxes[qualified], n_parts)
        if np.isfinite(score):
            return Selection(tuple(int(qualified[i]) for i in chosen), score, fallback)
    real = np.flatnonzero(measure(boxes)[0] > 0)
    if len(real) >= n_parts:
        return _most_salient(saliency, object_box, boxes, real, n_parts, "saliency")
    return Selection((-1,) * n_parts, -np.inf, "object_box")


def _most_salient(
    saliency: np.ndarray,
    object_box: Sequence[int] | np.ndarray,
    boxes: np.ndarray,
    among: np.ndarray,
    n_parts: int,
    fallback: str,
) -> Selection:
    salient = mean_saliency(saliency, boxes[among])
    top = np.sort(among[np.argsort(-salient, kind="stable")[:n_parts]])
    score = score_parts(saliency, object_box, boxes[top].tolist())
    return Selection(tuple(int(i) for i in top), score, fallback)


def qualifying(
    measure: "Measure",
    boxes: np.ndarray,
    min_iou: float,
    min_inside: float,
    max_candidates: int | None,
    max_iou: float,
) -> np.ndarray:
    """Which boxes may become parts: int positions, rising; the limits are `select_parts`'.

    Args:
        measure: of the photograph's saliency and object box.
        boxes: int K x 4, inside the photograph.
        min_iou: as there, and so the others.
        min_inside: see there.
        max_candidates: see there.
        max_iou: see there.
    """
    area, inside, _ = measure(boxes)
    iou = inside / np.maximum(area + measure.object_area - inside, 1)
    overlaps = (iou > min_iou) & (iou <= max_iou)
    qualified = np.flatnonzero((area > 0) & overlaps & (inside >= min_inside * area))
    if max_candidates is not None and len(qualified) > max_candidates:
        qualified = qualified[np.arange(max_candidates) * len(qualified) // max_candidates]
    return qualified


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
        params.spatial,
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
        # A step is the last bit of a float32 in 0.5..1, so that this is exact.
        steps = np.rint(np.asarray(saliency, dtype=np.float32) * np.float32(SALIENCY_STEPS))
        self.integral = cv2.integral(steps, sdepth=cv2.CV_64F).ravel()
        self.stride = width + 1

    def __call__(self, boxes: np.ndarray) -> np.ndarray:
        """Float64 3 x ... (area, area inside the object, saliency steps) of int ... x 4 boxes."""
        return self.of_sides(np.moveaxis(boxes, -1, 0))

    def of_sides(self, sides: np.ndarray) -> np.ndarray:
        """The same of int 4 x ... boxes, side by side in memory; an empty one may have x1 < x0."""
        x0, y0, x1, y1 = sides
        x1, y1 = np.maximum(x0, x1), np.maximum(y0, y1)
        ox0, oy0, ox1, oy1 = self.object_box
        found = np.empty((3, *x0.shape))
        found[0] = (x1 - x0) * (y1 - y0)
        inside = (np.minimum(x1, ox1) - np.maximum(x0, ox0)).clip(0) * (
            np.minimum(y1, oy1) - np.maximum(y0, oy0)
        ).clip(0)
        np.minimum(inside, found[0], out=found[1])
        top, bottom, table = y0 * self.stride, y1 * self.stride, self.integral
        found[2] = table[bottom + x1] - table[top + x1] - table[bottom + x0] + table[top + x0]
        return found


class _Unions:
    """Sums over many subsets of parts at once, by inclusion-exclusion.

    Attributes:
        found: float64 3 x S: area of the union, its area inside the object, its saliency steps.
        shared: float64 S: the area that two or more parts cover.
    """

    def __init__(self, subsets: int) -> None:
        self.found = np.zeros((3, subsets))
        self.shared = np.zeros(subsets)

    def add(self, term: np.ndarray, size: int) -> None:
        """Take in what `Measure` gives, 3 x S, for an intersection of ``size`` of the parts."""
        if size % 2:
            self.found += term
            if size > 1:
                self.shared -= (size - 1) * term[0]
        else:
            self.found -= term
            self.shared += (size - 1) * term[0]

    def values(self) -> np.ndarray:
        """Float64 S: exp of Delta_part in saliency steps; 0 where that is undefined."""
        union, inside, saliency = self.found
        own = inside - self.shared  # A_U - A_I - A_O
        values = own * saliency / np.maximum(union, 1)
        values[(own <= 0) | (saliency <= 0)] = 0
        return values


@lru_cache(maxsize=8)
def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs i < j below ``count``, in lexicographic order."""
    return np.triu_indices(count, 1)


def _intersections(sides: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersections of broadcast 4 x ... boxes; an empty one may have x1 < x0."""
    low = np.maximum(sides[:2], others[:2])
    return np.concatenate([low, np.minimum(sides[2:], others[2:])])


def _best_subset(measure: Measure, boxes: np.ndarray, n: int) -> tuple[float, tuple[int, ...]]:
    """The greatest Delta_part over all n-subsets, and the first subset that reaches it."""
    sides = np.ascontiguousarray(boxes.T, dtype=np.int32)  # half the memory to gather from
    singles = measure.of_sides(sides)
    if n == 1:
        unions = _Unions(len(boxes))
        unions.add(singles, 1)
        best, index = _first_greatest(unions.values())
        return _delta(best), (index,)
    first, second = _pairs(len(boxes))
    common = _intersections(sides[:, first], sides[:, second])
    pairs = measure.of_sides(common)

    def values(prefix: tuple[int, ...], rows: np.ndarray | slice) -> np.ndarray:
        """Of the parts ``prefix`` together with each pair of ``rows``."""
        a, b = first[rows], second[rows]
        unions = _Unions(len(a))
        for size in range(len(prefix) + 1):
            # Intersections of the fixed parts ``inner`` with neither, one, both of a pair.
            for inner in combinations(prefix, size):
                one, both = singles, pairs[:, rows]
                if inner:
                    fixed = reduce(_intersections, (sides[:, each, None] for each in inner))
                    one = measure.of_sides(_intersections(sides, fixed))
                    both = measure.of_sides(_intersections(common[:, rows], fixed))
                    unions.add(measure.of_sides(fixed), size)
                unions.add(one[:, a], size + 1)
                unions.add(one[:, b], size + 1)
                unions.add(both, size + 2)
        return unions.values()

    best, index = _first_greatest(values((), slice(None)))
    chosen: tuple[int, ...] = (int(first[index]), int(second[index]))
    if n == 2:
        return _delta(best), chosen
    bounds = _Bounds(singles, pairs)
    # What a greedy choice reaches, the best subset reaches as well.
    least = _greedy(values, chosen, n, first, second)
    best = 0.0
    chosen = tuple(range(n))
    for prefix, start in _prefixes(len(boxes), n - 2):
        rows = bounds.promising(prefix, start, max(least, best) * (1 - 2 * EQUAL))
        if len(rows):
            top, index = _first_greatest(values(prefix, rows))
            if top > best * (1 + EQUAL):
                best = top
                chosen = (*prefix, int(first[rows[index]]), int(second[rows[index]]))
    return _delta(best), chosen


def _greedy(
    values: Callable[[tuple[int, ...], np.ndarray], np.ndarray],
    pair: tuple[int, ...],
    n: int,
    first: np.ndarray,
    second: np.ndarray,
) -> float:
    """The value of the best pair with the best part added, n - 2 times."""
    parts, value = pair, 0.0
    while len(parts) < n:
        *prefix, last = parts
        with_last = np.where(first == last, second, np.where(second == last, first, -1))
        rows = np.flatnonzero((with_last >= 0) & ~np.isin(with_last, prefix))
        value, index = _first_greatest(values(tuple(prefix), rows))
        parts = (*prefix, last, int(with_last[rows[index]]))
    return value


class _Bounds:
    """What a subset of three or four parts can reach at most, by its pairs alone.

    The value is own / union * saliency of the union, of areas own <= union. The saliency is at
    most the sum over two pieces of the subset; the own area at most the parts' areas inside the
    object, less for any two parts what they share, counted once inside the object and once in
    all; the union at least that of any two parts.

    Args:
        singles: 3 x K, what `Measure` gives for each part.
        pairs: 3 x K (K - 1) / 2, the same for the intersections of all `_pairs`.
    """

    def __init__(self, singles: np.ndarray, pairs: np.ndarray) -> None:
        count = singles.shape[1]
        self.first, self.second = _pairs(count)
        shared = np.zeros((3, count, count))
        shared[:, self.first, self.second] = shared[:, self.second, self.first] = pairs
        _, self.inside, self.saliency = singles
        self.area, _, self.union_saliency = singles[:, :, None] + singles[:, None, :] - shared
        self.lost = shared[0] + shared[1]
        pair = (self.first, self.second)
        self.pair_saliency = self.union_saliency[pair]

    def promising(self, prefix: tuple[int, ...], start: int, least: float) -> np.ndarray:
        """Positions of the pairs, from part ``start`` on, that may reach ``least`` with it."""
        offset = int(np.searchsorted(self.first, start))
        if len(prefix) == 1:
            fixed, others = (
                self.saliency[prefix[0]],
                (self.union_saliency[prefix[0]], self.saliency),
            )
        else:
            fixed = self.union_saliency[prefix]
            others = (self.union_saliency[prefix[0]], self.union_saliency[prefix[1]])
        rows = offset + np.flatnonzero(self.pair_saliency[offset:] >= least - fixed)
        if len(rows) == 0:
            return rows
        a, b = self.first[rows], self.second[rows]
        saliency = np.minimum(others[0][a] + others[1][b], others[0][b] + others[1][a])
        saliency = np.minimum(saliency, self.pair_saliency[rows] + fixed)
        own = self.inside[list(prefix)].sum() + self.inside[a] + self.inside[b]
        lost, area = self.lost[a, b], self.area[a, b]
        for part in prefix:
            lost = np.maximum(lost, np.maximum(self.lost[part][a], self.lost[part][b]))
            area = np.maximum(area, np.maximum(self.area[part][a], self.area[part][b]))
        return rows[saliency * np.minimum((own - lost) / area, 1) >= least]


def _prefixes(count: int, length: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Rising prefixes of subsets, and the least index that may follow."""
    for prefix in combinations(range(count), length):
        start = prefix[-1] + 1 if prefix else 0
        if count - start >= 2:
            yield prefix, start


def _first_greatest(values: np.ndarray) -> tuple[float, int]:
    """The greatest value, and the first that equals it."""
    top = float(values.max())
    return top, int(np.argmax(values >= top * (1 - EQUAL)))


def _delta(value: float) -> float:
    """Delta_part of a value of `_Unions`."""
    return float(np.log(value / SALIENCY_STEPS)) if value > 0 else -np.inf
