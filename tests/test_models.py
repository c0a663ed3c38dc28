from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from opam.networks.backbones.backbone import (
    Backbone,
    BackboneParams,
    create_backbone,
    penultimate_convolution,
)
from opam.networks.cam_network import CamNetwork, read_network, with_heads, write_network
from opam.pipeline.errors import OpamError

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "convolution"),
    [
        ("resnet18", "layer4.1.conv1"),
        ("resnet50", "layer4.2.conv2"),
        ("res2net50_26w_4s", "layer4.2.convs.2"),
        ("res2net101_26w_4s", "layer4.2.convs.2"),
        ("vgg11_bn", "features.22"),
        ("tf_efficientnet_lite0", "blocks.6.0.conv_pwl"),
        ("mobilenetv3_small_050", "blocks.4.2.conv_pwl"),
        ("regnetx_002", "s4.b7.conv1.conv"),
    ],
)
def test_any_convolutional_backbone_gives_maps_and_its_penultimate_convolution(
    name: str, convolution: str
) -> None:
    network = CamNetwork(Backbone(name), classes=5).eval()
    with torch.no_grad():
        maps = network.backbone(IMAGES)
        assert maps.shape[:2] == (2, network.backbone.channels)
        assert network(IMAGES).shape == (2, 1, 5)
    found, response = penultimate_convolution(network.backbone)
    assert found == convolution
    weights, module = network.neuron_weights(None)
    assert module == response
    with torch.no_grad():
        assert network.neuron_responses(IMAGES, module).shape == (2, len(weights))


def test_vgg19_has_the_papers_form() -> None:
    backbone = Backbone("vgg19_bn")
    assert backbone.channels == 1024
    assert backbone(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).shape == (1, 1024, 14, 14)
    name, response = penultimate_convolution(backbone)
    assert backbone.body.get_submodule(name).weight.shape == (512, 512, 3, 3)
    convolutions = [n for n, m in backbone.body.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions[-2] == name  # conv5_3: the last but one of the sixteen
    assert len(convolutions) == 16
    assert isinstance(backbone.body.get_submodule(response), torch.nn.BatchNorm2d)


def test_the_convolution_can_be_named() -> None:
    backbone = Backbone("resnet18")
    assert penultimate_convolution(backbone, "layer3.1.conv2")[1] == "layer3.1.bn2"
    with pytest.raises(OpamError, match=r"alignment\.convolution.*layer9"):
        penultimate_convolution(backbone, "layer9")


def test_neuron_responses_are_rectified_spatial_means() -> None:
    network = CamNetwork(Backbone("resnet18"), classes=2).eval()
    kept = {}
    layer = network.backbone.body.layer4[1].bn1
    layer.register_forward_hook(lambda _m, _i, output: kept.update(maps=output))
    with torch.no_grad():
        responses = network.neuron_responses(IMAGES, "layer4.1.bn1").numpy()
    maps = kept["maps"].numpy()
    for image in range(2):
        for neuron in range(0, 512, 100):
            literal = np.mean([max(value, 0.0) for value in maps[image, neuron].ravel()])
            assert responses[image, neuron] == pytest.approx(literal, rel=1e-5)


def test_package_weights_are_the_models_own() -> None:
    backbone = create_backbone(BackboneParams(name="tf_efficientnet_lite0", weights="package"))
    stem = backbone.body.conv_stem.weight
    assert stem.std() > 0.1
    assert torch.equal(
        stem, create_backbone(BackboneParams(weights="package")).body.conv_stem.weight
    )
    assert backbone.mean.flatten().tolist() == [0.5, 0.5, 0.5]


def test_a_local_file_serves_as_weights(tmp_path: Path) -> None:
    source = timm.create_model("resnet18", pretrained=False)
    safetensors.torch.save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        params = BackboneParams(name="resnet18", weights=str(tmp_path / file))
        loaded = create_backbone(params).body.layer4[1].conv2.weight
        assert torch.equal(loaded, source.layer4[1].conv2.weight)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    other = timm.create_model("resnet34", pretrained=False).state_dict()
    torch.save(other, tmp_path / "resnet34.pth")
    torch.save({"a": 1}, tmp_path / "strange.pth")
    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "torn.safetensors").write_bytes(b"abc")
    cases = {
        "resnet34.pth": "",
        "strange.pth": "no state dict",
        "evil.pth": "cannot be read as weights",
        "torn.safetensors": "cannot be read as weights",
        "absent.pth": "not a file",
    }
    for file, message in cases.items():
        name = "resnet50" if file == "resnet34.pth" else "resnet18"
        params = BackboneParams(name=name, weights=str(tmp_path / file))
        with pytest.raises(OpamError, match=r"backbone\.weights") as raised:
            create_backbone(params)
        assert message in str(raised.value)
    with pytest.raises(OpamError, match="no package"):
        create_backbone(BackboneParams(name="resnet18", weights="package"))


@pytest.mark.parametrize("name", ["no_such_model", "vit_tiny_patch16_224"])
def test_names_that_cannot_serve_are_refused(name: str) -> None:
    with pytest.raises(OpamError, match=r"backbone\.name"):
        create_backbone(BackboneParams(name=name, weights="none"))


def test_a_network_comes_back_as_it_was_written(tmp_path: Path) -> None:
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3, heads=2).eval()
    path = tmp_path / "net.safetensors"
    settings = {"backbone": "mobilenetv3_small_050", "input_size": 64, "resize": 72}
    write_network(path, network, settings)
    again, read = read_network(path)
    assert read == {**settings, "classes": 3, "heads": 2}
    with torch.no_grad():
        assert torch.allclose(again(IMAGES), network(IMAGES), atol=1e-5)
    first = path.read_bytes()
    write_network(path, network, settings)
    assert path.read_bytes() == first


def test_a_file_that_is_no_network_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(OpamError, match="not found"):
        read_network(path)
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(OpamError, match=r"net\.safetensors: not a network"):
        read_network(path)


def test_copied_heads_agree_with_the_only_one() -> None:
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3).eval()
    with torch.no_grad():
        before = network(IMAGES)
        after = with_heads(network, 2).eval()(IMAGES)
    assert after.shape == (2, 2, 3)
    assert torch.allclose(after, before.expand(-1, 2, -1), atol=1e-6)


def test_random_weights_are_the_same_in_every_stage() -> None:
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append(create_backbone(BackboneParams(name="resnet18", weights="none")))
    for one, other in zip(*(each.parameters() for each in found), strict=True):
        assert torch.equal(one, other)
