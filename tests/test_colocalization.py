import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from torch.nn import functional

from opam.method.colocalization import (
    CLEAR,
    RIDGE,
    Direction,
    agreement,
    border_contrast,
    joined,
    moments,
    no_direction,
    principal_component,
    project,
    segment,
    shared_direction,
    spread,
)
from opam.networks.backbones.backbone import Backbone
from opam.pipeline.errors import OpamError


def of_one(maps: np.ndarray) -> list[np.ndarray]:
    """`moments` of one photograph's feature maps."""
    return [each.numpy() for each in moments(torch.from_numpy(maps)[None])]


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 12), st.integers(2, 6), st.integers(0, 10_000))
def test_it_is_the_first_component_of_a_plain_pca(channels: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(channels, channels)) * np.linspace(3, 1, channels)
    sizes = rng.integers(2, 6, (count, 2))
    maps = [
        np.einsum("cd,dhw->chw", mix, rng.normal(size=(channels, h, w))).astype(np.float32) + 5
        for h, w in sizes
    ]
    vectors = np.concatenate([each.reshape(channels, -1).T for each in maps])
    scale = vectors.std(0)
    pca = PCA().fit(vectors / scale)
    if pca.explained_variance_[0] < 1.05 * pca.explained_variance_[1]:
        return  # the direction is not determined
    places = joined(iter(map(of_one, maps)))
    np.testing.assert_allclose(spread(places), scale, rtol=1e-3)
    mean, component, intercept = principal_component(places)
    np.testing.assert_allclose(mean, vectors.mean(0), rtol=1e-4, atol=1e-4)
    assert np.linalg.norm(component * scale) == pytest.approx(1, abs=1e-3)
    assert abs(component * scale @ pca.components_[0]) == pytest.approx(1, abs=1e-3)
    assert intercept == 0


def test_a_map_is_the_projection_of_every_vector() -> None:
    rng = np.random.default_rng(0)
    features, mean, component = rng.normal(size=(4, 3, 5)), rng.normal(size=4), rng.normal(size=4)
    direction = Direction(mean, component, 0.25)
    [found] = project(torch.from_numpy(features.astype(np.float32))[None], direction).numpy()
    assert found.dtype == np.float32
    for y in range(3):
        for x in range(5):
            expected = sum((features[c, y, x] - mean[c]) * component[c] for c in range(4))
            assert found[y, x] == pytest.approx(expected + 0.25, abs=1e-4)


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Feature maps of a background and an object somewhere, and where the object is."""
    background, thing = np.array([4.0, 0, 0, 0]), np.array([0, 3.0, 1, 0])
    y, x = rng.integers(1, 4, 2)
    where = np.zeros((8, 8), dtype=bool)
    where[y : y + 3, x : x + 3] = True
    maps = np.where(where, thing[:, None, None], background[:, None, None])
    return (maps + rng.normal(0, 0.1, (4, 8, 8))).astype(np.float32), where


def test_what_is_common_is_told_from_the_background() -> None:
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(20)]
    direction = principal_component(joined(of_one(maps) for maps, _ in scenes))
    for maps, where in scenes:
        [found] = project(torch.from_numpy(maps)[None], direction).numpy()
        np.testing.assert_array_equal(found > 0.3 * found.max(), where)


def test_the_border_is_background_on_either_side_of_the_component() -> None:
    rng = np.random.default_rng(0)
    for turn in (1, -1):
        maps = turn * np.stack([scene(rng)[0] for _ in range(10)])
        direction = principal_component(joined([moments(torch.from_numpy(maps))]))
        projections = project(torch.from_numpy(maps), direction).numpy()
        inside = projections[:, 2:-2, 2:-2].mean()
        assert projections[:, [0, -1]].mean() < 0 < inside


def painted(where: np.ndarray, scale: int = 16) -> np.ndarray:
    """A photograph of a red thing on green, with what lies on a grid."""
    rng = np.random.default_rng(int(where.sum()))
    large = np.kron(where, np.ones((scale, scale), dtype=bool))
    colours = np.where(large[..., None], [200, 40, 40], [40, 160, 60])
    return np.clip(colours + rng.normal(0, 8, colours.shape), 0, 255).astype(np.uint8)


def test_colours_say_where_an_object_ends() -> None:
    where = np.zeros((16, 16), dtype=bool)
    where[4:12, 3:13] = True
    blurred = cv2.GaussianBlur(where.astype(np.float32), (0, 0), 2.5) - 0.25
    found = segment(painted(where), blurred)
    assert found.dtype == np.float32
    assert found.shape == where.shape
    assert np.abs(found - where).mean() < 0.01
    assert (
        np.abs(np.clip(blurred / blurred.max(), 0, 1) - where).mean() > 0.05
    )  # what it began with
    np.testing.assert_array_equal(segment(painted(where), blurred), found)


@pytest.mark.parametrize(
    "projection",
    [np.zeros((4, 4)), -np.ones((4, 4)), np.ones((4, 4)), np.full((4, 4), np.nan)],
    ids=["nothing", "background", "everything", "undefined"],
)
def test_a_map_that_tells_nothing_apart_segments_nothing(projection: np.ndarray) -> None:
    assert segment(painted(np.eye(4, dtype=bool)), projection) is None


def test_colours_that_tell_something_else_apart_are_not_believed() -> None:
    where = np.zeros((16, 16), dtype=bool)
    where[:, 8:] = True  # half of the photograph has one colour, the map a corner of it
    corner = np.full((16, 16), 0.1)
    corner[12:, 12:] = 1.0
    assert segment(painted(where), corner) is None


def test_the_direction_is_a_ridge_regression_of_shares() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(2, [[[1.0]], [[3.0]], [[0.5]]], (6, 3, 4, 5)).astype(np.float32)
    shares = rng.random((6, 4, 5)).astype(np.float32)
    places = joined([moments(torch.from_numpy(maps[:2])), moments(torch.from_numpy(maps[2:]))])
    found = shared_direction(
        places, [agreement(maps[:3], shares[:3]), agreement(maps[3:], shares[3:])]
    )
    vectors = maps.transpose(0, 2, 3, 1).reshape(-1, 3)
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    ridge = Ridge(alpha=RIDGE * len(scaled)).fit(scaled, shares.ravel())
    given = project(torch.from_numpy(maps), found).numpy().ravel()
    np.testing.assert_allclose(given, ridge.predict(scaled), atol=1e-5)


def test_segmentations_that_are_wrong_are_outvoted() -> None:
    rng = np.random.default_rng(0)
    scenes = [scene(rng) for _ in range(20)]
    maps = np.stack([each for each, _ in scenes])
    shares = np.stack([where for _, where in scenes]).astype(np.float32)
    truth = shares > 0
    shares[:5] = shares[5:10]  # a quarter of them are those of others
    found = shared_direction(joined([moments(torch.from_numpy(maps))]), [agreement(maps, shares)])
    given = project(torch.from_numpy(maps), found).numpy()
    np.testing.assert_array_equal(given > 0.5 * given.max(), truth)


def test_where_nothing_is_segmented_there_is_no_direction() -> None:
    assert shared_direction(joined([moments(torch.rand(2, 3, 4, 4))]), []) is None


@pytest.mark.parametrize(
    ("name", "module", "channels", "cells"),
    [
        ("tf_efficientnet_lite0", None, 192 + 112, 4),
        ("tf_efficientnet_lite0", "blocks.4", 112, 4),  # no finer ones beside it
        ("resnet10t", None, 512 + 256, 4),
        ("vit_tiny_patch16_224", None, 192, 14),
    ],
)
def test_finer_maps_stand_beside_those_that_tell_objects(
    name: str, module: str | None, channels: int, cells: int
) -> None:
    backbone = Backbone(name).eval()
    images = torch.randint(0, 256, (1, 3, 16 * cells, 16 * cells), dtype=torch.uint8)
    with torch.no_grad():
        found = backbone.shared_maps(images, module)
        coarse = backbone.feature_maps(
            images, "blocks.5" if name.startswith("tf") and not module else module
        )
    assert found.shape == (1, channels, cells, cells)
    np.testing.assert_allclose(
        found[:, : coarse.shape[1]],
        functional.interpolate(coarse, (cells, cells), mode="bilinear"),
        rtol=1e-4,
        atol=1e-5,
    )


def test_feature_maps_are_those_of_the_named_module() -> None:
    backbone = Backbone("vgg11_bn").eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert backbone.feature_maps(images, None).shape == (1, 512, 4, 4)  # not the new layer's
        assert backbone.feature_maps(images, "features.0").shape == (1, 64, 64, 64)
        for name in ("layer9", "head.fc"):
            with pytest.raises(OpamError, match=rf"colocalization\.layer.*{name}"):
                backbone.feature_maps(images, name)


@pytest.mark.parametrize("one", [True, False])
def test_borders_tell_whether_there_is_one_object(one: bool) -> None:
    """One in the middle, or rows that go through the photograph."""
    rng = np.random.default_rng(0)
    maps = rng.normal(0, 0.1, (40, 4, 12, 12))
    if one:
        maps[:, 0, 3:9, 3:9] += 3
    else:
        maps[:, 0] += 3 * rng.integers(0, 2, (40, 12, 1))
    places = joined([moments(torch.from_numpy(maps))])
    direction = principal_component(places)
    contrast = border_contrast(places, direction)
    assert (contrast > CLEAR) == one

    every = project(torch.from_numpy(maps), direction).numpy()
    edges = np.ones((12, 12), dtype=bool)
    edges[1:-1, 1:-1] = False
    literal = (every.mean() - every[:, edges].mean()) / every.std()
    assert contrast == pytest.approx(literal, abs=1e-4)
    assert not project(torch.from_numpy(maps), no_direction(places)).numpy().any()
