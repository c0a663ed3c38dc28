"""A backbone's body, run stage by stage."""

import pytest
import torch

from opam.networks.backbones.backbone import Backbone
from opam.pipeline.errors import OpamError

IMAGES = torch.randint(
    0, 256, (2, 3, 96, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
BACKBONES = [
    ("resnet18", ["layer2", "layer3", "layer4"]),
    ("res2net50_26w_4s", ["layer2", "layer3", "layer4"]),
    ("tf_efficientnet_lite0", ["blocks.2", "blocks.4", "bn2"]),
    ("mobilenetv3_small_050", ["blocks.1", "blocks.3", "blocks.5"]),
]


@pytest.mark.parametrize(("name", "modules"), BACKBONES)
@pytest.mark.parametrize("training", [False, True])
def test_stages_give_what_the_whole_body_gives(
    name: str, modules: list[str], training: bool
) -> None:
    backbone = Backbone(name).train(training)
    with torch.no_grad():
        stages = backbone.stage_maps(IMAGES)
        for stride, maps, module in zip((8, 16, 32), stages, modules, strict=True):
            assert maps.shape[2:] == (96 // stride, 64 // stride)
            assert torch.equal(maps, backbone.feature_maps(IMAGES, module))
        assert torch.equal(stages[-1], backbone(IMAGES))


@pytest.mark.parametrize(("name", "modules"), BACKBONES)
def test_the_rest_of_the_body_runs_from_any_stage(name: str, modules: list[str]) -> None:
    backbone = Backbone(name).eval()
    with torch.no_grad():
        stages = backbone.stage_maps(IMAGES)
        assert [maps.shape[1] for maps in stages] == backbone.stage_channels()
        for first in (1, 2):
            rest = backbone.run_stages(stages[first - 1], first)
            assert len(rest) == 3 - first
            for found, expected in zip(rest, stages[first:], strict=True):
                assert torch.equal(found, expected)
        changed = backbone.run_stages(stages[0].flip(3), 1)[-1]
    assert not torch.allclose(changed, stages[-1])


def test_vgg_has_stages_behind_its_poolings_and_ends_with_the_cam_convolution() -> None:
    backbone = Backbone("vgg16_bn").eval()
    with torch.no_grad():
        stages = backbone.stage_maps(IMAGES)
        assert torch.equal(stages[0], backbone.feature_maps(IMAGES, "features.23"))
        assert torch.equal(stages[1], backbone.feature_maps(IMAGES, "features.33"))
        assert torch.equal(stages[2], backbone(IMAGES))
    assert [tuple(maps.shape[1:]) for maps in stages] == [
        (256, 12, 8),
        (512, 6, 4),
        (1024, 6, 4),
    ]


def test_gradients_go_through_the_stages_that_were_run() -> None:
    backbone = Backbone("resnet18")
    low = backbone.stage_maps(IMAGES)[0].detach().requires_grad_()
    backbone.run_stages(low, 1)[-1].square().mean().backward()
    assert low.grad is not None
    assert low.grad.abs().sum() > 0
    assert backbone.body.layer2[0].downsample[0].weight.grad is None
    assert backbone.body.layer3[0].downsample[0].weight.grad.abs().sum() > 0


def test_asking_for_channels_changes_nothing() -> None:
    backbone = Backbone("mobilenetv3_small_050")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert backbone.train().stage_channels() == [16, 24, 288]
    assert all(module.training for module in backbone.modules())
    assert backbone.eval().stage_channels() == [16, 24, 288]
    assert not any(module.training for module in backbone.modules())
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_body_without_stages_is_named() -> None:
    backbone = Backbone("vit_tiny_patch16_224")
    with pytest.raises(OpamError, match=r"backbone\.name: 'vit_tiny_.*take a network.*ResNet"):
        backbone.stage_maps(IMAGES)
