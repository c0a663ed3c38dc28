from itertools import combinations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opam.method.parts import Selection, mean_saliency, score_parts, select_parts

Box = tuple[int, int, int, int]


def literal_score(saliency: np.ndarray, object_box: Box, boxes: list[Box]) -> float:
    """Delta_part with one loop over all pixels."""
    union = shared = outside = 0
    total = 0.0
    height, width = saliency.shape
    for y in range(height):
        for x in range(width):
            covering = sum(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)
            if not covering:
                continue
            union += 1
            shared += covering >= 2
            total += float(saliency[y, x])
            ox0, oy0, ox1, oy1 = object_box
            outside += not (ox0 <= x < ox1 and oy0 <= y < oy1)
    own = union - shared - outside
    if own <= 0 or total <= 0:
        return -np.inf
    return float(np.log(own) + np.log(total / union))


def pixels(box: Box) -> set[tuple[int, int]]:
    x0, y0, x1, y1 = box
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


def literal_selection(
    saliency: np.ndarray,
    object_box: Box,
    boxes: list[Box],
    n: int,
    iou: tuple[float, float],
    inside: float,
) -> tuple[tuple[int, ...], float] | None:
    """The best subset of the qualifying boxes by enumeration; None where there is none."""
    whole = pixels(object_box)
    qualified = []
    for index, box in enumerate(boxes):
        own = pixels(box)
        if not own:
            continue
        shared = len(own & whole)
        if iou[0] < shared / len(own | whole) <= iou[1] and shared >= inside * len(own):
            qualified.append(index)
    scored = [
        (literal_score(saliency, object_box, [boxes[i] for i in chosen]), chosen)
        for chosen in combinations(qualified, n)
    ]
    defined = [(score, chosen) for score, chosen in scored if np.isfinite(score)]
    if not defined:
        return None
    best = max(score for score, _ in defined)
    return next((chosen, score) for score, chosen in defined if score >= best - 1e-9)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[np.ndarray, Box, list[Box]]:
    height, width = draw(st.integers(4, 10)), draw(st.integers(4, 10))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Few levels make ties; exact halves keep the literal sums exact too.
    saliency = (rng.integers(0, 5, (height, width)) / 4).astype(np.float32)

    def box(least: int) -> Box:
        x0, x1 = np.sort(rng.integers(0, width + 1, 2))
        y0, y1 = np.sort(rng.integers(0, height + 1, 2))
        return int(x0), int(y0), int(min(width, x1 + least)), int(min(height, y1 + least))

    x0, y0, x1, y1 = box(1)
    object_box = min(x0, width - 1), min(y0, height - 1), max(x1, 1), max(y1, 1)
    return saliency, object_box, [box(0) for _ in range(draw(st.integers(0, 9)))]


@settings(max_examples=400, deadline=None)
@given(
    scenes(),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.1, 0.3]),
    st.sampled_from([0.4, 0.7, 1.0]),
    st.sampled_from([0.0, 0.5, 0.75, 1.0]),
)
def test_the_selection_is_that_of_brute_force(
    scene: tuple[np.ndarray, Box, list[Box]],
    n: int,
    min_iou: float,
    max_iou: float,
    min_inside: float,
) -> None:
    saliency, object_box, boxes = scene
    candidates = np.array(boxes, dtype=np.int32).reshape(-1, 4)
    selection = select_parts(
        saliency, object_box, candidates, n, min_iou, min_inside, max_iou=max_iou
    )
    for fallback, least in (("none", min_iou), ("min_iou", 0.0)):
        expected = literal_selection(saliency, object_box, boxes, n, (least, max_iou), min_inside)
        if expected:
            assert selection.fallback == fallback
            assert selection.indices == expected[0]
            assert selection.score == pytest.approx(expected[1], abs=1e-6)
            return
    real = [index for index, box in enumerate(boxes) if pixels(box)]
    if len(real) >= n:
        means = {i: -np.mean([saliency[y, x] for x, y in pixels(boxes[i])]) for i in real}
        top = tuple(sorted(sorted(real, key=lambda i: (round(means[i], 9), i))[:n]))
        assert selection.fallback == "saliency"
        assert selection.indices == top
    else:
        assert selection == Selection((-1,) * n, -np.inf, "object_box")


@settings(max_examples=150, deadline=None)
@given(scenes(), st.integers(1, 3))
def test_score_parts_is_the_literal_formula(
    scene: tuple[np.ndarray, Box, list[Box]], n: int
) -> None:
    saliency, object_box, boxes = scene
    chosen = boxes[:n]
    expected = literal_score(saliency, object_box, chosen)
    assert score_parts(saliency, object_box, chosen) == pytest.approx(expected, abs=1e-6)


def test_two_halves_of_an_even_object_beat_overlap_and_overhang() -> None:
    saliency = np.zeros((20, 40), dtype=np.float32)
    saliency[5:15, 10:30] = 1
    boxes = np.array(
        [
            (10, 5, 25, 15),
            (10, 5, 20, 15),  # left half
            (20, 5, 30, 15),  # right half
            (20, 5, 40, 15),
        ]
    )
    selection = select_parts(saliency, (10, 5, 30, 15), boxes, 2, 0.1, 0.7)
    assert selection.indices == (1, 2)
    assert selection.score == pytest.approx(np.log(200))


def test_equal_subsets_go_to_the_lowest_ranks() -> None:
    saliency = np.ones((10, 20), dtype=np.float32)
    boxes = np.array([(0, 0, 10, 10), (10, 0, 20, 10), (0, 0, 10, 10), (10, 0, 20, 10)])
    assert select_parts(saliency, (0, 0, 20, 10), boxes, 2, 0.1, 0.7).indices == (0, 1)


def test_candidates_beyond_the_photograph_are_clipped() -> None:
    saliency = np.ones((10, 20), dtype=np.float32)
    boxes = np.array([(-5, -5, 10, 10), (10, 0, 99, 99)])
    selection = select_parts(saliency, (0, 0, 20, 10), boxes, 2, 0.1, 0.7)
    assert selection.indices == (0, 1)
    assert selection.score == pytest.approx(np.log(200))


def test_a_cap_keeps_all_sizes() -> None:
    rng = np.random.default_rng(0)
    saliency = rng.random((50, 50), dtype=np.float32)
    boxes = np.array([(0, 0, side, side) for side in range(50, 10, -1)])
    every = select_parts(saliency, (0, 0, 50, 50), boxes, 1, 0.0, 0.5)
    capped = select_parts(saliency, (0, 0, 50, 50), boxes, 1, 0.0, 0.5, max_candidates=10)
    assert every.score >= capped.score
    assert capped.indices[0] % 4 == 0


def test_mean_saliency_is_the_plain_mean() -> None:
    rng = np.random.default_rng(0)
    saliency = rng.random((30, 40), dtype=np.float32)
    boxes = np.array([(0, 0, 40, 30), (3, 4, 9, 17), (5, 5, 5, 9)])
    expected = [saliency.mean(), saliency[4:17, 3:9].mean(), 0]
    np.testing.assert_allclose(mean_saliency(saliency, boxes), expected, rtol=1e-6)


def test_mean_saliency_of_boxes_beyond_the_photograph_is_that_of_what_is_inside() -> None:
    saliency = np.random.default_rng(0).random((10, 20), dtype=np.float32)
    boxes = np.array([(-5, -5, 10, 5), (10, 0, 99, 99), (30, 30, 40, 40)])
    expected = [saliency[:5, :10].mean(), saliency[:, 10:].mean(), 0]
    np.testing.assert_allclose(mean_saliency(saliency, boxes), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n", [3, 4])
def test_bounds_lose_no_maximum_among_many(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    saliency = cv2.resize(generator.random((6, 8), dtype=np.float32), (40, 30))
    near = generator.integers(0, [30, 22], (14, 2))
    boxes = np.concatenate([near, near + generator.integers(3, 16, (14, 2))], axis=1)
    boxes = boxes.clip(0, [40, 30, 40, 30])
    object_box = np.array([3, 3, 36, 27])
    subsets = list(combinations(range(len(boxes)), n))
    scores = np.array([score_parts(saliency, object_box, boxes[list(s)].tolist()) for s in subsets])
    first = int(np.argmax(scores >= scores.max() - 1e-6))
    found = select_parts(saliency, object_box, boxes, n, 0.0, 0.0)
    assert found.indices == subsets[first]
    assert found.score == pytest.approx(scores[first], abs=1e-6)


def test_without_the_parts_constraint_the_most_salient_candidates_are_taken() -> None:
    saliency = np.zeros((40, 40))
    saliency[5:15, 5:15], saliency[25:35, 25:35] = 1.0, 0.5
    boxes = np.array([[4, 4, 16, 16], [5, 5, 15, 15], [24, 24, 36, 36], [0, 0, 4, 4]])
    together = select_parts(saliency, (0, 0, 40, 40), boxes, 2, 0.0, 0.7)
    alone = select_parts(saliency, (0, 0, 40, 40), boxes, 2, 0.0, 0.7, spatial=False)
    assert together.indices == (0, 2)
    assert alone.indices == (0, 1)
    assert alone.fallback == "none"
    assert alone.score == score_parts(saliency, (0, 0, 40, 40), boxes[:2].tolist())
