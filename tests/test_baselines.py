"""The other systems in the pipeline: built by name, trained, written and read."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from opam.app.check_params import check
from opam.engine.crops.batches import CropBatches
from opam.engine.scoring import predict
from opam.engine.training.loop import train
from opam.engine.training.params import TrainingParams
from opam.engine.training.samples import whole_images
from opam.evaluation.cost import gflops
from opam.evaluation.metrics import pointing_accuracy
from opam.networks.backbones.backbone import Backbone
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.resume import finish
from opam.systems.baselines import SYSTEM_OBJECTIVE
from opam.systems.systems import (
    SYSTEMS,
    create_system,
    method_params,
    read_system,
    write_system,
)

ROOT = Path(__file__).parents[1]
SMALL = "mobilenetv3_small_050"
METHODS = {"bcnn": {"channels": 16}}
TRAINING = TrainingParams(
    epochs=2, batch_size=4, input_size=64, resize=72, rate=0.001, schedule="cosine"
)
EXECUTION = ExecutionParams(device="cpu", workers=0, batch_size=5)


def small(system: str) -> torch.nn.Module:
    torch.manual_seed(0)
    method = method_params(system).model_validate(METHODS.get(system, {}))
    return create_system(system, Backbone(SMALL), 2, method)


def run_training(system: str, photographs: pd.DataFrame) -> dict[str, torch.Tensor]:
    network = small(system)
    training = whole_images(photographs[photographs["split"] == "train"])
    val = whole_images(photographs[photographs["split"] == "val"])
    train("net", network, lambda _e: training, val, TRAINING, EXECUTION, 0, SYSTEM_OBJECTIVE)
    return network.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_trains_and_comes_back(
    system: str, photographs: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = run_training(system, photographs)
    before = small(system).state_dict()
    assert any(not torch.equal(state[name], before[name]) for name in state)
    finish("net")
    again = run_training(system, photographs)
    assert all(torch.equal(state[name], again[name]) for name in state)

    network = small(system)
    network.load_state_dict(state)
    settings = {"system": system, "backbone": SMALL, "classes": 2}
    settings |= {"method": METHODS.get(system, {}), "input_size": 64, "resize": 72}
    write_system(tmp_path / "a.safetensors", network, settings)
    back, found = read_system(tmp_path / "a.safetensors")
    assert found == settings
    paths = photographs["path"].tolist()
    boxes = [np.array([[0.0, 0.0, 80.0, 60.0]])] * len(paths)
    batches = CropBatches(paths, boxes, 64, EXECUTION.batch_size)
    first = list(predict(network.eval(), batches, EXECUTION, "first"))
    second = list(predict(back, batches, EXECUTION, "second"))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    both = list(predict(back, batches, EXECUTION, "both", mirrored=True))
    for (one, regions), (mean, same) in zip(first, both, strict=True):
        assert abs(one - mean).max() > 0
        np.testing.assert_array_equal(regions, same)
    probabilities = np.concatenate([one for one, _ in first])
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    regions = np.concatenate([one for _, one in first])
    assert regions.shape[0] == len(paths)
    assert (regions >= 0).all()
    assert (regions <= 1).all()
    assert (regions[..., 2:] > regions[..., :2]).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_groups_hold_every_parameter_once(system: str) -> None:
    network = small(system)
    grouped = [value for group in network.parameter_groups().values() for value in group]  # type: ignore[operator]
    assert {id(value) for value in grouped} == {id(value) for value in network.parameters()}
    assert len(grouped) == len({id(value) for value in grouped})


def test_gflops_are_those_of_the_layers() -> None:
    layer = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)
    images = torch.zeros(1, 3, 16, 16)
    assert gflops(lambda: layer(images)) == pytest.approx(2 * 16 * 16 * 3 * 5 * 9 / 1e9)


def test_pointing_is_the_centre_inside_the_true_box() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [90, 90, 100, 100]], dtype=float)
    truth = np.array([[4, 4, 6, 6], [6, 0, 9, 9], [0, 0, 100, 100]], dtype=float)
    assert pointing_accuracy(boxes, truth) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"system": "vgg"}, r"baselines\.bcnn\.system"),
        ({"method": {"chanels": 3}}, r"baselines\.bcnn\.method\.chanels"),
        ({"training": {"epochs": -1}}, r"baselines\.bcnn\.training\.epochs"),
        ({"training": {"epochs": 0}}, r"baselines\.bcnn: training\.epochs is 0"),
        ({"other": 1}, r"baselines\.bcnn\.other"),
        ({"system": "finetune", "method": {}}, r"baselines\.bcnn.*step of bcnn, not of finetune"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, change: dict, named: str) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["baselines"]["bcnn"] |= change
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(OpamError, match=named):
        check(tmp_path / "params.yaml")


def test_a_file_that_is_no_system_is_told(tmp_path: Path) -> None:
    with pytest.raises(OpamError, match="not found"):
        read_system(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(OpamError, match="not a system of this project"):
        read_system(tmp_path / "torn.safetensors")
