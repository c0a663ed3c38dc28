from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from opam.networks.backbones.backbone import Backbone, BackboneParams, create_backbone
from opam.networks.backbones.bodies import check_size
from opam.networks.backbones.pretrained import fitting
from opam.networks.backbones.stages import stages_of
from opam.networks.cam_network import (
    CamNetwork,
    penultimate_layer,
    read_network,
    with_heads,
    write_network,
)
from opam.pipeline.errors import OpamError

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)


@dataclass(frozen=True)
class Family:
    """What a backbone is: side of what it is shown, side of its maps, layer for parts, stages."""

    side: int
    places: int
    layer: str
    stages: list[int] | None


FAMILIES = {
    "resnet18": Family(64, 2, "layer4.1.conv1", [128, 256, 512]),
    "resnet50": Family(64, 2, "layer4.2.conv2", [512, 1024, 2048]),
    "res2net50_26w_4s": Family(64, 2, "layer4.2.convs.2", [512, 1024, 2048]),
    "res2net101_26w_4s": Family(64, 2, "layer4.2.convs.2", [512, 1024, 2048]),
    "vgg11_bn": Family(64, 4, "features.22", [256, 512, 1024]),
    "tf_efficientnet_lite0": Family(64, 2, "blocks.6.0.conv_pwl", [40, 112, 1280]),
    "mobilenetv3_small_050": Family(64, 2, "blocks.4.2.conv_pwl", [16, 24, 288]),
    "mobilenetv4_conv_small": Family(64, 2, "blocks.3.5.pw_proj.conv", [64, 96, 960]),
    "regnetx_002": Family(64, 2, "s4.b7.conv1.conv", [56, 152, 368]),
    "densenet121": Family(
        *(64, 2, "features.denseblock4.denselayer16.conv1", [512, 1024, 1024]),
    ),
    "convnext_atto": Family(64, 2, "stages.3.blocks.1.mlp.fc1", [80, 160, 320]),
    "caformer_s18": Family(64, 2, "stages.3.blocks.2.mlp.fc1", [128, 320, 512]),
    "efficientvit_b0": Family(
        *(64, 2, "stages.3.blocks.2.local_module.main.inverted_conv.conv", [32, 64, 128]),
    ),
    "swin_tiny_patch4_window7_224": Family(
        *(96, 3, "layers.3.blocks.1.mlp.fc1", [192, 384, 768]),
    ),
    "maxvit_pico_rw_256": Family(
        *(256, 8, "stages.3.blocks.1.attn_grid.mlp.fc1", [64, 128, 256]),
    ),
    "hiera_tiny_224": Family(224, 7, "blocks.11.mlp.fc1", None),
    "vit_tiny_patch16_224": Family(64, 4, "blocks.11.mlp.fc1", None),
    "deit3_small_patch16_224": Family(64, 4, "blocks.11.mlp.fc1", None),
    "vit_small_patch14_reg4_dinov2": Family(70, 5, "blocks.11.mlp.fc1", None),
    "vit_small_patch16_dinov3": Family(64, 4, "blocks.11.mlp.fc1", None),
    "eva02_tiny_patch14_224": Family(70, 5, "blocks.11.mlp.fc1", None),
    "vit_xsmall_patch16_clip_224": Family(64, 4, "blocks.9.mlp.fc1", None),
    "vit_base_patch16_siglip_224": Family(64, 4, "blocks.11.mlp.fc1", None),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_backbone_of_any_family_gives_maps_neurons_and_stages(name: str) -> None:
    family = FAMILIES[name]
    backbone = Backbone(name)
    state = {f"model.{key}": value for key, value in timm.create_model(name).state_dict().items()}
    backbone.body.load_state_dict(fitting(backbone.body, [state], "its own weights"))
    network = CamNetwork(backbone, classes=5).eval()
    images = torch.randint(0, 256, (2, 3, family.side, family.side), dtype=torch.uint8)
    check_size(name, family.side, "training.input_size")
    found, response = penultimate_layer(backbone)
    weights, module = network.neuron_weights(None)
    assert (found, response) == (family.layer, module)
    with torch.no_grad():
        maps, logits = network.maps_and_logits(network.maps(images))
        assert maps.shape == (2, backbone.channels, family.places, family.places)
        assert len({*maps[0].flatten(1).std(0).tolist()}) > 1, "every place is the same"
        assert torch.allclose(network(images)[:, 0], logits, atol=1e-4)
        # The class activation map is exact: its mean is the logit.
        cam = torch.einsum("kc,bcij->bkij", network.head.weight.double(), maps)
        assert torch.allclose(cam.mean((2, 3)) + network.head.bias, logits.double(), atol=1e-3)
        assert network.neuron_responses(images, module).shape == (2, len(weights))
        if family.stages is None:
            with pytest.raises(OpamError, match="cannot be run in stages"):
                stages_of(backbone.body)
            return
        assert backbone.stage_channels() == family.stages
        size = 2 * family.side if family.side < 128 else family.side
        images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
        first, second, last = backbone.stage_maps(images)
        assert torch.allclose(last, backbone(images), atol=1e-5)
        assert [each.shape[2] for each in (first, second)] == [size // 8, size // 16]
        for one, other in zip(backbone.run_stages(first, 1), (second, last), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("module", ["patch_embed.norm", "pos_drop"])  # without and with prefix
def test_the_places_of_a_transformer_are_where_they_are(module: str) -> None:
    backbone = Backbone("vit_tiny_patch16_224").eval()
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    changed = images.clone()
    changed[:, :, 16:32, 48:64] = 255
    with torch.no_grad():
        before, after = (backbone.feature_maps(each, module) for each in (images, changed))
    assert before.shape == (1, 192, 4, 4)
    assert (before != after).any(1)[0].nonzero().tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("vit_small_patch14_reg4_dinov2", 320, "take 308 or 322"),
        ("vit_tiny_patch16_224", 100, "take 96 or 112"),
        ("hiera_tiny_224", 320, "take 224"),
        ("maxvit_pico_rw_256", 224, "take 256"),
    ],
)
def test_a_size_that_a_backbone_does_not_take_is_told(name: str, size: int, nearest: str) -> None:
    with pytest.raises(OpamError, match=f"probes.part_size: .*{size} pixels; {nearest}$"):
        check_size(name, size, "probes.part_size")


def test_vgg19_has_the_papers_form() -> None:
    backbone = Backbone("vgg19_bn")
    assert backbone.channels == 1024
    assert backbone(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).shape == (1, 1024, 14, 14)
    name, response = penultimate_layer(backbone)
    assert backbone.body.get_submodule(name).weight.shape == (512, 512, 3, 3)
    convolutions = [n for n, m in backbone.body.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions[-2] == name  # conv5_3: the last but one of the sixteen
    assert len(convolutions) == 16
    assert isinstance(backbone.body.get_submodule(response), torch.nn.BatchNorm2d)


def test_the_convolution_can_be_named() -> None:
    backbone = Backbone("resnet18")
    assert penultimate_layer(backbone, "layer3.1.conv2")[1] == "layer3.1.bn2"
    with pytest.raises(OpamError, match=r"alignment\.convolution.*layer9"):
        penultimate_layer(backbone, "layer9")


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


@pytest.mark.parametrize("name", ["no_such_model", "crossvit_tiny_240"])
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
