"""What a GPU must do as well as a CPU; skipped where there is none."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from opam.engine.crops.batches import CropBatches
from opam.engine.crops.on_device import on_device
from opam.engine.scoring import score_crops, score_crops_shared
from opam.engine.training.loop import train
from opam.engine.training.params import TrainingParams
from opam.engine.training.samples import whole_images
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.cam_network import CamNetwork, read_network, roots, write_network
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.resume import finish

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BACKBONE = BackboneParams(name="mobilenetv3_small_050", weights="none")
PARAMS = TrainingParams(
    epochs=3, batch_size=4, input_size=32, resize=36, rate=0.01, schedule="cosine"
)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def new_network() -> CamNetwork:
    torch.manual_seed(0)
    return CamNetwork(create_backbone(BACKBONE), classes=2)


def trained(photographs: pd.DataFrame, execution: ExecutionParams) -> tuple[CamNetwork, list]:
    network = new_network()
    whole = whole_images(photographs[photographs["split"] == "train"])
    val = whole_images(photographs[photographs["split"] == "val"])
    history = train("net", network, lambda _epoch: whole, val, PARAMS, execution, seed=3).history
    finish("net")
    return network, history


def test_training_learns_and_its_weights_are_read_on_the_cpu(photographs: pd.DataFrame) -> None:
    network, history = trained(photographs, ExecutionParams(device="cuda", workers=2))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    write_network(Path("net.safetensors"), network, {"backbone": BACKBONE.name})
    again, _ = read_network(Path("net.safetensors"))
    for name, value in again.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, network.state_dict()[name].cpu())


def test_deterministic_trainings_end_with_the_same_weights(photographs: pd.DataFrame) -> None:
    execution = ExecutionParams(device="cuda", workers=2, deterministic=True)
    try:
        states = [trained(photographs, execution)[0].state_dict() for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


@pytest.mark.parametrize("scorer", ["exact", "shared"])
def test_scores_are_those_of_the_cpu_but_for_rounding(
    photographs: pd.DataFrame, scorer: str
) -> None:
    network = new_network().eval()
    whole = whole_images(photographs)[BOX].to_numpy()
    boxes = [np.array([box, [5, 5, 40, 50]]) for box in whole]
    found = {}
    for device in ("cpu", "cuda"):
        execution = ExecutionParams(device=device, workers=0, batch_size=8)
        paths = photographs["path"].tolist()
        if scorer == "exact":
            batches = CropBatches(paths, boxes, 32, 8, fraction=0.9)
            scores = score_crops(network, batches, execution, "scoring")
        else:
            scores = score_crops_shared(network, paths, boxes, 32, execution, "scoring")
        found[device] = np.concatenate(list(scores))[:, 0, 0]
        assert found[device].dtype == np.float32
    # Untrained, the network hardly tells crops apart: what it does tell must be the same.
    assert np.abs(found["cuda"] - found["cpu"]).max() < 0.02
    assert np.corrcoef(found["cuda"], found["cpu"])[0, 1] > 0.9


def test_features_of_probes_are_those_of_the_cpu_but_for_rounding(
    photographs: pd.DataFrame,
) -> None:
    boxes = list(whole_images(photographs)[BOX].to_numpy()[:, None])
    crops = CropBatches(photographs["path"].tolist(), boxes, 64, len(boxes))[0]
    backbone = new_network().backbone.eval()
    found = []
    for device in ("cpu", "cuda"):
        on = prepare_device(ExecutionParams(device=device))
        with torch.inference_mode(), autocast(on):
            means = backbone.to(on).feature_maps(crops.to(on), None).mean((2, 3))
            found.append(roots(means).float().cpu().numpy())
    assert found[0].std() > 0
    # The root of a mean near zero makes much of little: so on the whole, not one by one.
    assert np.abs(found[1] - found[0]).mean() < 0.05 * np.abs(found[0]).mean()


def test_crops_cut_on_it_are_those_of_the_cpu(photographs: pd.DataFrame) -> None:
    manifest = photographs.assign(
        sha256=[hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in photographs["path"]]
    )
    read = Photographs(manifest, 0.0)
    there = on_device(read, torch.device("cuda"), 1.0)
    assert there is not None
    boxes = [np.array([[0, 0, 80, 60], [5, 5, 40, 50]])] * len(manifest)
    batches = CropBatches(manifest["path"].tolist(), boxes, 32, 8, [False, True], read=read)
    for number in range(len(batches)):
        found = there.cut([*batches.shown(number, there.sizes.__getitem__)], 32)
        assert found.device.type == "cuda"
        assert (found.cpu().int() - batches[number].int()).abs().float().mean() < 0.6
