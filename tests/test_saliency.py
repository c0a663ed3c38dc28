import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opam.method.saliency import (
    CROP_FRACTION,
    class_activation_maps,
    merge_views,
    predicted_class_maps,
    to_image,
    views_of,
)


def literal_bilinear(cam: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres, one output pixel at a time."""
    rows, columns = cam.shape
    scaled = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = cam[top, left] * (1 - (u - left)) + cam[top, right] * (u - left)
            lower = cam[bottom, left] * (1 - (u - left)) + cam[bottom, right] * (u - left)
            scaled[y, x] = upper * (1 - (v - top)) + lower * (v - top)
    return scaled


def test_class_activation_maps_are_weighted_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, generator=generator)
    weights = torch.randn(2, 3, generator=generator)
    maps = class_activation_maps(features, weights)
    for b, y, x in np.ndindex(2, 4, 5):
        literal = sum(weights[b, d].item() * features[b, d, y, x].item() for d in range(3))
        assert maps[b, y, x].item() == pytest.approx(literal, abs=1e-5)


def test_all_views_of_a_photograph_choose_its_class() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(6, 4, 3, 3, generator=generator)
    weights, bias = torch.randn(5, 4, generator=generator), torch.randn(5, generator=generator)
    logits = features.mean((2, 3)) @ weights.T + bias
    labels, maps = predicted_class_maps(features, logits, weights, views=3)
    assert labels.tolist() == [int(logits[:3].sum(0).argmax()), int(logits[3:].sum(0).argmax())]
    assert maps.shape == (2, 3, 3, 3)
    for view in range(6):
        own = weights[labels[view // 3]]
        expected = class_activation_maps(features[view][None], own[None])[0]
        assert torch.allclose(maps[view // 3, view % 3], expected, atol=1e-5)


def test_its_mean_is_the_logit_of_a_pooled_linear_head() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 16, 7, 5, generator=generator)
    head = torch.nn.Linear(16, 3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 16, generator=generator))
        logits = head(features.mean((2, 3)))[0] - head.bias
    for label in range(3):
        cam = class_activation_maps(features, head.weight[[label]].detach())
        assert cam.mean().item() == pytest.approx(float(logits[label]), abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(6, 30),
    st.integers(6, 30),
    st.integers(0, 10_000),
)
def test_to_image_is_bilinear_then_min_max(
    rows: int, columns: int, height: int, width: int, seed: int
) -> None:
    cam = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    image = to_image(cam, height, width)
    assert image.shape == (height, width)
    assert image.dtype == np.float32
    expected = literal_bilinear(cam, height, width)
    if rows * columns == 1:
        assert not image.any()
        return
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(image, expected, atol=1e-4)
    assert image.min() == 0
    assert image.max() == 1


@pytest.mark.parametrize("value", [0.0, 0.1257, -0.1321, 0.64, 3.5, 1e6, np.nan, np.inf])
@pytest.mark.parametrize("side", [1, 3, 7, 32])
def test_a_map_that_says_nothing_becomes_zeros(value: float, side: int) -> None:
    cam = np.full((side, side), value, dtype=np.float32)
    assert not to_image(cam, 75, 99).any()


def test_one_not_finite_cell_makes_the_map_zeros() -> None:
    cam = np.arange(9, dtype=np.float32).reshape(3, 3)
    cam[1, 1] = np.nan
    assert not to_image(cam, 8, 9).any()


def test_one_whole_view_is_only_resized() -> None:
    cam = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    merged = merge_views([cam], np.array([(0, 0, 1, 1)]), [False], 12)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, literal_bilinear(cam, 12, 12), atol=1e-5)


def test_a_mirrored_view_is_turned_back() -> None:
    cam = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    whole = np.array([(0, 0, 1, 1)] * 2)
    merged = merge_views([cam, cam[:, ::-1]], whole, [False, True], 12)
    np.testing.assert_allclose(merged, merge_views([cam], whole[:1], [False], 12), atol=1e-6)


def test_views_are_averaged_where_they_overlap_and_gaps_take_the_minimum() -> None:
    left, middle = np.full((2, 2), 1.0), np.full((2, 2), 4.0)
    boxes = np.array([(0, 0, 0.5, 1), (0.25, 0, 0.75, 1)])
    merged = merge_views([left, middle], boxes, [False, False], 8)
    np.testing.assert_allclose(merged, np.tile([1, 1, 2.5, 2.5, 4, 4, 1, 1], (8, 1)))


@pytest.mark.parametrize(("x", "y"), [(0.2, 0.3), (0.8, 0.55), (0.5, 0.9)])
def test_merged_views_put_a_spot_back_in_its_place(x: float, y: float) -> None:
    """Each view sees its own cut of one map; the merged map has its peak where that one has."""
    size = 64
    rows, columns = np.mgrid[:size, :size]
    spot = np.exp(-(((columns + 0.5) / size - x) ** 2 + ((rows + 0.5) / size - y) ** 2) / 0.01)
    boxes, mirrored = views_of("ten")
    cams = []
    for box, mirror in zip(boxes, mirrored, strict=True):
        x0, y0, x1, y1 = np.rint(box * size).astype(int)
        cam = cv2.resize(spot[y0:y1, x0:x1], (14, 14), interpolation=cv2.INTER_AREA)
        cams.append(cam[:, ::-1] if mirror else cam)
    merged = merge_views(cams, boxes, mirrored, 32)
    row, column = np.unravel_index(int(merged.argmax()), merged.shape)
    assert abs((column + 0.5) / 32 - x) < 0.05
    assert abs((row + 0.5) / 32 - y) < 0.05


def test_ten_crops_are_corners_centre_and_their_mirrors() -> None:
    boxes, mirrored = views_of("ten")
    side, rest = CROP_FRACTION, 1 - CROP_FRACTION
    corners = {(0.0, 0.0), (rest, 0.0), (0.0, rest), (rest, rest), (rest / 2, rest / 2)}
    assert {tuple(box[:2]) for box in boxes.tolist()} == corners
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], side)
    assert mirrored == [False] * 5 + [True] * 5


def test_two_crops_are_the_photograph_and_its_mirror() -> None:
    boxes, mirrored = views_of("two")
    assert boxes.tolist() == [[0, 0, 1, 1]] * 2
    assert mirrored == [False, True]
    cam = np.arange(12.0).reshape(3, 4)
    merged = merge_views([cam, cam[:, ::-1]], boxes, mirrored, 12)
    alone = merge_views([cam], boxes[:1], [False], 12)
    np.testing.assert_allclose(merged, alone)
