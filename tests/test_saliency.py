import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opam.method.saliency import (
    CROP_FRACTION,
    class_activation_map,
    merge_views,
    ten_crops,
    to_image,
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


def test_the_map_is_the_weighted_sum_of_the_features() -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(5, 3, 4)), rng.normal(size=5)
    expected = np.zeros((3, 4))
    for channel in range(5):
        for y in range(3):
            for x in range(4):
                expected[y, x] += weights[channel] * features[channel, y, x]
    cam = class_activation_map(features.astype(np.float32), weights.astype(np.float32))
    assert cam.dtype == np.float32
    np.testing.assert_allclose(cam, expected, rtol=1e-5, atol=1e-5)


def test_its_mean_is_the_logit_of_a_pooled_linear_head() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 16, 7, 5, generator=generator)
    head = torch.nn.Linear(16, 3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 16, generator=generator))
        logits = head(features.mean((2, 3)))[0] - head.bias
    for label in range(3):
        cam = class_activation_map(features[0].numpy(), head.weight[label].detach().numpy())
        assert cam.mean() == pytest.approx(float(logits[label]), abs=1e-5)


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
    boxes, mirrored = ten_crops()
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
    boxes, mirrored = ten_crops()
    side, rest = CROP_FRACTION, 1 - CROP_FRACTION
    corners = {(0.0, 0.0), (rest, 0.0), (0.0, rest), (rest, rest), (rest / 2, rest / 2)}
    assert {tuple(box[:2]) for box in boxes.tolist()} == corners
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], side)
    assert mirrored == [False] * 5 + [True] * 5
