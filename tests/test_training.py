import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from opam.engine.training import loop as training
from opam.engine.training.loop import evaluate, train
from opam.engine.training.objectives import CAM_OBJECTIVE, head_weights, hits, loss_over_heads
from opam.engine.training.params import TrainingParams, rate_factor
from opam.engine.training.samples import epoch_order, samples, whole_images
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.cam_network import CamNetwork, write_network
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.resume import finish

PARAMS = TrainingParams(
    epochs=3, batch_size=4, input_size=32, resize=36, rate=0.01, schedule="cosine"
)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_training(
    manifest: pd.DataFrame,
    workers: int = 0,
    params: TrainingParams = PARAMS,
    compiled: bool = False,
) -> bytes:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneParams(name="mobilenetv3_small_050", weights="none"))
    network = CamNetwork(backbone, classes=2)
    whole = whole_images(manifest[manifest["split"] == "train"])
    val = whole_images(manifest[manifest["split"] == "val"])
    execution = ExecutionParams(device="cpu", workers=workers, compile=compiled)
    trained = train("net", network, lambda _epoch: whole, val, params, execution, seed=3)
    assert len(trained.history) == params.epochs
    write_network(Path("net.safetensors"), network, {"backbone": "mobilenetv3_small_050"})
    return Path("net.safetensors").read_bytes()


def test_same_bytes_again_and_with_any_number_of_workers(photographs: pd.DataFrame) -> None:
    weights = []
    for workers in (0, 0, 1, 2):
        weights.append(run_training(photographs, workers))
        finish("net")
    assert len(set(weights)) == 1


def test_another_seed_or_rate_gives_other_bytes(photographs: pd.DataFrame) -> None:
    first = run_training(photographs)
    finish("net")
    assert run_training(photographs, params=PARAMS.model_copy(update={"rate": 0.02})) != first


def test_resumes_behind_the_last_epoch_and_ends_with_the_same_bytes(
    photographs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = run_training(photographs)
    finish("net")
    write = training.write_checkpoint
    monkeypatch.setattr(training, "write_checkpoint", interrupt_after(write, 2))
    with pytest.raises(KeyboardInterrupt):
        run_training(photographs)
    monkeypatch.setattr(training, "write_checkpoint", write)
    capsys.readouterr()
    assert run_training(photographs) == undisturbed
    shown = capsys.readouterr().err
    assert "resumed behind epoch 2" in shown
    assert "epoch 3/3" in shown
    assert "epoch 2/3" not in shown
    curve = pd.read_csv("data/curves/net/plots/metrics/val_accuracy.tsv", sep="\t")
    assert len(curve) == 3


def interrupt_after(write: object, count: int) -> object:
    calls = []

    def interrupted(path: Path, content: dict[str, object]) -> None:
        write(path, content)  # type: ignore[operator]
        calls.append(path)
        if len(calls) == count:
            raise KeyboardInterrupt

    return interrupted


def test_a_checkpoint_of_other_params_is_not_resumed(
    photographs: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    run_training(photographs)
    capsys.readouterr()
    run_training(photographs, params=PARAMS.model_copy(update={"momentum": 0.8}))
    assert "resumed" not in capsys.readouterr().err


def test_a_damaged_checkpoint_costs_time_only(
    photographs: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_training(photographs)
    Path(".resume/net.pt").write_bytes(b"torn")
    assert run_training(photographs) == first
    assert "training starts anew" in capsys.readouterr().err


def test_an_exploding_loss_names_the_rate(photographs: pd.DataFrame) -> None:
    params = PARAMS.model_copy(update={"rate": 1e30, "head_rate_factor": 1e8})
    with pytest.raises(OpamError, match=r"net\.rate: .* infinite in epoch [12]; lower it"):
        run_training(photographs, params=params)


def test_learns_to_tell_red_from_green(photographs: pd.DataFrame) -> None:
    params = PARAMS.model_copy(update={"epochs": 12, "rate": 0.05})
    torch.manual_seed(0)
    backbone = create_backbone(BackboneParams(weights="package"))
    network = CamNetwork(backbone, classes=2)
    whole = whole_images(photographs[photographs["split"] == "train"])
    val = whole_images(photographs[photographs["split"] == "val"])
    execution = ExecutionParams(device="cpu", workers=0)
    trained = train("net", network, lambda _epoch: whole, val, params, execution, seed=0)
    assert max(row["val_accuracy"] for row in trained.history) == 1.0
    last = trained.history[-1]
    found = evaluate(network, val, params, execution, torch.device("cpu"), CAM_OBJECTIVE.validation)
    assert found == (last["val_loss"], last["val_accuracy"])


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_keeps_its_statistics(photographs: pd.DataFrame, frozen: bool) -> None:
    params = PARAMS.model_copy(update={"frozen_batch_norm": frozen})
    state = safetensors.torch.load(run_training(photographs, params=params))
    statistics = [value for name, value in state.items() if name.endswith("running_mean")]
    assert len(statistics) > 10
    assert all(not value.any() for value in statistics) == frozen  # a new network's are zero


def test_layers_frozen_until_a_module_stay_as_they_are(photographs: pd.DataFrame) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneParams(name="mobilenetv3_small_050", weights="none"))
    before = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    params = PARAMS.model_copy(update={"frozen_until": "blocks.2"})
    after = safetensors.torch.load(run_training(photographs, params=params))
    frozen = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.", "blocks.2.")
    behind = ("blocks.3.", "blocks.4.", "blocks.5.")
    for name, value in before.items():
        same = torch.equal(value, after[f"backbone.body.{name}"])
        if name.startswith(frozen):
            assert same, name
        elif name.startswith(behind):
            assert not same, name


def test_nothing_can_be_frozen_until_a_module_that_is_not_there(photographs: pd.DataFrame) -> None:
    params = PARAMS.model_copy(update={"frozen_until": "blocks.20"})
    with pytest.raises(OpamError, match=r"^net\.frozen_until: the backbone has no 'blocks\.20'"):
        run_training(photographs, params=params)


def test_step_schedule_is_the_papers() -> None:
    params = TrainingParams(epochs=1)
    factors = [rate_factor(iteration, 100_000, params) for iteration in (0, 24_999, 25_000, 50_000)]
    np.testing.assert_allclose(factors, [1, 1, 0.1, 0.01])


def test_cosine_schedule_warms_up_and_ends_near_zero() -> None:
    params = TrainingParams(epochs=1, schedule="cosine", warmup_iterations=4)
    factors = [rate_factor(iteration, 24, params) for iteration in range(24)]
    np.testing.assert_allclose(factors[:5], [0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(factors[14], 0.5)
    assert factors[-1] < 0.01


def test_loss_over_heads_is_the_literal_sum() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, 4, generator=rng)
    labels = torch.tensor([0, 1, 2, 3, 1])
    heads = torch.tensor([0, 2, -1, 1, -1])
    smoothing = 0.1
    total = 0.0
    for crop in range(5):
        losses = []
        for head in range(3):
            log_p = logits[crop, head] - torch.logsumexp(logits[crop, head], 0)
            target = torch.full((4,), smoothing / 4)
            target[labels[crop]] += 1 - smoothing
            losses.append(-(target * log_p).sum().item())
        total += np.mean(losses) if heads[crop] < 0 else losses[heads[crop]]
    assert loss_over_heads(logits, labels, heads, smoothing).item() == pytest.approx(total / 5)


def test_hits_use_a_crops_own_head_or_the_mean_of_all() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]).repeat(3, 1, 1)
    heads = torch.tensor([0, 1, -1])
    assert hits(logits, torch.tensor([0, 1, 0]), heads).tolist() == [True, True, True]
    assert hits(logits, torch.tensor([1, 0, 1]), heads).tolist() == [False, False, False]
    assert head_weights(heads, 2).tolist() == [[1, 0], [0, 1], [0.5, 0.5]]


def test_samples_take_path_and_label_of_the_photograph(photographs: pd.DataFrame) -> None:
    boxes = pd.DataFrame(
        {"image_id": ["01.png", "00.png"], "x0": 1, "y0": 2, "x1": [30, 40], "y1": 50}
    )
    table = samples(boxes, photographs)
    assert table["label"].tolist() == [1, 0]
    assert [os.path.basename(path) for path in table["path"]] == ["01.png", "00.png"]
    assert table["x1"].tolist() == [30, 40]
    assert (table["head"] == -1).all()


@pytest.mark.parametrize(
    ("training_mode", "parameter"), [(True, r"net\.batch_size"), (False, r"execution\.batch_size")]
)
def test_a_full_gpu_names_the_parameter_to_lower(
    photographs: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    training_mode: bool,
    parameter: str,
) -> None:
    forward = CamNetwork.forward

    def full(network: CamNetwork, images: torch.Tensor) -> torch.Tensor:
        if network.training == training_mode:
            raise torch.cuda.OutOfMemoryError("full")
        return forward(network, images)

    monkeypatch.setattr(CamNetwork, "forward", full)
    with pytest.raises(OpamError, match=rf"{parameter}: .* do not fit the GPU's memory; lower it"):
        run_training(photographs)


class OneConvolution(torch.nn.Module):
    """Stands for a backbone where one must be compiled: that takes time for every operation."""

    channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, self.channels, 5, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images.float() / 255).relu()


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_training_ends_nearby(
    photographs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_in_place = torch.nn.Module.compile
    compiled = []

    def noted(module: torch.nn.Module) -> None:
        compiled.append(module)
        compile_in_place(module)

    monkeypatch.setattr(torch.nn.Module, "compile", noted)
    monkeypatch.setattr("test_training.create_backbone", lambda _params: OneConvolution())
    plain = safetensors.torch.load(run_training(photographs))
    assert not compiled
    finish("net")
    other = safetensors.torch.load(run_training(photographs, compiled=True))
    assert len(compiled) == 1
    assert other.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_compiled_names_the_parameter(
    photographs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr("test_training.create_backbone", lambda _params: OneConvolution())
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(OpamError, match=r"execution\.compile: .*compiler.*; set false"):
        run_training(photographs, compiled=True)
    torch._dynamo.reset()


def test_an_epoch_shows_each_class_as_often_where_it_is_balanced() -> None:
    labels = np.repeat([0, 3], [500, 5])
    orders = [epoch_order(labels, True, 0, epoch) for epoch in range(6)]
    for order in orders:
        assert sorted(np.bincount(labels[order], minlength=4)) == [0, 0, 252, 253]
        small = np.bincount(order, minlength=505)[500:]
        assert small.max() - small.min() <= 1
        assert np.bincount(order, minlength=505)[:500].max() == 1  # of a large class, none twice
    assert len(set(np.concatenate(orders))) > 490  # and all in some epochs
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[1], epoch_order(labels, True, 0, 1))
    first_small = np.flatnonzero(labels[orders[0]] == 3)
    assert np.ptp(first_small) > 400  # classes are mixed
    assert sorted(epoch_order(labels, False, 0, 0)) == list(range(505))


def test_training_can_be_balanced(photographs: pd.DataFrame) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneParams(name="mobilenetv3_small_050", weights="none"))
    network = CamNetwork(backbone, classes=2)
    whole = whole_images(photographs)
    few = whole[(whole["label"] == 0) | (whole.index == 1)]  # six of one class, one of the other
    seen: list[int] = []

    def record(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.extend(given[2].tolist())
        return CAM_OBJECTIVE.training(*given)

    params = PARAMS.model_copy(update={"balanced": True, "epochs": 1})
    how = params, ExecutionParams(workers=0), 0, replace(CAM_OBJECTIVE, training=record)
    train("net", network, lambda _epoch: few, few[:0], *how)
    assert sorted(np.bincount(seen)) == [3, 4]
