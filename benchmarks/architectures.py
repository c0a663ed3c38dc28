"""Larger backbones: their presets end to end, with random weights, and what whole runs would take.

Run: ``python benchmarks/bench.py architectures``. Each preset runs up to its figures on a few drawn
birds, an epoch a network: that it does is what counts, for accuracy says nothing of random weights.
Of each architecture crops a second are measured, in training and in looking; from these a row says
what the preset takes on 600 photographs for training and 515 for test, as in twenty classes of
CUB-200-2011. Other systems are left out.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from project import ROOT, copy_project, params_of, run_stages, seconds

from opam.engine.training.freezing import freeze_batch_norm
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.cam_network import CamNetwork
from opam.pipeline.artifacts import read_json
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.params import NETWORKS

PRESETS = ("dinov2-small", "convnext-tiny", "swin-base-384")
BIRDS = {"name": "synthetic_birds", "synthetic_birds": {"train_per_class": 3, "test_per_class": 1}}
TRAINING, EVERY = 600, 1115
"""Photographs of what a row of the table is about."""
ROUNDS = 3


def rate(work: Callable[[], Any], count: int, device: torch.device) -> float:
    """``count`` over the seconds that ``work`` takes, the fastest of several."""

    def done() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    done()
    return count / min(seconds(done) for _ in range(ROUNDS))


def rates(name: str, size: int, batch: int, device: torch.device) -> tuple[float, float]:
    """Crops a second that a backbone under a linear layer is trained with, and looks at."""
    network = CamNetwork(create_backbone(BackboneParams(name=name, weights="none")), classes=200)
    network.to(device).to(memory_format=cast(Any, torch.channels_last))
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, fused=device.type == "cuda")

    def step() -> None:
        with autocast(device):
            loss = network(images).float().logsumexp(2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def look() -> None:
        with torch.inference_mode(), autocast(device):
            network(images)

    freeze_batch_norm(network.train())
    trained = rate(step, batch, device)
    network.eval()
    return trained, rate(look, batch, device)


def crops_of(params: dict[str, Any], training: int, every: int) -> tuple[int, int]:
    """Crops that a run trains on, and that it looks at, all networks together.

    Args:
        params: all parameters; scoring is exact.
        training: photographs for training.
        every: all photographs.
    """
    parts = params["parts"]["n_parts"]
    seen = {
        "filternet": 1,
        "classnet": 1 + params["classnet"]["patches_per_image"],
        "objectnet": 2,
        "partnet": 2 + parts,
    }
    epochs = {name: params[name].get("epochs") or params["training"]["epochs"] for name in seen}
    trained = training * sum(epochs[name] * crops for name, crops in seen.items())
    boxes = 2 + parts  # the photograph, the object, the parts
    looked = training * (params["proposals"]["max_boxes"] + boxes * (2 + params["probes"]["views"]))
    # Ten crops, two of co-localization, neurons of parts, scores of networks and of probes.
    return trained, looked + every * (10 + 2 + parts + boxes * (1 + params["mirrored"]) + boxes)


def ran_through(preset: str, shared: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The preset's parameters, and the seconds of its stages on a few birds."""
    asked = params_of(preset, shared, 0)
    birds = {**asked["dataset"], **BIRDS, "path": "data/photographs"}
    few = {
        **{name: {**asked[name], "epochs": 1} for name in NETWORKS},
        "dataset": birds,
        "backbone": {**asked["backbone"], "weights": "none"},
        "proposals": {**asked["proposals"], "max_boxes": 4},
        "training": {**asked["training"], "batch_size": 4},  # a GPU's would not fit every machine
        "probes": {**asked["probes"], "views": 0},
        "execution": {**asked["execution"], "batch_size": 8},
        "baselines": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_project(Path(temporary) / "project", {**asked, **few})
        took = sum(run_stages(folder, {**asked, **few}).values())
        assert read_json(folder / "data/metrics.json")["images"] == 8
    return asked, took


def measure() -> list[dict[str, object]]:
    """Three rows an architecture."""
    shared = yaml.safe_load((ROOT / "params.yaml").read_text())
    device = prepare_device(ExecutionParams.model_validate(shared["execution"]))
    rows: list[dict[str, object]] = []
    for preset in PRESETS:
        params, took = ran_through(preset, shared)
        name, size = params["backbone"]["name"], params["training"]["input_size"]
        trained, looked = rates(name, size, 32 if device.type == "cuda" else 4, device)
        crops = crops_of(params, TRAINING, EVERY)
        hours = (crops[0] / trained + crops[1] / looked) / 3600
        for what, value in {
            "32 drawn birds, an epoch a network, random weights: ran through": f"{took:.0f} s",
            f"{size} pixels: trained; looked at": f"{trained:.2f}; {looked:.2f} crops a second",
            f"so {TRAINING} photographs for training, {EVERY} in all, would take": f"{hours:.1f} h",
        }.items():
            rows.append({"what": f"{preset}, {what}", "value": value, "ratio": ""})
    return rows
