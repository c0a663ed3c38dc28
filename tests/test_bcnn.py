from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from system_checks import (
    IMAGES,
    assert_green_then_red,
    assert_known_by_heart,
    losses_while_it_learns,
    predict,
    two_squares,
)
from torch import nn

from opam.engine.training.loop import train
from opam.engine.training.params import TrainingParams
from opam.engine.training.samples import whole_images
from opam.networks.backbones.backbone import Backbone
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.systems.baselines import SYSTEM_OBJECTIVE
from opam.systems.bcnn import (
    EPSILON,
    BcnnParams,
    BilinearCnn,
    bilinear_pool,
    bilinear_vector,
    location_scores,
    signed_root,
)

LABELS = torch.tensor([2, 0])


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def literal_vector(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Outer product at every location of one image, mean, signed square root, l2."""
    total = np.zeros((len(first), len(second)))
    height, width = first.shape[1:]
    for y in range(height):
        for x in range(width):
            total += np.outer(first[:, y, x], second[:, y, x])
    total /= height * width
    rooted = total / np.sqrt(np.abs(total) + 1e-5)
    return (rooted / np.sqrt((rooted**2).sum())).ravel()


def open_branches(network: nn.Module) -> None:
    """Timm closes residual branches at first: the scale of their last batch norm is 0."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 2)])
@pytest.mark.parametrize("widths", [(4, 4), (3, 5)])
def test_pooling_is_the_mean_outer_product(size: tuple[int, int], widths: tuple[int, int]) -> None:
    first, second = maps(2, widths[0], *size), maps(2, widths[1], *size, seed=1)
    pooled = bilinear_pool(first, second)
    assert pooled.shape == (2, *widths)
    vectors = bilinear_vector(pooled)
    for image in range(2):
        literal = literal_vector(first[image].numpy(), second[image].numpy())
        assert np.allclose(vectors[image].numpy(), literal, atol=1e-7)


def test_a_larger_image_of_the_same_thing_gives_the_same_features() -> None:
    first = maps(1, 3, 4, 4)
    larger = first.repeat_interleave(3, 2).repeat_interleave(2, 3)
    assert torch.allclose(bilinear_pool(first, first), bilinear_pool(larger, larger))


def test_the_signed_root_is_odd_and_keeps_signs() -> None:
    values = torch.tensor([0.0, 0.25, 9.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    assert torch.allclose(signed_root(values), expected, rtol=1e-4)
    assert torch.equal(signed_root(-values), -signed_root(values))


@pytest.mark.parametrize(
    ("scale", "values"),
    [
        (EPSILON, [0.0, 0.5, -0.5, 3.0, -20.0, 1e3]),  # where the root bends, and 0 itself
        (1.0, [1e-3, -0.02, 0.5, -0.5, 3.0, -20.0]),
    ],
)
def test_gradients_of_root_and_norm(scale: float, values: list[float]) -> None:
    pooled = torch.tensor(values, dtype=torch.float64).view(1, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: bilinear_vector(scale * v), [pooled], atol=1e-6)


def steepest_where_channels_never_meet() -> float:
    """The gradient of what two channels say that are never active at the same place."""
    features = torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    features[:, 0, :, :3] = features[:, 1, :, 3:] = 0.0
    pooled = bilinear_pool(features, features).requires_grad_()
    bilinear_vector(pooled).sum().backward()
    assert pooled.grad is not None
    assert pooled.grad.abs().argmax() in (1, 4)  # the pair that never meets
    return float(pooled.grad.abs().max())


def test_a_pair_that_never_meets_does_not_outweigh_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert steepest_where_channels_never_meet() < 300
    monkeypatch.setattr("opam.systems.bcnn.EPSILON", 1e-10)
    assert steepest_where_channels_never_meet() > 30_000


@pytest.mark.parametrize("dead", ["all", "one channel"])
def test_gradients_are_finite_at_zero(dead: str) -> None:
    features = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    features[0, slice(None) if dead == "all" else 1] = 0.0
    features.requires_grad_()
    vectors = bilinear_vector(bilinear_pool(features, features))
    assert vectors.isfinite().all()
    (vectors * torch.arange(16.0)).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad[1].any()


def test_vectors_have_length_one() -> None:
    vectors = bilinear_vector(bilinear_pool(maps(3, 4, 2, 2), maps(3, 5, 2, 2, seed=1)))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3, dtype=torch.float64))


def test_location_scores_add_up_to_the_logit() -> None:
    first, second, weights = maps(2, 3, 4, 2), maps(2, 5, 4, 2, seed=1), maps(2, 15, seed=2)
    pooled = bilinear_pool(first, second)
    scores = location_scores(first, second, pooled, weights)
    logits = (bilinear_vector(pooled) * weights).sum(1)
    assert torch.allclose(scores.mean((1, 2)), logits)
    for b, y, x in np.ndindex(2, 4, 2):
        length = signed_root(pooled[b]).norm().item()
        literal = 0.0
        for d, e in np.ndindex(3, 5):
            product = first[b, d, y, x].item() * second[b, e, y, x].item()
            scale = np.sqrt(abs(pooled[b, d, e].item()) + 1e-5) * length
            literal += weights[b, 5 * d + e].item() * product / scale
        assert scores[b, y, x].item() == pytest.approx(literal, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "size"),
    [("vgg16", 512, 4), ("resnet18", 512, 2), ("mobilenetv3_small_050", 288, 2)],
)
def test_the_symmetric_network(name: str, width: int, size: int) -> None:
    """VGG-16: the rectified conv5_3, before any pooling, and no layer of CAM's behind it."""
    torch.manual_seed(0)
    network = BilinearCnn(Backbone(name), 3, BcnnParams())
    assert network.head.in_features == width**2
    prediction = predict(network, IMAGES)
    with torch.no_grad():
        features = network.backbone.feature_maps(IMAGES, None).double().numpy()
    assert features.shape == (2, width, size, size)
    if name == "vgg16":
        convolutions = [m for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 13
        assert features.min() == 0
    weight = network.head.weight.detach().double().numpy()
    for image in range(2):
        literal = weight @ literal_vector(features[image], features[image])
        literal += network.head.bias.detach().numpy()
        assert np.allclose(prediction.logits[image].numpy(), literal, atol=1e-4)
    assert prediction.boxes is not None
    assert prediction.boxes.shape == (2, 1, 4)
    assert ((prediction.boxes >= 0) & (prediction.boxes <= 1)).all()
    assert (prediction.boxes[..., :2] < prediction.boxes[..., 2:]).all()


def test_two_streams_meet_on_the_grid_of_the_first() -> None:
    """VGG gives twice the cells a side: their means by two are what bilinear sampling takes."""
    torch.manual_seed(0)
    params = BcnnParams(second_backbone="vgg11", second_weights="none")
    network = BilinearCnn(Backbone("mobilenetv3_small_050"), 3, params)
    assert network.head.in_features == 288 * 512
    prediction = predict(network, IMAGES)
    assert network.second_backbone is not None
    with torch.no_grad():
        first = network.backbone(IMAGES).double().numpy()
        fine = network.second_backbone(IMAGES).double().numpy()
    assert (first.shape[2], fine.shape[2]) == (2, 4)
    second = fine.reshape(2, 512, 2, 2, 2, 2).mean((3, 5))
    weight = network.head.weight.detach().double().numpy()
    for image in range(2):
        literal = weight @ literal_vector(first[image], second[image])
        literal += network.head.bias.detach().numpy()
        assert np.allclose(prediction.logits[image].numpy(), literal, atol=1e-4)


def test_the_reduction_is_linear_and_one_for_both_factors() -> None:
    torch.manual_seed(0)
    network = BilinearCnn(Backbone("resnet18"), 3, BcnnParams(channels=8))
    assert network.head.in_features == 64
    prediction = predict(network, IMAGES)
    with torch.no_grad():
        features = network.backbone(IMAGES).double().numpy()
    kernel = next(network.reductions.parameters()).detach().double().numpy()[:, :, 0, 0]
    reduced = np.einsum("ed,bdhw->behw", kernel, features)
    weight = network.head.weight.detach().double().numpy()
    for image in range(2):
        literal = weight @ literal_vector(reduced[image], reduced[image])
        literal += network.head.bias.detach().numpy()
        assert np.allclose(prediction.logits[image].numpy(), literal, atol=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        BcnnParams(),
        BcnnParams(channels=16),
        BcnnParams(second_backbone="resnet10t", second_weights="none", channels=8),
    ],
    ids=["symmetric", "reduced", "two streams"],
)
class TestTwoSteps:
    def network(self, params: BcnnParams) -> BilinearCnn:
        torch.manual_seed(0)
        network = BilinearCnn(Backbone("mobilenetv3_small_050"), 3, params)
        open_branches(network)
        # Its last convolution stands behind the maps: it has no part in any network here.
        network.backbone.body.conv_head = nn.Identity()
        return network

    def learn(self, network: BilinearCnn, optimizer: torch.optim.Optimizer) -> None:
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=generator)
            loss, _ = network.train().loss(images, torch.tensor([0, 1, 2]), 0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def test_frozen_streams_do_not_change_in_the_least(self, params: BcnnParams) -> None:
        network = self.network(params)
        network.freeze_backbone()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        assert any("num_batches_tracked" in key for key in before)
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
        self.learn(network, optimizer)
        assert all(p.grad is None for p in network.parameter_groups()["backbone"])
        for key, value in network.state_dict().items():
            changed = not torch.equal(value, before[key])
            assert changed == key.startswith(("head.", "reductions.")), key

    def test_step_two_starts_at_the_logits_of_step_one(self, params: BcnnParams) -> None:
        network = self.network(params)
        network.freeze_backbone()
        self.learn(network, torch.optim.SGD(network.parameters(), lr=1.0))
        reached = predict(network, IMAGES)
        network.unfreeze_backbone()
        assert torch.equal(predict(network, IMAGES).logits, reached.logits)
        fresh = self.network(params)  # as when the steps are two runs
        assert not torch.allclose(predict(fresh, IMAGES).logits, reached.logits)
        fresh.load_state_dict(network.state_dict())
        assert torch.equal(predict(fresh, IMAGES).logits, reached.logits)

    def test_step_two_reaches_every_layer(self, params: BcnnParams) -> None:
        network = self.network(params)
        network.freeze_backbone()
        network.unfreeze_backbone()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        self.learn(network, torch.optim.SGD(network.parameters(), lr=0.01))
        still = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert still == []
        for key, value in network.state_dict().items():
            if "running" in key or "tracked" in key:
                assert not torch.equal(value, before[key]), key

    def test_groups_hold_every_parameter_once(self, params: BcnnParams) -> None:
        network = self.network(params)
        names = {id(parameter): key for key, parameter in network.named_parameters()}
        groups = network.parameter_groups()
        assert sorted(names[id(p)] for group in groups.values() for p in group) == sorted(
            names.values()
        )
        assert {names[id(p)].split(".")[0] for p in groups["head"]} <= {"head", "reductions"}
        assert {names[id(p)].split(".")[0] for p in groups["backbone"]} <= {
            "backbone",
            "second_backbone",
        }


def test_modes_follow_freezing_at_once_and_later() -> None:
    network = BilinearCnn(Backbone("resnet18"), 2, BcnnParams()).train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.training for norm in norms)
    network.freeze_backbone()
    assert not any(module.training for module in network.backbone.modules())
    assert network.training
    assert network.train() is network
    assert not any(module.training for module in network.backbone.modules())
    assert network.head.training
    network.eval()
    network.unfreeze_backbone()
    assert not any(module.training for module in network.modules())
    network.train()
    assert all(norm.training for norm in norms)
    network.freeze_backbone()
    network.unfreeze_backbone()
    assert all(norm.training for norm in norms)


def test_gradients_from_before_freezing_move_nothing() -> None:
    torch.manual_seed(0)
    network = BilinearCnn(Backbone("mobilenetv3_small_050"), 3, BcnnParams())
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    network.loss(IMAGES, LABELS, 0.0)[0].backward()
    network.freeze_backbone()
    before = [p.clone() for p in network.parameter_groups()["backbone"]]
    optimizer.step()
    after = network.parameter_groups()["backbone"]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (BcnnParams(second_backbone="no_such_model"), r"^bcnn\.second_backbone: .*no_such_model"),
        (BcnnParams(second_backbone="resnet18"), r"^bcnn\.second_weights: no package"),
        (
            BcnnParams(second_backbone="resnet18", second_weights="absent.pth"),
            r"^bcnn\.second_weights: absent\.pth is not a file",
        ),
    ],
)
def test_a_second_stream_that_cannot_be_had_is_named(params: BcnnParams, message: str) -> None:
    with pytest.raises(OpamError, match=message):
        BilinearCnn(Backbone("resnet18"), 2, params)


@pytest.mark.parametrize(("key", "value"), [("channels", 1), ("channels", 8.0), ("eps", 1.0)])
def test_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        BcnnParams.model_validate({key: value})


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 97, 160), (3, 224, 32)])
def test_other_sizes_and_batches(shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    params = BcnnParams(second_backbone="vgg11_bn", second_weights="none", channels=4)
    network = BilinearCnn(Backbone("mobilenetv3_small_050"), 2, params)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    prediction = predict(network, images)
    assert prediction.logits.shape == (batch, 2)
    assert torch.equal(prediction.logits, predict(network, images).logits)
    loss, logits = network.train().loss(images, torch.zeros(batch, dtype=torch.int64), 0.1)
    assert loss.isfinite()
    assert logits.shape == (batch, 2)


def test_bf16_gives_float_logits_close_to_those_of_float() -> None:
    torch.manual_seed(0)
    network = BilinearCnn(Backbone("resnet18"), 3, BcnnParams())
    plain = predict(network, IMAGES).logits
    with torch.autocast("cpu", torch.bfloat16):
        short = predict(network, IMAGES).logits
    assert short.dtype == torch.float32
    assert torch.allclose(short, plain, atol=0.02)


class Cells(nn.Module):
    """Three channels: mean red, green and blue of cells of 8 pixels."""

    channels = 3
    cam = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images.float() / 255, 8)


def test_the_box_lies_around_what_speaks_for_the_predicted_class() -> None:
    network = BilinearCnn(Cells(), 2, BcnnParams())  # type: ignore[arg-type]
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
        network.head.weight[0, 0] = network.head.weight[1, 4] = 1.0  # red x red, green x green
    assert_green_then_red(predict(network, two_squares()))


def test_training_freezes_both_streams(
    photographs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    second = BcnnParams(second_backbone="test_efficientnet", second_weights="none", channels=4)
    network = BilinearCnn(Backbone("test_efficientnet"), 2, second)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    params = TrainingParams(
        **{"epochs": 1, "batch_size": 4, "input_size": 32, "resize": 36, "rate": 0.1},
        frozen_batch_norm=True,
        frozen_until="blocks.1",
    )
    whole = whole_images(photographs[photographs["split"] == "train"])
    how = params, ExecutionParams(workers=0), 0, SYSTEM_OBJECTIVE
    train("net", network, lambda _epoch: whole, whole[:0], *how)
    moved = {
        name for name, value in network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert not [name for name in moved if "running" in name]
    for stream in ("backbone", "second_backbone"):
        assert not [name for name in moved if name.startswith(f"{stream}.body.blocks.1.")]
        assert [name for name in moved if name.startswith(f"{stream}.body.blocks.3.")]


@pytest.mark.slow
def test_it_learns_a_few_photographs_by_heart() -> None:
    torch.manual_seed(0)
    network = BilinearCnn(Backbone("test_efficientnet"), 4, BcnnParams())
    network.freeze_backbone()
    losses = losses_while_it_learns(network, 10)
    assert losses[-1] < losses[0]
    network.unfreeze_backbone()
    losses_while_it_learns(network, 20)
    assert_known_by_heart(network)
