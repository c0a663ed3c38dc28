"""Training as transformers and ConvNeXt want it: AdamW, rates by layer, averages, dropped paths."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from small_project import preset

from opam.app.check_params import check, check_networks
from opam.engine.training import loop
from opam.engine.training.loop import train
from opam.engine.training.optimizer import RunningAverage, create_optimizer
from opam.engine.training.params import TrainingParams
from opam.engine.training.samples import whole_images
from opam.networks.backbones.backbone import BackboneParams, create_backbone, drop_paths
from opam.networks.cam_network import CamNetwork, write_network
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.resume import finish

PARAMS = TrainingParams(epochs=2, batch_size=4, input_size=160, resize=160, rate=0.01)


def new_network(name: str = "test_vit") -> CamNetwork:
    torch.manual_seed(0)
    return CamNetwork(create_backbone(BackboneParams(name=name, weights="none")), classes=2)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained(manifest: pd.DataFrame, name: str = "test_vit", **changes: Any) -> dict[str, Any]:
    network = new_network(name)
    whole = whole_images(manifest[manifest["split"] == "train"])
    val = whole_images(manifest[manifest["split"] == "val"])
    execution = ExecutionParams(device="cpu", workers=0, threads=1)
    params = TrainingParams.model_validate(PARAMS.model_dump() | changes)
    train("net", network, lambda _epoch: whole, val, params, execution, seed=3)
    write_network(Path("net.safetensors"), network, {"backbone": name})
    return safetensors.torch.load(Path("net.safetensors").read_bytes())


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_parameter_learns_once_the_later_the_faster() -> None:
    network = new_network()
    params = PARAMS.model_copy(
        update={"optimizer": "adamw", "layer_decay": 0.5, "head_rate_factor": 8.0}
    )
    optimizer = create_optimizer(network, params, fused=False)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {id(value): name for name, value in network.named_parameters()}
    found = {
        names[id(value)]: (group["factor"], group["weight_decay"])
        for group in optimizer.param_groups
        for value in group["params"]
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    assert set(found) == set(names.values())
    assert found["head.weight"] == (8.0, params.weight_decay)
    assert found["head.bias"] == (8.0, 0.0)
    blocks = len(network.backbone.body.blocks)
    rates = [found[f"backbone.body.blocks.{n}.mlp.fc1.weight"][0] for n in range(blocks)]
    assert all(math.isclose(b, 2 * a) for a, b in pairwise(rates))
    assert found["backbone.body.patch_embed.proj.weight"][0] < rates[0]
    assert found["backbone.body.blocks.0.norm1.weight"][1] == 0.0
    assert found["backbone.body.blocks.0.mlp.fc1.weight"][1] == params.weight_decay


def test_the_papers_optimizer_is_as_it_was() -> None:
    optimizer = create_optimizer(new_network(), PARAMS, fused=False)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["factor"] for group in optimizer.param_groups] == [1.0, PARAMS.head_rate_factor]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {PARAMS.weight_decay}


def test_gradients_of_several_batches_make_one_step(photographs: pd.DataFrame) -> None:
    whole = trained(photographs, batch_size=4)
    finish("net")
    halves = trained(photographs, batch_size=2, accumulate=2)
    finish("net")
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, atol=1e-5, rtol=1e-4)
    thirds = trained(photographs, batch_size=2, accumulate=3)  # four batches: three and one
    assert not same(thirds, halves)


def test_a_cut_gradient_moves_weights_no_farther(photographs: pd.DataFrame) -> None:
    before = {name: value.clone() for name, value in new_network().state_dict().items()}
    after = trained(photographs, epochs=1, momentum=0.0, weight_decay=0.0, clip_norm=1e-3)
    moved = math.sqrt(sum(float((after[n] - v).square().sum()) for n, v in before.items()))
    steps = 2
    assert 0 < moved <= steps * PARAMS.rate * 1e-3 * 1.01


def test_the_average_is_the_literal_one() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    average = RunningAverage(network, 0.5)
    value = network.weight.item()
    for step, weight in enumerate((1.0, -2.0, 4.0, 8.0, 3.0, 5.0, 1.0, 2.0, 7.0, 4.0), start=1):
        with torch.no_grad():
            network.weight.fill_(weight)
        average.update()
        share = min(0.5, step / (step + 9))
        value = share * value + (1 - share) * weight
    with average.in_place():
        assert math.isclose(network.weight.item(), value, rel_tol=1e-5)
    assert network.weight.item() == 4.0


def test_the_average_is_kept_in_the_end_and_resumed(
    photographs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(photographs, "test_efficientnet")
    finish("net")
    averaged = trained(photographs, "test_efficientnet", average=0.9)
    finish("net")
    assert not same(plain, averaged)
    write = loop.write_checkpoint

    def interrupted(path: Path, content: Any) -> None:
        write(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(photographs, "test_efficientnet", average=0.9)
    monkeypatch.setattr(loop, "write_checkpoint", write)
    assert same(trained(photographs, "test_efficientnet", average=0.9), averaged)


def test_everything_at_once_on_a_transformer_and_convnext(photographs: pd.DataFrame) -> None:
    how = {"optimizer": "adamw", "layer_decay": 0.7, "drop_path": 0.2, "clip_norm": 1.0}
    more = {"accumulate": 2, "average": 0.9, "warmup_iterations": 1, "rate": 1e-3}
    for name in ("test_vit", "test_convnext"):
        found = trained(photographs, name, **how, **more)
        assert all(torch.isfinite(value).all() for value in found.values())
        finish("net")
        assert same(found, trained(photographs, name, **how, **more))
        finish("net")


def test_paths_are_left_out_in_training_alone() -> None:
    network = new_network()
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.eval()(images)
        drop_paths(network, 0.9, "net")
        assert torch.equal(network.eval()(images), expected)
        assert not torch.equal(network.train()(images), expected)
    with pytest.raises(OpamError, match=r"^net\.drop_path: vgg11 has no branches"):
        drop_paths(new_network("vgg11"), 0.1, "net")


def test_paths_that_are_not_there_are_told_before_anything_is_computed(tmp_path: Path) -> None:
    params = preset("defaults")
    params["backbone"] = {"name": "vgg11", "weights": "none"}
    params["training"]["drop_path"] = 0.1
    params["baselines"] = {}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    with pytest.raises(OpamError, match=r"filternet\.drop_path: vgg11 has no branches"):
        check_networks(check(path), path)
