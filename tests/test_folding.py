"""Batch norm in the convolution before it: the same answers, gradients and parameters."""

import copy

import pytest
import torch
from torch import nn

from opam.engine.training.freezing import freeze_batch_norm, freeze_until
from opam.networks.backbones.backbone import Backbone, fold_batch_norm

IMAGES = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


def lived(name: str) -> Backbone:
    """A backbone whose batch norms are not as new ones are, each as if there were none."""
    torch.manual_seed(0)
    backbone = Backbone(name)
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
            ):
                nn.init.uniform_(value, low, high)  # type: ignore[arg-type]
    return backbone


def test_it_is_folded_where_no_gradient_is_known() -> None:
    backbone = lived("resnet18").eval()
    with torch.inference_mode():
        expected = backbone(IMAGES)
        fold_batch_norm(backbone)
        found = backbone(IMAGES)
    assert sum("pair" in each.__dict__ for each in backbone.modules()) == 2 * norms(backbone)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def folded(name: str) -> tuple[Backbone, Backbone, int]:
    """One as it is, one folded, and the number of its folded layers."""
    plain = lived(name)
    other = lived(name)
    fold_batch_norm(other)
    return plain, other, sum("pair" in each.__dict__ for each in other.modules()) // 2


def norms(backbone: Backbone) -> int:
    kinds = nn.modules.batchnorm._BatchNorm
    return sum(isinstance(each, kinds) for each in backbone.modules())


@pytest.mark.parametrize(
    ("name", "all_of_them"),
    [
        ("resnet18", True),
        ("tf_efficientnet_lite0", True),
        ("mobilenetv3_small_050", True),
        ("res2net50_26w_4s", True),
        ("vgg11_bn", True),
        ("densenet121", False),
        ("inception_v3", True),  # takes no small images
        ("resnetv2_18", False),  # what its first convolution gives is read twice
        ("convnext_atto", True),
    ],
)
def test_it_gives_the_same(name: str, all_of_them: bool) -> None:
    plain, other, count = folded(name)
    assert (count == norms(other)) == all_of_them
    images = nn.functional.interpolate(IMAGES, 128) if name == "inception_v3" else IMAGES
    with torch.inference_mode():
        for mode in (False, True, False):
            expected, found = (each.train(mode)(images) for each in (plain, other))
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    state = plain.state_dict()
    assert list(other.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("frozen_until", [None, "blocks.3"])
def test_gradients_are_the_same(frozen_until: str | None) -> None:
    gradients = []
    for backbone in folded("tf_efficientnet_lite0")[:2]:
        frozen = freeze_until(backbone, frozen_until, "net")
        backbone.train()
        frozen.eval()
        if frozen_until:
            freeze_batch_norm(backbone)
        backbone(IMAGES).square().mean().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
    plain, other = gradients
    assert list(plain) == list(other)
    assert all(value is not None for value in other.values())
    scale = max(value.abs().max() for value in plain.values())
    for name, value in plain.items():
        assert (other[name] - value).abs().max() < 1e-4 * scale, name


def test_frozen_layers_keep_no_activations() -> None:
    _, backbone, _ = folded("tf_efficientnet_lite0")
    frozen = freeze_until(backbone, "blocks.3", "net")
    backbone.train()
    frozen.eval()
    kept: list[int] = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 4 and len(value) == len(IMAGES):
            kept.append(value.shape[-1])
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        backbone(IMAGES)
    assert kept
    assert max(kept) < 8  # the first layers give 32, 16 and 8


@pytest.mark.parametrize("module", ["conv_stem", "blocks.1.0.conv_pwl", "blocks.2", "bn2", None])
def test_maps_of_a_module_are_its_own(module: str | None) -> None:
    plain, other, _ = folded("tf_efficientnet_lite0")
    with torch.inference_mode():
        expected, found = (each.eval().feature_maps(IMAGES, module) for each in (plain, other))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_copy_is_one_of_its_own() -> None:
    plain, other, _ = folded("resnet18")
    twin = copy.deepcopy(other).eval()
    for value in other.parameters():
        nn.init.zeros_(value)
    with torch.inference_mode():
        expected, found = plain.eval()(IMAGES), twin(IMAGES)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
