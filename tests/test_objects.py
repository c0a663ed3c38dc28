import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opam.method.objects import (
    GRID,
    WINDOW,
    ObjectParams,
    find_object,
    object_box,
    object_crops,
    object_or_window,
    on_grid,
    telling_window,
)


def literal_object(saliency: np.ndarray, threshold: float) -> tuple[tuple[int, ...], str]:
    """Flood fill from each salient pixel in reading order; the first largest region wins."""
    height, width = saliency.shape
    if saliency.max() <= 0:
        return (0, 0, width, height), "whole_image"
    seen: set[tuple[int, int]] = set()
    largest: list[tuple[int, int]] = []
    for start in [(y, x) for y in range(height) for x in range(width)]:
        if start in seen or saliency[start] < threshold:
            continue
        region, waiting = [], [start]
        seen.add(start)
        while waiting:
            y, x = waiting.pop()
            region.append((y, x))
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                inside = 0 <= near[0] < height and 0 <= near[1] < width
                if inside and near not in seen and saliency[near] >= threshold:
                    seen.add(near)
                    waiting.append(near)
        if len(region) > len(largest):
            largest = region
    if not largest:
        return (0, 0, width, height), "whole_image"
    rows, columns = zip(*largest, strict=True)
    return (min(columns), min(rows), max(columns) + 1, max(rows) + 1), "none"


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_the_box_is_that_of_a_flood_fill(
    height: int, width: int, seed: int, threshold: float
) -> None:
    saliency = np.random.default_rng(seed).integers(0, 5, (height, width)) / 4
    found = find_object(saliency.astype(np.float32), threshold)
    assert found == literal_object(saliency, threshold)
    assert object_box(saliency.astype(np.float32), threshold) == found[0]
    assert all(type(side) is int for side in found[0])


def test_corners_that_touch_are_one_region() -> None:
    saliency = np.eye(5, dtype=np.float32)
    assert find_object(saliency, 0.5) == ((0, 0, 5, 5), "none")


def test_most_pixels_win_not_the_largest_box() -> None:
    saliency = np.zeros((12, 12), dtype=np.float32)
    saliency[0, :] = saliency[:8, 0] = 1  # 19 pixels, box of 96
    saliency[6:11, 6:11] = 1  # 25 pixels, box of 25
    assert object_box(saliency, 0.5) == (6, 6, 11, 11)


def test_the_first_in_reading_order_wins_among_equals() -> None:
    saliency = np.zeros((5, 9), dtype=np.float32)
    saliency[3:5, 0:2] = saliency[1:3, 6:8] = 1
    assert object_box(saliency, 0.5) == (6, 1, 8, 3)


def test_a_pixel_at_the_threshold_is_salient() -> None:
    saliency = np.zeros((4, 4), dtype=np.float32)
    saliency[1, 2] = 0.5
    assert object_box(saliency, 0.5) == (2, 1, 3, 2)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_map_that_says_nothing_gives_the_whole_photograph(value: float) -> None:
    saliency = np.full((6, 8), value, dtype=np.float32)
    assert find_object(saliency, 0.3) == ((0, 0, 8, 6), "whole_image")


def test_a_threshold_above_the_map_gives_the_whole_photograph() -> None:
    assert find_object(np.full((6, 8), 0.5), 0.9) == ((0, 0, 8, 6), "whole_image")


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_a_threshold_out_of_range_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        ObjectParams(threshold=wrong)


@given(st.data())
def test_boxes_end_at_the_nearest_of_a_few_places(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 900)), data.draw(st.integers(1, 900))
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    found = on_grid((x0, y0, x1, y1), width, height)
    assert 0 <= found[0] < found[2] <= width
    assert 0 <= found[1] < found[3] <= height
    assert on_grid(found, width, height) == found
    for own, was, side in zip(found, (x0, y0, x1, y1), (width, height) * 2, strict=True):
        assert own in {round(cell * side / GRID) for cell in range(GRID + 1)} or side < GRID
        assert abs(own - was) <= 1.5 * side / GRID + 1  # half a cell, or more if less than one


def test_what_moves_by_a_hair_stays_where_it_was() -> None:
    assert on_grid((101, 59, 301, 203), 500, 375) == on_grid((100, 60, 299, 204), 500, 375)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(32, 400), st.integers(32, 400))
def test_the_window_is_the_best_of_all(seed: int, width: int, height: int) -> None:
    cam = np.random.default_rng(seed).random((GRID, GRID))
    places = range(GRID - WINDOW + 1)
    means = {(x, y): cam[y : y + WINDOW, x : x + WINDOW].mean() for y in places for x in places}
    x, y = max(means, key=lambda place: means[place])
    expected = np.array([x, y, x + WINDOW, y + WINDOW]) * ([width, height] * 2) / GRID
    box = telling_window(cam, width, height)
    np.testing.assert_allclose(box, expected, atol=0.501)
    assert on_grid(box, width, height) == box


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_a_window_stands_in_where_no_one_object_is(common: float) -> None:
    cam = np.zeros((32, 32), dtype=np.float32)
    cam[20:30, 18:30] = 1
    saliency = np.full((64, 96), common, dtype=np.float32)
    (x0, y0, x1, y1), fallback = object_or_window(saliency, cam, ObjectParams())
    assert fallback == "window"
    assert (x1 - x0, y1 - y0) == (48, 32)
    assert x0 <= 18 * 3 < 30 * 3 <= x1
    assert y0 <= 20 * 2 < 30 * 2 <= y1


def test_an_object_stays_an_object() -> None:
    cam = np.zeros((32, 32), dtype=np.float32)
    cam[:4, :4] = 1
    saliency = np.zeros((64, 64), dtype=np.float32)
    saliency[4:60, 2:62] = 1
    assert object_or_window(saliency, cam, ObjectParams()) == ((2, 4, 62, 60), "none")


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_a_class_map_that_says_nothing_gives_no_window(value: float) -> None:
    cam = np.full((32, 32), value, dtype=np.float32)
    found = object_or_window(np.zeros((6, 8), dtype=np.float32), cam, ObjectParams())
    assert found == ((0, 0, 8, 6), "whole_image")


def test_the_papers_map_gives_no_window() -> None:
    cam = np.arange(1024, dtype=np.float32).reshape(32, 32)
    found = object_or_window(np.ones((8, 8), dtype=np.float32), cam, ObjectParams(map="cam"))
    assert found == ((0, 0, 8, 8), "none")


def test_the_object_is_looked_at_alone_and_a_window_with_nine_more() -> None:
    box = (0, 4, 90, 60)
    assert object_crops(box, "none", 100, 60) == object_crops(box, "whole_image", 100, 60) == [box]
    window = telling_window(np.eye(GRID), 101, 61)
    first, *nine = object_crops(window, "window", 101, 61)
    assert first == window
    covered = np.zeros((61, 101), dtype=int)
    assert len(set(nine)) == 9
    for x0, y0, x1, y1 in [nine[corner] for corner in (0, 2, 6, 8)]:
        covered[y0:y1, x0:x1] += 1
    assert (covered == 1).all()
