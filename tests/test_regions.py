import math

import numpy as np
import pytest
import torch

from opam.systems.regions import (
    FINENESS,
    THRESHOLD,
    activation_boxes,
    class_activation_maps,
)


def literal_box(cells: np.ndarray) -> tuple[float, ...]:
    """Interpolate place by place, then flood fill; the first largest region wins."""
    rows, columns = cells.shape
    height, width = rows * FINENESS, columns * FINENESS

    def value(y: int, x: int) -> float:
        cell_y = min(max((y + 0.5) / FINENESS - 0.5, 0), rows - 1)
        cell_x = min(max((x + 0.5) / FINENESS - 0.5, 0), columns - 1)
        top, left = int(cell_y), int(cell_x)
        down, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
        v, h = cell_y - top, cell_x - left
        upper = cells[top, left] * (1 - h) + cells[top, right] * h
        lower = cells[down, left] * (1 - h) + cells[down, right] * h
        return upper * (1 - v) + lower * v

    level = cells.min() + THRESHOLD * (cells.max() - cells.min())
    active = {(y, x) for y in range(height) for x in range(width) if value(y, x) >= level}
    largest: list[tuple[int, int]] = []
    for start in sorted(active):
        region, waiting = [], [start]
        while waiting:
            y, x = waiting.pop()
            if (y, x) in active:
                active.remove((y, x))
                region.append((y, x))
                waiting += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        if len(region) > len(largest):
            largest = region
    ys, xs = zip(*largest, strict=True)
    return min(xs) / width, min(ys) / height, (max(xs) + 1) / width, (max(ys) + 1) / height


def random_cells(seed: int, rows: int, columns: int) -> np.ndarray:
    """Mostly 0, whole numbers, range 4: no interpolated value lies right at the threshold."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 5, (rows, columns)) * (rng.random((rows, columns)) < 0.3)
    cells.ravel()[rng.permutation(rows * columns)[:2]] = 0, 4
    return cells.astype(np.float64)


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (3, 6), (5, 2), (1, 9)])
def test_the_box_is_that_of_a_flood_fill(rows: int, columns: int) -> None:
    cells = np.stack([random_cells(seed, rows, columns) for seed in range(12)])
    boxes = activation_boxes(torch.tensor(cells))
    assert boxes.shape == (12, 1, 4)
    assert boxes.dtype == torch.float32
    for box, each in zip(boxes[:, 0].tolist(), cells, strict=True):
        assert box == pytest.approx(literal_box(each), abs=1e-6)


def test_sides_are_x_then_y_and_shares_of_the_image() -> None:
    maps = torch.zeros(1, 4, 10)
    maps[0, 3, 0:2] = 1.0  # lower left
    # From 1 to 0 between two centres the threshold lies 0.8 of the way.
    ends = math.floor((0.8 + 0.5) * FINENESS) / FINENESS
    expected = [0, (4 - ends) / 4, (1 + ends) / 10, 1]
    assert activation_boxes(maps)[0, 0].tolist() == pytest.approx(expected)


def test_the_largest_region_wins_not_the_strongest() -> None:
    maps = torch.zeros(1, 8, 8)
    maps[0, 0, 0] = 9.0
    maps[0, 4:7, 4:7] = 3.0
    x0, y0, x1, y1 = activation_boxes(maps)[0, 0].tolist()
    assert min(x0, y0) > 3 / 8
    assert max(x1, y1) < 1


def test_only_the_order_and_the_proportions_of_values_count() -> None:
    maps = torch.tensor(np.stack([random_cells(seed, 5, 7) for seed in range(6)]))
    for factor, shift in [(3, 0), (1, 64), (0.5, -64)]:
        assert torch.equal(activation_boxes(factor * maps + shift), activation_boxes(maps))


@pytest.mark.parametrize("value", [0.0, 2.5, -1e6, math.nan, math.inf])
def test_a_map_that_says_nothing_gives_the_whole_image(value: float) -> None:
    maps = torch.zeros(2, 3, 5)
    maps[1, 1, 1] = 1.0  # its neighbour in the batch is not touched by it
    alone = activation_boxes(maps[1:])
    maps[0] = value
    boxes = activation_boxes(maps)
    assert boxes[0, 0].tolist() == [0, 0, 1, 1]
    assert torch.equal(boxes[1:], alone)
    assert boxes[1, 0].tolist() != [0, 0, 1, 1]


def test_one_strange_cell_gives_the_whole_image() -> None:
    maps = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[0, 0, 0], maps[1, 0, 0] = math.nan, -math.inf
    assert activation_boxes(maps).flatten().tolist() == [0, 0, 1, 1] * 2


def test_rounding_noise_is_constant_too() -> None:
    maps = torch.full((1, 4, 4), 1000.0)
    maps[0, 2, 2] += 1e-4
    assert activation_boxes(maps)[0, 0].tolist() == [0, 0, 1, 1]


def test_a_map_of_one_cell_and_an_empty_batch() -> None:
    assert activation_boxes(torch.ones(1, 1, 1)).tolist() == [[[0, 0, 1, 1]]]
    assert activation_boxes(torch.ones(0, 3, 3)).shape == (0, 1, 4)


def test_no_gradient_goes_through_a_box() -> None:
    maps = torch.rand(1, 3, 3, requires_grad=True)
    assert not activation_boxes(maps).requires_grad


def test_class_activation_maps_are_weighted_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, generator=generator)
    weights = torch.randn(2, 3, generator=generator)
    maps = class_activation_maps(features, weights)
    for b, y, x in np.ndindex(2, 4, 5):
        literal = sum(weights[b, d].item() * features[b, d, y, x].item() for d in range(3))
        assert maps[b, y, x].item() == pytest.approx(literal, abs=1e-5)
