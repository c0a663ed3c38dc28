"""Checkpoints of the shape that the authors of NTS-Net and AP-CNN released, made up here."""

import hashlib
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from small_project import ROOT, preset
from system_checks import IMAGES

from opam.app.check_params import check, check_networks
from opam.networks.backbones.backbone import Backbone, BackboneParams, create_backbone
from opam.pipeline.artifacts import GT_BOX, read_table, write_table
from opam.pipeline.errors import OpamError
from opam.systems.released import released_state
from opam.systems.systems import create_system, method_params, read_system, release_of

State = dict[str, torch.Tensor]
SHAPES = dict[str, tuple[int, ...]]
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
SYSTEMS = ("nts_net", "ap_cnn")
SMALL = {
    "nts_net": {"anchors": [{"side": 96, "scales": [1.0]}] * 3, "ratios": [1.0, 2.0], "parts": 2},
    "ap_cnn": {"channels": 32, "hidden": 24},
}
"""Of a small network: six anchors a level there, two here."""


# What the authors' modules hold, by their names, written down once more.


def norm(name: str, channels: int) -> SHAPES:
    return {f"{name}.{each}": (channels,) for each in BATCH_NORM}


def layer(name: str, *shape: int) -> SHAPES:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def resnet(blocks: tuple[int, ...], deep: bool, prefix: str = "") -> SHAPES:
    """Names and shapes of ResNet-50 (deep: three convolutions a block) or ResNet-18."""
    found: SHAPES = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    before = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        after = 4 * width if deep else width
        for block in range(count):
            at = f"layer{stage + 1}.{block}"
            sides = (1, 3, 1) if deep else (3, 3)
            outputs = (width, width, after) if deep else (width, width)
            inputs = (before, *outputs)
            for number, side in enumerate(sides, start=1):
                shape = (outputs[number - 1], inputs[number - 1], side, side)
                found[f"{at}.conv{number}.weight"] = shape
                found |= norm(f"{at}.bn{number}", outputs[number - 1])
            if block == 0 and (stage or deep):
                found[f"{at}.downsample.0.weight"] = (after, before, 1, 1)
                found |= norm(f"{at}.downsample.1", after)
            before = after
    return {f"{prefix}{name}": shape for name, shape in found.items()}


def nts_net(classes: int, deep: bool, parts: int, anchors: tuple[int, ...]) -> SHAPES:
    """The state of the authors' ``attention_net``."""
    channels = 2048 if deep else 512
    return {
        **resnet((3, 4, 6, 3) if deep else (2, 2, 2, 2), deep, "pretrained_model."),
        **layer("pretrained_model.fc", classes, channels),
        **layer("proposal_net.down1", 128, channels, 3, 3),
        **layer("proposal_net.down2", 128, 128, 3, 3),
        **layer("proposal_net.down3", 128, 128, 3, 3),
        **layer("proposal_net.tidy1", anchors[0], 128, 1, 1),
        **layer("proposal_net.tidy2", anchors[1], 128, 1, 1),
        **layer("proposal_net.tidy3", anchors[2], 128, 1, 1),
        **layer("concat_net", classes, channels * (parts + 1)),
        **layer("partcls_net", classes, channels),
    }


def ap_cnn(classes: int, deep: bool, width: int, hidden: int) -> SHAPES:
    """The state of the authors' ``ResNet`` in ``model/resnet50.py``."""
    c3, c4, c5 = (512, 1024, 2048) if deep else (128, 256, 512)
    found = resnet((3, 4, 6, 3) if deep else (2, 2, 2, 2), deep)
    for branch in ("conv_master", "conv_gpb"):
        found[f"fpn.P5_1.{branch}.conv.weight"] = (width, c5, 1, 1)
        found |= norm(f"fpn.P5_1.{branch}.bn", width)
    found |= layer("fpn.P5_2", width, width, 3, 3)
    found |= layer("fpn.P4_1", width, c4, 1, 1) | layer("fpn.P4_2", width, width, 3, 3)
    found |= layer("fpn.P3_1", width, c3, 1, 1) | layer("fpn.P3_2", width, width, 3, 3)
    for level in "345":
        found |= {
            f"apn.A{level}_1.conv.weight": (width, 1, 3, 3),
            f"apn.A{level}_1.conv.bias": (1,),
        }
        found |= layer(f"apn.A{level}_2.conv1", width // 16, width, 1, 1)
        found |= layer(f"apn.A{level}_2.conv2", width, width // 16, 1, 1)
        found |= norm(f"cls{level}.2", width) | layer(f"cls{level}.3", hidden, width)
        found |= norm(f"cls{level}.4", hidden) | layer(f"cls{level}.6", classes, hidden)
    found |= norm("cls_concate.1", 3 * width) | layer("cls_concate.2", hidden, 3 * width)
    found |= norm("cls_concate.3", hidden) | layer("cls_concate.5", classes, hidden)
    return found


AS_RELEASED: dict[str, tuple[dict[str, Any], SHAPES]] = {
    "nts_net": ({}, nts_net(200, True, parts=4, anchors=(6, 6, 9))),
    "ap_cnn": ({"hidden": 512}, ap_cnn(200, True, width=256, hidden=512)),
}


def small_shapes(system: str, classes: int) -> SHAPES:
    if system == "nts_net":
        return nts_net(classes, False, parts=2, anchors=(2, 2, 2))
    return ap_cnn(classes, False, width=32, hidden=24)


def made_up(shapes: SHAPES, seed: int = 0) -> State:
    """Random weights under which signals neither vanish nor grow."""
    torch.manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        if name.endswith("running_var"):
            found[name] = torch.rand(shape) + 0.5
        elif len(shape) > 1:
            found[name] = torch.randn(shape) / (0.5 * torch.Size(shape[1:]).numel()) ** 0.5
        else:
            found[name] = torch.randn(shape) / 4 + (name.endswith("weight"))
    return found


def checkpoint(path: Path, system: str, classes: int = 3, **others: torch.Tensor) -> State:
    """Write what the authors' script would, as the torch of their days wrote it; the state."""
    state = made_up(small_shapes(system, classes)) | others
    beside = {"epoch": 49, "train_loss": 0.01, "train_acc": 0.999, "test_loss": 0.6}
    content = {**beside, "net_state_dict": state} if system == "nts_net" else state
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return state


def small(system: str, classes: int = 3, backbone: str = "resnet18") -> Any:
    method = method_params(system).model_validate(SMALL[system])
    return create_system(system, Backbone(backbone), classes, method).eval()


def begun(system: str, path: Path) -> Any:
    network = small(system)
    state, classes = released_state(network, release_of(system), path, "weights")
    assert classes == 3
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return network


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_tensor_of_the_released_network_has_its_place(system: str) -> None:
    method, shapes = AS_RELEASED[system]
    with torch.device("meta" if system == "nts_net" else "cpu"):
        settings = method_params(system).model_validate(method)
        network = create_system(system, Backbone("resnet50.tv_in1k"), 200, settings)
    release = release_of(system)
    own = {
        release.name(name): tuple(value.shape)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert set(own) == set(shapes)
    for name, shape in shapes.items():
        assert own[name] == shape or own[name] + (1, 1) == shape, name


@torch.inference_mode()
def test_nts_net_answers_as_the_released_weights_say(tmp_path: Path) -> None:
    state = checkpoint(tmp_path / "model.ckpt", "nts_net")
    network = begun("nts_net", tmp_path / "model.ckpt")
    images = IMAGES
    maps = network.backbone(images)

    # The Navigator, by the authors' names.
    d1 = F.conv2d(maps, *both(state, "proposal_net.down1"), stride=1, padding=1).relu()
    d2 = F.conv2d(d1, *both(state, "proposal_net.down2"), stride=2, padding=1).relu()
    d3 = F.conv2d(d2, *both(state, "proposal_net.down3"), stride=2, padding=1).relu()
    scores = [
        F.conv2d(d, *both(state, f"proposal_net.tidy{n}")) for n, d in ((1, d1), (2, d2), (3, d3))
    ]
    for given, expected in zip(network.navigator(maps), scores, strict=True):
        torch.testing.assert_close(given, expected)

    # In the authors' concatenation parts come before the whole.
    boxes, _ = network._navigate(images, maps, 2)
    parts = network._part_features(images, boxes)
    whole = maps.mean((2, 3))
    assert (parts[:, 0] - parts[:, 1]).abs().max() > 0.01
    together = torch.cat([parts[:, 0], parts[:, 1], whole], 1)
    logits = F.linear(together, *both(state, "concat_net"))
    torch.testing.assert_close(network(images).logits, logits, atol=1e-4, rtol=1e-4)
    assert (
        F.linear(torch.cat([whole, parts.flatten(1)], 1), *both(state, "concat_net")) - logits
    ).abs().max() > 0.1

    raw = F.linear(whole, *both(state, "pretrained_model.fc"))
    of_parts = F.linear(parts, *both(state, "partcls_net"))
    torch.testing.assert_close(network.image_teacher(whole), raw)
    torch.testing.assert_close(network.part_teacher(parts), of_parts)


def both(state: State, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def normalised(state: State, name: str, values: torch.Tensor) -> torch.Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(values, mean, var, *both(state, name))


@torch.inference_mode()
def test_ap_cnn_answers_as_the_released_weights_say(tmp_path: Path) -> None:
    state = checkpoint(tmp_path / "model_best.pth", "ap_cnn")
    network = begun("ap_cnn", tmp_path / "model_best.pth")
    x2, x3, x4 = network.backbone.stage_maps(torch.cat([IMAGES, IMAGES.flip(3)], 2))

    # Pyramid, gates and classifiers by the authors' names.
    def conv(name: str, maps: torch.Tensor, **options: int) -> torch.Tensor:
        return F.conv2d(maps, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)

    def branch(name: str, maps: torch.Tensor) -> torch.Tensor:
        return normalised(state, f"fpn.P5_1.{name}.bn", conv(f"fpn.P5_1.{name}.conv", maps)).relu()

    p5 = branch("conv_master", x4) + branch("conv_gpb", x4.mean((2, 3), keepdim=True))
    p4 = conv("fpn.P4_1", x3) + F.interpolate(p5, scale_factor=2)
    p3 = conv("fpn.P3_1", x2) + F.interpolate(p4, scale_factor=2)
    levels = {n: conv(f"fpn.P{n}_2", p, padding=1) for n, p in ((3, p3), (4, p4), (5, p5))}
    gated, spatial = [], []
    before: torch.Tensor | None = None
    for n, f in levels.items():
        spatial.append(F.conv_transpose2d(f, *both(state, f"apn.A{n}_1.conv"), padding=1).sigmoid())
        hidden = conv(f"apn.A{n}_2.conv1", f.mean((2, 3), keepdim=True)).relu()
        own = conv(f"apn.A{n}_2.conv2", hidden).sigmoid()
        before = own if before is None else (own + before) / 2
        gated.append(spatial[-1] * f + before * f)

    def classify(name: str, first: int, vector: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(
            normalised(state, f"{name}.{first}", vector), *both(state, f"{name}.{first + 1}")
        )
        hidden = F.elu(normalised(state, f"{name}.{first + 2}", hidden))
        return F.linear(hidden, *both(state, f"{name}.{first + 4}"))

    expected = [
        classify(f"cls{n}", 2, f.mean((2, 3))) for n, f in zip((3, 4, 5), gated, strict=True)
    ]
    together = torch.cat([f.mean((2, 3)) for f in levels.values()], 1)
    expected.append(classify("cls_concate", 1, together))
    logits, gates = network._classify([x2, x3, x4])
    for given, literal in zip([*logits, *gates], [*expected, *spatial], strict=True):
        torch.testing.assert_close(given, literal, atol=1e-3, rtol=1e-3)
    assert max(abs(a - b).max() for a in logits for b in logits) > 0.1


@pytest.mark.parametrize("system", SYSTEMS)
def test_linear_layers_of_other_classes_begin_anew(system: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "model.ckpt", system, classes=5)
    network = small(system)
    state, classes = released_state(network, release_of(system), tmp_path / "model.ckpt", "weights")
    assert classes == 5
    heads = {
        "nts_net": ["image_teacher", "part_teacher", "scrutinizer"],
        "ap_cnn": [f"classifiers.{number}.4" for number in range(4)],
    }[system]
    missing = {name for name in network.state_dict() if name not in state and "tracked" not in name}
    assert missing == {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}


def without(name: str) -> Callable[[State], State]:
    return lambda state: {each: value for each, value in state.items() if each != name}


@pytest.mark.parametrize(
    ("system", "change", "told"),
    [
        ("nts_net", without("partcls_net.bias"), r"it lacks partcls_net\.bias;"),
        (
            "nts_net",
            lambda state: state | {"concat_net.weight": torch.zeros(3, 2048)},
            r"concat_net\.weight is 3 x 2048 in it, 3 x 1536 here;",
        ),
        (
            "nts_net",
            lambda state: state | {"concat_net.bias": torch.zeros(4)},
            r"concat_net\.bias is 4 in it, 3 here;",
        ),
        (
            "nts_net",
            lambda state: state | {"proposal_net.tidy1.bias": torch.tensor(1.0)},
            r"tidy1\.bias is a single value in it, 2 here;",
        ),
        (
            "nts_net",
            lambda state: state | {"pretrained_model.layer4.2.conv1.weight": torch.zeros(9)},
            r"it has pretrained_model\.layer4\.2\.conv1\.weight, too;",
        ),
        (
            "nts_net",
            lambda state: state | {"partcls_net.bias": torch.zeros(3, dtype=torch.int64)},
            r"partcls_net\.bias is 3 whole numbers in it",
        ),
        (
            "nts_net",
            lambda state: state | {"partcls_net.bias": torch.tensor([0.0, torch.nan, 0.0])},
            r"not finite \(NaN or infinite\) in partcls_net\.bias;",
        ),
        (
            "ap_cnn",
            lambda state: state | {"apn.A4_2.conv1.weight": torch.zeros(2, 32, 3, 3)},
            r"apn\.A4_2\.conv1\.weight is 2 x 32 x 3 x 3 in it, 2 x 32 here;",
        ),
        ("ap_cnn", without("cls5.6.weight"), r"it lacks cls5\.6\.weight;"),
        (
            "ap_cnn",
            lambda _state: {"a": torch.zeros(1)},
            r"it lacks conv1\.weight \(and \d+ more\)",
        ),
    ],
)
def test_the_tensor_that_is_wrong_is_named(
    system: str, change: Callable[[State], State], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(change(made_up(small_shapes(system, 3))), path)
    with pytest.raises(
        OpamError, match=rf"^baselines\.x\.weights: .*model\.ckpt .*{told}"
    ) as error:
        released_state(small(system), release_of(system), path, "baselines.x.weights")
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_told_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.system, (f"touch {tmp_path / 'trapped'}",))

    network, release = small("nts_net"), release_of("nts_net")
    torch.save({"net_state_dict": {"a": Trap()}}, tmp_path / "trap.ckpt")
    (tmp_path / "torn.ckpt").write_bytes(b"torn")
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    for name in ("trap", "torn", "empty", "none"):
        with pytest.raises(OpamError, match=rf"^baselines\.x\.weights: .*{name}\.ckpt"):
            released_state(network, release, tmp_path / f"{name}.ckpt", "baselines.x.weights")
    assert not (tmp_path / "trapped").exists()


def test_what_more_is_in_a_checkpoint_is_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"centers": torch.zeros(2), "module.conv1.num_batches_tracked": torch.tensor(3)}
    checkpoint(tmp_path / "model.ckpt", "ap_cnn", **extra)
    begun("ap_cnn", tmp_path / "model.ckpt")
    assert capsys.readouterr().err == f"weights: {tmp_path / 'model.ckpt'}: left out centers\n"


def test_its_backbone_alone_serves_any_network(tmp_path: Path) -> None:
    state = checkpoint(tmp_path / "model.ckpt", "nts_net")
    params = BackboneParams(name="resnet18", weights=str(tmp_path / "model.ckpt"))
    found = create_backbone(params).body.state_dict()["layer3.0.conv1.weight"]
    assert torch.equal(found, state["pretrained_model.layer3.0.conv1.weight"])


def entry(folder: Path, **own: Any) -> Path:
    """A parameter file with one entry, ``authors``, under baselines."""
    params = preset("defaults")
    params["prepare"]["val_fraction"] = 0.5
    params["execution"] |= {"workers": 0, "threads": 1, "batch_size": 4}
    params["training"] |= {"epochs": 1, "batch_size": 4, "input_size": 64, "resize": 72}
    params["baselines"] = {
        "authors": {
            "system": "nts_net",
            "backbone": {"name": "resnet18", "weights": "none"},
            "weights": "model.ckpt",
            "method": SMALL["nts_net"],
            **own,
        }
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder / "params.yaml"


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (
            {"system": "finetune", "method": {}},
            r"authors.*released of nts_net or ap_cnn, not of fine",
        ),
        ({"weights": None, "training": {"epochs": 0}}, r"authors.*epochs is 0.*nothing is learned"),
        ({"training": {"epochs": -1}}, r"baselines\.authors\.training\.epochs"),
    ],
)
def test_entries_that_say_nothing_are_told(own: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(OpamError, match=told):
        check(entry(tmp_path, **own))


def test_a_checkpoint_that_does_not_fit_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/weights").mkdir(parents=True)
    checkpoint(tmp_path / "data/weights/model.ckpt", "nts_net", classes=200)
    path = entry(tmp_path)
    check_networks(check(path), path)
    path = entry(tmp_path, method=SMALL["nts_net"] | {"parts": 3})
    with pytest.raises(
        OpamError, match=r"^baselines\.authors\.weights: .*concat_net\.weight is 200"
    ):
        check_networks(check(path), path)


def test_the_stage_scores_as_released_or_trains_from_there(
    photographs: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_baseline.py", "authors"])
    train_baseline = runpy.run_path(str(ROOT / "stages/train_baseline.py"))["main"]
    model = Path("data/weights/model.ckpt")
    model.parent.mkdir(parents=True)
    checkpoint(model, "nts_net", classes=2)
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in photographs["path"]]
    manifest = photographs.assign(sha256=digests, class_name="a", group="")
    manifest = manifest.assign(**dict.fromkeys(GT_BOX, 1))
    write_table(Path("data/manifest.parquet"), "manifest", manifest)
    out = Path("data/baselines/authors")

    entry(tmp_path, training={"epochs": 0})
    train_baseline()
    network, _ = read_system(out / "weights.safetensors")
    state, _ = released_state(network, release_of("nts_net"), model, "weights")
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    assert len(read_table(out / "scores.parquet", "scores")) == 4

    entry(tmp_path, training={"epochs": 1, "rate": 0.0001})
    train_baseline()
    assert "epoch 1, train_loss" in capsys.readouterr().err
    trained, _ = read_system(out / "weights.safetensors")
    moved = trained.scrutinizer.weight - network.scrutinizer.weight
    assert 0 < moved.abs().max() < network.scrutinizer.weight.abs().max()

    checkpoint(model, "nts_net", classes=5)
    train_baseline()
    assert "and the photographs have 2: their linear layers begin anew" in capsys.readouterr().err
    entry(tmp_path, training={"epochs": 0})
    with pytest.raises(OpamError, match=r"ckpt has 5 classes, and the photographs have 2; set bas"):
        train_baseline()
