"""Linear probes: discriminant analysis against scikit-learn's, and what they are shown."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from opam.engine.discriminant.analysis import SCALES, Discriminant, Features, fit_discriminant
from opam.engine.discriminant.features import AREAS, ASPECT, random_views
from opam.networks.backbones.backbone import Backbone
from opam.networks.backbones.weights import write_weights
from opam.networks.cam_network import CamNetwork, pooled_features, read_network, write_network
from opam.pipeline.errors import OpamError


def given(features: np.ndarray) -> Features:
    """All of them in one piece."""
    return lambda: [features]


def drawn(
    per_class: int, classes: int, views: int = 4, width: int = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Views of boxes: a class mean, what is a box's own, and what is a view's own."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    means = np.random.default_rng(99).normal(size=(classes, width))
    scale = np.linspace(0.3, 3.0, width)
    boxes = means[labels] + rng.normal(size=(len(labels), width)) * scale
    features = boxes[:, None] + 0.3 * rng.normal(size=(len(labels), views, width))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_linear_discriminant_analysis(classes: int) -> None:
    features, labels = drawn(20, classes)
    probe = fit_discriminant(given(features), labels, classes, seed=0)
    flat = features.reshape(-1, features.shape[2]).astype(np.float64)
    centre, spread = flat.mean(0), flat.std(0)
    literal = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=probe.shrinkage, priors=np.full(classes, 1 / classes)
    ).fit((flat - centre) / spread, np.repeat(labels, features.shape[1]))
    expected = literal.decision_function((flat - centre) / spread)
    if classes == 2:
        expected = np.stack([np.zeros(len(flat)), expected], 1)
    found = flat @ probe.weights.T + probe.bias
    found, expected = (each - each[:, :1] for each in (found, expected))
    ratio = (found * expected).sum() / (expected**2).sum()
    assert SCALES.min() <= ratio * (1 + 1e-3)
    assert ratio <= SCALES.max() * (1 + 1e-3)
    np.testing.assert_allclose(found, ratio * expected, atol=1e-3 * np.abs(found).max())


def test_its_accuracy_is_that_on_photographs_it_has_not_seen() -> None:
    features, labels = drawn(12, 4)
    probe = fit_discriminant(given(features), labels, 4, seed=0)
    fresh, theirs = drawn(500, 4, seed=1)
    logits = fresh[:, 0] @ probe.weights.T + probe.bias
    accuracy = (logits.argmax(1) == theirs).mean()
    assert accuracy > 0.5
    assert abs(probe.accuracy - accuracy) < 0.12
    # Nor are its probabilities surer than right: another scale would not be much better.
    losses = {
        scale: -log_softmax(scale * logits, axis=1)[np.arange(len(theirs)), theirs].mean()
        for scale in (0.25, 0.5, 1.0, 2.0, 4.0)
    }
    assert min(losses, key=losses.__getitem__) in (0.5, 1.0, 2.0)
    shuffled = np.random.default_rng(3).permutation(labels)
    assert fit_discriminant(given(features), shuffled, 4, seed=0).accuracy < 0.5


def same(one: Discriminant, other: Discriminant) -> bool:
    return np.array_equal(one.weights, other.weights) and np.array_equal(one.bias, other.bias)


def test_the_same_seed_gives_the_same_layer() -> None:
    features, labels = drawn(8, 3)
    assert same(
        fit_discriminant(given(features), labels, 3, seed=4),
        fit_discriminant(given(features), labels, 3, seed=4),
    )


def test_photographs_may_come_in_any_pieces() -> None:
    features, labels = drawn(30, 3)
    whole = fit_discriminant(given(features), labels, 3, seed=0)
    pieces = fit_discriminant(
        lambda: [features[:7], features[7:8], features[8:]], labels, 3, seed=0
    )
    np.testing.assert_allclose(pieces.weights, whole.weights, atol=1e-4)
    np.testing.assert_allclose(pieces.held_out, whole.held_out, atol=1e-4)
    assert pieces.shrinkage == whole.shrinkage


MEMORY = """
import resource
import sys

import numpy as np
import torch

from opam.engine.discriminant.analysis import fit_discriminant

torch.set_num_threads(1)
pieces, views, width = int(sys.argv[1]), 3, 256
labels = np.arange(64 * pieces) % 5
means = np.random.default_rng(0).normal(size=(5, width))

def features():
    for number in range(pieces):
        own = means[labels[64 * number : 64 * (number + 1)], None]
        drawn = np.random.default_rng(number).normal(size=(64, views, width))
        yield (own + drawn).astype(np.float32)

found = fit_discriminant(features, labels, 5, seed=0)
assert found.accuracy > 0.99, found.accuracy
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_photographs() -> None:
    def megabytes(pieces: int) -> float:
        command = [sys.executable, "-c", MEMORY, str(pieces)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    few, many = megabytes(20), megabytes(250)  # whose features take 4 and 49 MB
    assert many < few + 15


def test_a_class_of_a_few_photographs_counts_like_a_large_one() -> None:
    rng = np.random.default_rng(0)
    sizes = [500, 100, 5, 2]
    means = 1.5 * np.random.default_rng(9).normal(size=(4, 12))

    def draw(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(4), counts)
        features = means[labels][:, None] + rng.normal(size=(len(labels), 2, 12))
        return features.astype(np.float32), labels

    features, labels = draw(sizes)
    found = fit_discriminant(given(features), labels, 4, seed=0)
    fresh, theirs = draw([200] * 4)
    answers = (fresh[:, 0] @ found.weights.T + found.bias).argmax(1)
    right = [(answers[theirs == label] == label).mean() for label in range(4)]
    assert min(right[:3]) > 0.85
    assert right[3] > 0.6
    assert found.known.all()


def test_constant_features_and_absent_classes_are_no_errors() -> None:
    features, labels = drawn(6, 3)
    features[:, :, 2] = 5.0
    probe = fit_discriminant(
        given(features), labels, 4, seed=0
    )  # of the fourth class there is nothing
    assert probe.weights.shape == (4, features.shape[2])
    assert np.isfinite(probe.weights).all()
    assert np.isfinite(probe.bias).all()
    single = fit_discriminant(given(features[:1]), labels[:1], 4, seed=0)
    assert np.isfinite(single.weights).all()


def test_views_are_like_their_box() -> None:
    box = np.array([10, 20, 110, 70])
    views = random_views(box, 500, np.random.default_rng(0))
    assert views.shape == (502, 4)
    assert views[:2].tolist() == [box.tolist()] * 2
    width, height = views[2:, 2] - views[2:, 0], views[2:, 3] - views[2:, 1]
    area = width * height / (100 * 50)
    assert (area >= AREAS[0] - 1e-9).all()
    assert (area <= AREAS[1] + 1e-9).all()
    assert area.min() < 0.4
    assert area.max() > 1.35
    assert np.abs(np.log(width / height / 2)).max() <= 2 * ASPECT + 1e-9
    # Along a side that shrinks a view stays inside; along one that grows it holds the box.
    narrower = width <= 100
    assert (views[2:][narrower, 0] >= 10 - 1e-9).all()
    assert (views[2:][narrower, 2] <= 110 + 1e-9).all()
    assert (views[2:][~narrower, 0] <= 10 + 1e-9).all()
    assert (views[2:][~narrower, 2] >= 110 - 1e-9).all()
    again = random_views(box, 500, np.random.default_rng(0))
    assert np.array_equal(views, again)


def network_of(backbone: Backbone, channels: int) -> CamNetwork:
    torch.manual_seed(0)
    return CamNetwork(backbone, classes=3, heads=4, rooted=channels).eval()


def test_a_discriminant_is_read_as_it_was_written(tmp_path) -> None:
    network = network_of(Backbone("mobilenetv3_small_050"), 288)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    path = tmp_path / "network.safetensors"
    with torch.no_grad():
        means = network.backbone.feature_maps(images, None).mean((2, 3))
        assert (means < 0).any()
        features = means.sign() * means.abs().sqrt()
        expected = network(images)
        torch.testing.assert_close(network.head(features).view(2, 4, 3), expected)
        write_network(path, network, {"backbone": "mobilenetv3_small_050", "input_size": 64})
        again, settings = read_network(path)
        torch.testing.assert_close(again(images), expected)
    assert settings["input_size"] == 64
    header = {"backbone": "mobilenetv3_small_050", "classes": 3, "heads": 4, "pooling": "maximum"}
    write_weights(path, network, header)
    with pytest.raises(OpamError, match=r"network\.safetensors.*pools by maximum"):
        read_network(path)
    write_network(path, network, {"backbone": "resnet18"})
    with pytest.raises(OpamError, match=r"network\.safetensors"):
        read_network(path)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 512), ("test_efficientnet", 256)])
def test_class_activation_maps_of_a_discriminant_are_exact(name: str, channels: int) -> None:
    network = network_of(Backbone(name), channels)
    images = torch.randint(0, 256, (3, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        maps, logits = network.maps_and_logits(network.maps(images))
        found = torch.einsum("kc,bchw->bkhw", network.head.weight.double(), maps).mean((2, 3))
        features = network.backbone.feature_maps(images, None)
        means, sizes = features.mean((2, 3)), features.abs().mean((2, 3))
        # What the layer reads is the mean of the maps, but where a feature all but cancels out.
        read = torch.where(means.abs() >= 0.01 * sizes, means.sign() * means.abs().sqrt(), 0)
        kept = torch.where(means.abs() >= 0.01 * sizes, maps.mean((2, 3)).float(), 0)
    torch.testing.assert_close(kept, read)
    if name == "resnet18":  # none is ever negative
        torch.testing.assert_close((found + network.head.bias).float(), logits)


@pytest.mark.parametrize(
    "name", ["test_vit", "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224"]
)
def test_a_discriminant_may_read_the_class_token(name: str, tmp_path: Path) -> None:
    backbone = Backbone(name).eval()
    size = backbone.body.patch_embed.patch_size[0] * 4
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        body = (images / 255.0 - backbone.mean) / backbone.std
        token = backbone.body.forward_features(body)[:, 0]
        maps, found = backbone.maps_and_class_token(images)
        torch.testing.assert_close(found, token)
        torch.testing.assert_close(maps, backbone.feature_maps(images, None))
        mean = pooled_features(backbone, images, "mean")
        alone, both = (pooled_features(backbone, images, each) for each in ("class_token", "both"))
        torch.testing.assert_close(alone, token.sign() * token.abs().sqrt())
        torch.testing.assert_close(both, torch.cat([mean, alone], 1))
        network = CamNetwork(backbone, 3, 2, rooted=both.shape[1], pooled="both").eval()
        write_network(tmp_path / "network.safetensors", network, {"backbone": name})
        again, _ = read_network(tmp_path / "network.safetensors")
        torch.testing.assert_close(again(images), network.head(both).view(2, 2, 3))


@pytest.mark.parametrize("name", ["test_efficientnet", "vit_base_patch16_siglip_224"])
def test_a_backbone_without_class_token_says_so(name: str) -> None:
    with pytest.raises(OpamError, match="no class token; set it to mean"):
        pooled_features(Backbone(name), torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "both")
