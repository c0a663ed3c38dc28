import numpy as np
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
from torch.nn.functional import avg_pool2d

from opam.networks.backbones.backbone import Backbone
from opam.systems.finetune import Finetune, FinetuneParams


@pytest.mark.parametrize(
    "name",
    [
        "res2net50_26w_4s",
        "res2net101_26w_4s",
        "resnet18",
        "tf_efficientnet_lite0",
        "mobilenetv3_small_050",
        "vgg11_bn",
    ],
)
def test_any_backbone_is_pooled_and_classified(name: str) -> None:
    torch.manual_seed(0)
    network = Finetune(Backbone(name), 5, FinetuneParams())
    prediction = predict(network, IMAGES)
    with torch.no_grad():
        maps = network.backbone(IMAGES).numpy()
    weight, bias = network.head.weight.detach().numpy(), network.head.bias.detach().numpy()
    for image in range(2):
        pooled = [np.mean(channel) for channel in maps[image]]
        for label in range(5):
            literal = sum(w * p for w, p in zip(weight[label], pooled, strict=True)) + bias[label]
            assert prediction.logits[image, label].item() == pytest.approx(literal, abs=1e-4)
    assert prediction.boxes is not None
    assert prediction.boxes.shape == (2, 1, 4)
    x0, y0, x1, y1 = prediction.boxes.unbind(2)
    assert (x0 >= 0).all()
    assert (y0 >= 0).all()
    assert (x0 < x1).all()
    assert (y0 < y1).all()
    assert (x1 <= 1).all()
    assert (y1 <= 1).all()


@pytest.mark.parametrize("name", ["res2net50_26w_4s", "vgg11_bn"])
def test_the_groups_are_what_is_pretrained_and_what_is_not(name: str) -> None:
    network = Finetune(Backbone(name), 3, FinetuneParams())
    groups = network.parameter_groups()
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    assert {names[id(p)] for p in groups["backbone"]} == {
        key for key in names.values() if key.startswith("backbone.body.")
    }
    assert sorted(names[id(p)] for group in groups.values() for p in group) == sorted(
        names.values()
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm closes residual branches at first, with 0
    loss, _ = network.loss(IMAGES, torch.tensor([0, 2]), 0.0)
    loss.backward()
    still = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_the_loss_is_smoothed_cross_entropy() -> None:
    torch.manual_seed(0)
    network = Finetune(Backbone("mobilenetv3_small_050"), 3, FinetuneParams()).eval()
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        loss, logits = network.loss(IMAGES, labels, 0.3)
    assert torch.allclose(logits, predict(network, IMAGES).logits, atol=1e-6)
    literal = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        logs = np.array(row) - np.log(np.exp(row).sum())
        literal -= (0.7 * logs[label] + 0.3 * logs.mean()) / 2
    assert loss.item() == pytest.approx(literal, rel=1e-5)


class Cells(nn.Module):
    """Three channels: mean red, green and blue of cells of 8 pixels."""

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(images.float() / 255, 8)


def test_the_box_lies_around_what_speaks_for_the_predicted_class() -> None:
    network = Finetune(Cells(), 2, FinetuneParams())  # type: ignore[arg-type]
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
        network.head.bias.zero_()
    assert_green_then_red(predict(network, two_squares()))


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 97, 160), (3, 224, 32)])
def test_other_sizes_and_batches(shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    network = Finetune(Backbone("mobilenetv3_small_050"), 2, FinetuneParams())
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    prediction = predict(network, images)
    assert prediction.logits.shape == (batch, 2)
    assert torch.equal(prediction.logits, predict(network, images).logits)
    loss, logits = network.train().loss(images, torch.zeros(batch, dtype=torch.int64), 0.1)
    assert loss.isfinite()
    assert logits.shape == (batch, 2)


def test_bf16_gives_float_logits() -> None:
    network = Finetune(Backbone("resnet18"), 2, FinetuneParams())
    with torch.autocast("cpu", torch.bfloat16):
        assert predict(network, IMAGES).logits.dtype == torch.float32


def test_there_are_no_settings() -> None:
    with pytest.raises(ValueError, match="dropout"):
        FinetuneParams.model_validate({"dropout": 0.5})


@pytest.mark.slow
def test_it_learns_a_few_photographs_by_heart() -> None:
    torch.manual_seed(0)
    network = Finetune(Backbone("test_efficientnet"), 4, FinetuneParams())
    losses_while_it_learns(network, 20)
    assert_known_by_heart(network)
