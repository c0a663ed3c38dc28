import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from opam.method.colocalization import moments, principal_component, project
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
    pca = PCA().fit(vectors)
    if pca.explained_variance_[0] < 1.05 * pca.explained_variance_[1]:
        return  # the direction is not determined
    mean, component = principal_component(iter(map(of_one, maps)))
    np.testing.assert_allclose(mean, pca.mean_, rtol=1e-4, atol=1e-4)
    assert np.linalg.norm(component) == pytest.approx(1)
    assert abs(component @ pca.components_[0]) == pytest.approx(1, abs=1e-3)


def test_a_map_is_the_projection_of_every_vector() -> None:
    rng = np.random.default_rng(0)
    features, mean, component = rng.normal(size=(4, 3, 5)), rng.normal(size=4), rng.normal(size=4)
    [found] = project(torch.from_numpy(features.astype(np.float32))[None], mean, component).numpy()
    assert found.dtype == np.float32
    for y in range(3):
        for x in range(5):
            expected = sum((features[c, y, x] - mean[c]) * component[c] for c in range(4))
            assert found[y, x] == pytest.approx(expected, abs=1e-4)


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
    mean, component = principal_component(of_one(maps) for maps, _ in scenes)
    for maps, where in scenes:
        [found] = project(torch.from_numpy(maps)[None], mean, component).numpy()
        np.testing.assert_array_equal(found > 0.3 * found.max(), where)


def test_the_border_is_background_on_either_side_of_the_component() -> None:
    rng = np.random.default_rng(0)
    for turn in (1, -1):
        maps = turn * np.stack([scene(rng)[0] for _ in range(10)])
        mean, component = principal_component([moments(torch.from_numpy(maps))])
        projections = project(torch.from_numpy(maps), mean, component).numpy()
        inside = projections[:, 2:-2, 2:-2].mean()
        assert projections[:, [0, -1]].mean() < 0 < inside


def test_feature_maps_are_those_of_the_named_module() -> None:
    backbone = Backbone("vgg11_bn").eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert backbone.feature_maps(images, None).shape == (1, 512, 4, 4)  # not the new layer's
        assert backbone.feature_maps(images, "features.0").shape == (1, 64, 64, 64)
        for name in ("layer9", "head.fc"):
            with pytest.raises(OpamError, match=rf"colocalization\.layer.*{name}"):
                backbone.feature_maps(images, name)
