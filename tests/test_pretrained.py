"""Weights files of every usual form give the backbone's weights, or say what does not fit."""

import argparse
import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from huggingface_hub import constants
from torch import nn

from opam.networks.backbones.backbone import Backbone, BackboneParams, create_backbone
from opam.networks.backbones.pretrained import fitting
from opam.networks.cam_network import CamNetwork, write_network
from opam.pipeline.errors import OpamError

NAME = "test_resnet"
State = dict[str, torch.Tensor]


def network(seed: int = 0, name: str = NAME) -> nn.Module:
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False, num_classes=7)
    for value in model.state_dict().values():
        if value.is_floating_point():
            nn.init.normal_(value)
    return model


def state(seed: int = 0) -> State:
    return dict(network(seed).state_dict())


def loaded(path: Path | str, name: str = NAME) -> State:
    return create_backbone(BackboneParams(name=name, weights=str(path))).body.state_dict()


def assert_loaded(path: Path, expected: State) -> None:
    found = loaded(path)
    assert len(found) > 10
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def prefixed(prefix: str, values: State) -> State:
    return {prefix + name: value for name, value in values.items()}


PREFIXES = [
    "module.",
    "model.",
    "backbone.",
    "net.",
    "encoder.",
    "_orig_mod.",
    "module.model.",
    "module.module.",
    "_orig_mod.module.backbone.net.",
    "student.my_own_name.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".safetensors"])
def test_anything_may_stand_in_front_of_the_names(tmp_path: Path, prefix: str, ending: str) -> None:
    path = tmp_path / f"w{ending}"
    save = safetensors.torch.save_file if ending == ".safetensors" else torch.save
    save(prefixed(prefix, state()), path)
    assert_loaded(path, state())


NESTED: dict[str, Callable[[State], Any]] = {
    "state_dict": lambda values: {"state_dict": values, "epoch": 3},
    "model_state_dict": lambda values: {"model_state_dict": values, "loss": 0.5},
    "model": lambda values: {"model": values},
    "net": lambda values: {"net": prefixed("module.", values), "acc": 93.2, "epoch": 7},
    "ema": lambda values: {"ema": values},
    "two levels": lambda values: {"model": {"state_dict": OrderedDict(values)}},
    "timm's train.py": lambda values: {
        "epoch": 3,
        "arch": NAME,
        "state_dict": values,
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.ones(3)}},
            "param_groups": [{"lr": 1}],
        },
        "version": 2,
        "args": argparse.Namespace(lr=0.1, betas=[0.9, 0.99], model=NAME, aa=None),
        "amp_scaler": {"scale": 65536.0},
        "metric": np.float64(81.2),
    },
    "torchvision's train.py": lambda values: {
        "model": values,
        "optimizer": {"state": {}, "param_groups": []},
        "lr_scheduler": {"last_epoch": np.int64(3), "base": np.float32(0.1), "on": np.bool_(True)},
        "epoch": 3,
        "args": argparse.Namespace(opt="sgd"),
    },
    "Lightning": lambda values: {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": prefixed("model.", values) | {"criterion.weight": torch.ones(7)},
        "optimizer_states": [{"state": {}}],
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
    },
    "torch.compile inside": lambda values: {
        name.replace("layer1.", "layer1._orig_mod."): value for name, value in values.items()
    },
    "DataParallel inside": lambda values: {
        name.replace("layer2.", "layer2.module."): value for name, value in values.items()
    },
    "parameters": lambda values: {
        name: nn.Parameter(value) if value.is_floating_point() else value
        for name, value in values.items()
    },
    "without counters": lambda values: {
        name: value for name, value in values.items() if not name.endswith("tracked")
    },
    "other head": lambda values: {
        **{name: value for name, value in values.items() if not name.startswith("fc.")},
        "fc.0.weight": torch.ones(9, 9),
        "fc.2.bias": torch.ones(9),
    },
}


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_of_every_usual_form(tmp_path: Path, form: str, legacy: bool) -> None:
    torch.save(NESTED[form](state()), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    found = loaded(tmp_path / "w.pth")
    expected = state()
    for name, value in found.items():
        if not (form == "without counters" and name.endswith("tracked")):
            assert torch.equal(value, expected[name])


@pytest.mark.parametrize(
    ("averaged", "plain"), [("state_dict_ema", "state_dict"), ("model_ema", "model")]
)
def test_averaged_weights_come_first_as_timm_has_it(
    tmp_path: Path, averaged: str, plain: str
) -> None:
    ema = prefixed("module.", state(1)) | {"n_averaged": torch.tensor(5)}
    torch.save({plain: state(0), averaged: ema}, tmp_path / "w.pth")
    assert_loaded(tmp_path / "w.pth", state(1))


def test_a_network_of_this_project_serves_as_weights(tmp_path: Path) -> None:
    trained = CamNetwork(Backbone(NAME), classes=3)
    settings = {"backbone": NAME, "input_size": 64, "resize": 72}
    write_network(tmp_path / "classnet.safetensors", trained, settings)
    assert_loaded(tmp_path / "classnet.safetensors", trained.backbone.body.state_dict())


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(state(), tmp_path / "w.pth")
    assert torch.equal(loaded("~/w.pth")["conv1.0.weight"], state()["conv1.0.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    values = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state().items()}
    torch.save(values, tmp_path / "w.pth")
    found = loaded(tmp_path / "w.pth")["conv1.0.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, values["conv1.0.weight"].float())


def refused(tmp_path: Path, content: object, name: str = NAME) -> str:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(OpamError, match=r"^backbone\.weights: ") as told:
        loaded(tmp_path / "w.pth", name)
    assert "\n" not in str(told.value)
    assert "weights_only" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    values = state()
    values["layer1.0.conv1.weight"].view(-1)[5] = value
    said = refused(tmp_path, prefixed("model.", values))
    assert "not finite" in said
    assert "layer1.0.conv1.weight;" in said
    values = state() | {"fc.weight": torch.full((7, 7), value)}
    torch.save(values, tmp_path / "w.pth")
    assert_loaded(tmp_path / "w.pth", state())  # the classifier is not used


def test_what_does_not_fit_is_listed_by_name(tmp_path: Path) -> None:
    lacking = {n: v for n, v in state().items() if n not in ("conv1.0.weight", "layer4.0.bn1.bias")}
    said = refused(tmp_path, {"state_dict": prefixed("module.", lacking)})
    assert "it lacks conv1.0.weight, layer4.0.bn1.bias;" in said
    other = state() | {"conv1.0.weight": torch.ones(1, 2, 3, 3)}
    assert "of another shape are conv1.0.weight (1, 2, 3, 3) for (" in refused(tmp_path, other)
    beyond = state() | {"layer1.9.conv1.weight": torch.ones(3)}
    assert "it has beyond layer1.9.conv1.weight;" in refused(tmp_path, beyond)
    integers = state() | {"conv1.0.weight": state()["conv1.0.weight"].to(torch.int8)}
    assert "conv1.0.weight" in refused(tmp_path, integers)
    few = dict(list(state().items())[:40])
    missing = len([n for n in network().state_dict() if n not in few and "tracked" not in n])
    missing -= 2  # of the classifier
    assert f" and {missing - 10} more" in refused(tmp_path, few)


@pytest.mark.parametrize(
    ("body", "other"),
    [
        ("resnet18", "resnet34"),
        ("resnet34", "resnet18"),
        ("resnet50", "seresnet50"),
        ("resnet50", "wide_resnet50_2"),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite1"),
        ("resnet18", "vit_tiny_patch16_224"),
        ("resnet18", "tf_efficientnet_lite0"),
    ],
)
def test_another_network_does_not_fit_by_half(body: str, other: str) -> None:
    with torch.device("meta"):
        values = timm.create_model(other, pretrained=False).state_dict()
        wanted = timm.create_model(body, pretrained=False, num_classes=0, global_pool="")
    with pytest.raises(OpamError, match=r"does not fit the backbone: (it lacks|of another|it has)"):
        fitting(wanted, [values], "w.pth")


def test_torchvisions_resnet_is_timms() -> None:
    values = torchvision.models.resnet18().state_dict()
    found = fitting(Backbone("resnet18").body, [values], "w.pth")
    assert torch.equal(found["layer4.1.conv2.weight"], values["layer4.1.conv2.weight"])


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v3_small"])
def test_torchvisions_other_names_are_told(name: str) -> None:
    with torch.device("meta"):
        values = getattr(torchvision.models, name)().state_dict()
    body = Backbone({"mobilenet_v3_small": "mobilenetv3_small_100"}.get(name, name)).body
    with pytest.raises(OpamError, match=r"it lacks conv_stem.weight, .* and .* more"):
        fitting(body, [values], "w.pth")


def test_several_networks_in_one_file_are_told(tmp_path: Path) -> None:
    two = prefixed("encoder_q.", state(0)) | prefixed("encoder_k.", state(1))
    assert "several networks that fit, under 'encoder_k.', 'encoder_q.'" in refused(tmp_path, two)
    twice = prefixed("backbone.", state(0)) | prefixed("classifier.net.", state(0))
    torch.save(twice, tmp_path / "w.pth")
    assert_loaded(tmp_path / "w.pth", state(0))


def test_what_stands_beside_the_backbone_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state() | {"projector.weight": torch.ones(3)}, tmp_path / "w.pth")
    assert_loaded(tmp_path / "w.pth", state())
    assert "left out projector.weight" in capsys.readouterr().err
    torch.save(state(), tmp_path / "w.pth")
    assert_loaded(tmp_path / "w.pth", state())
    assert capsys.readouterr().err == ""


class Odd:
    """Of a class that the project does not know."""


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch unpickled",))


def test_python_objects_are_named_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "Odd" in refused(tmp_path, {"state_dict": state(), "args": Odd()})
    said = refused(tmp_path, network())
    assert "it holds a Python object, timm.models.resnet.ResNet, which is never run" in said
    assert "torch.save(model.state_dict()" in said
    for content in (Evil(), {"a": Evil()}, argparse.Namespace(a=Evil()), np.array([Evil()])):
        refused(tmp_path, content)
    assert not (tmp_path / "unpickled").exists()


def test_files_without_weights_are_told(tmp_path: Path) -> None:
    assert "no state dict under its keys epoch, best" in refused(tmp_path, {"epoch": 3, "best": 1})
    for content in ({}, [], torch.ones(3, 3), 5, None, {3: torch.ones(2)}):
        assert "holds no state dict" in refused(tmp_path, content)
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pth")
    with pytest.raises(OpamError, match="TorchScript program"):
        loaded(tmp_path / "w.pth")
    with pytest.raises(OpamError, match="not a file"):
        loaded(tmp_path)


class Hub:
    """A stand-in for the hub: repositories of one file, and what was asked of it."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.fetched: list[str] = []
        hub = self

        class Answers(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(False)

            def do_GET(self) -> None:
                self.answer(True)

            def answer(self, whole: bool) -> None:
                found = re.fullmatch(r"/(.+)/resolve/(.+)/model\.safetensors", self.path)
                content = found and hub.files.get((found[1], unquote(found[2])))
                self.send_response(200 if content else 404)
                if not content:
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.end_headers()
                    return
                digest = hashlib.sha256(content).hexdigest()
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{digest}"')
                self.send_header("X-Repo-Commit", digest[:40])
                self.end_headers()
                if whole:
                    hub.fetched.append(self.path)
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found = Hub()
    template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", found.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
    yield found
    found.close()


def from_hub(name: str | None) -> State:
    return create_backbone(BackboneParams(name=NAME, weights="timm", hub=name)).body.state_dict()


@pytest.mark.filterwarnings("ignore")
def test_weights_of_a_pinned_revision_come_from_the_hub_and_then_from_its_cache(hub: Hub) -> None:
    own = timm.models.get_pretrained_cfg(NAME).hf_hub_id
    states = {seed: safetensors.torch.save(state(seed)) for seed in range(4)}
    hub.files = {
        (own, "main"): states[0],
        (own, "v1"): states[1],
        ("team/birds", "main"): states[2],
        ("team/birds", "0123abc"): states[3],
    }
    named = {
        None: 0,
        "@v1": 1,
        "team/birds": 2,
        "hf-hub:team/birds@0123abc": 3,
    }
    for name, seed in named.items():
        expected = state(seed)
        for tensor, value in from_hub(name).items():
            torch.testing.assert_close(value, expected[tensor], rtol=0, atol=0)
    assert len(hub.fetched) == 4
    hub.close()
    for name, seed in named.items():
        assert torch.equal(from_hub(name)["conv1.0.weight"], state(seed)["conv1.0.weight"])


@pytest.mark.filterwarnings("ignore")
def test_what_the_hub_does_not_have_is_said_in_a_line(hub: Hub) -> None:
    with pytest.raises(
        OpamError, match=r"weights of 'test_resnet' at team/birds@v9.*backbone\.hub"
    ):
        from_hub("team/birds@v9")
    for name, weights, told in (
        ("team/birds", "package", r"hub is team/birds, but weights is package"),
        ("https://somewhere/birds", "timm", "hub"),
    ):
        with pytest.raises(ValueError, match=told):
            BackboneParams(name=NAME, weights=weights, hub=name)
    with pytest.raises(OpamError, match=r"weights of some architecture.*backbone\.hub: hf-hub:a/b"):
        Backbone("hf-hub:a/b")
