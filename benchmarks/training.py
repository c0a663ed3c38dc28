"""Training: the speed of the input pipeline over that on a batch kept in memory.

Measured on the run in ``data/``, for whole photographs and for patches, each as ClassNet's
training shows them; and which share that is of what the device gives in multiplying two large
matrices.
"""

import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from opam.engine.crops.batches import TrainingCrops
from opam.engine.training.freezing import freeze_batch_norm
from opam.engine.training.loop import _batches
from opam.engine.training.objectives import cam_losses
from opam.engine.training.params import PatchNetworkParams
from opam.engine.training.samples import samples, whole_images
from opam.evaluation.cost import gflops
from opam.networks.cam_network import read_network
from opam.pipeline.artifacts import read_table
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.params import read_params

DATA = Path("data")
STEPS = 12
ROUNDS = 3
"""The two are measured in turn, so often; each one's fastest counts."""


def matrix_peak(device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product, in training's precision."""
    side = 8192 if device.type == "cuda" else 2048
    with autocast(device), torch.no_grad():
        left, right = torch.randn(2, side, side, device=device)
        found = []
        for _ in range(10):
            started = time.perf_counter()
            (left @ right)[0, 0].item()  # waits for the device
            found.append(2 * side**3 / (time.perf_counter() - started))
    return max(found)


def measure() -> list[dict[str, object]]:
    """A row for whole photographs and one for patches."""
    if not (DATA / "models/classnet.safetensors").exists():
        needed = "not measured: wants `dvc repro train_classnet`"
        return [{"what": "training", "value": needed, "ratio": ""}]
    params = read_params("classnet", PatchNetworkParams)
    execution = read_params("execution", ExecutionParams)
    device = prepare_device(execution)
    network, _ = read_network(DATA / "models/classnet.safetensors")
    network.to(device)
    network.to(memory_format=cast(Any, torch.channels_last))
    network.train()
    freeze_batch_norm(network)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-6, momentum=0.9, fused=device.type == "cuda"
    )

    def step(batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        with autocast(device):
            loss, _ = cam_losses(network, *batch, params)
        loss.backward()  # type: ignore[no-untyped-call]
        loss.item()  # as in training: waits for the device
        optimizer.step()
        optimizer.zero_grad()

    def seconds(batches: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> float:
        step(next(batches))
        started = time.perf_counter()
        for batch in itertools.islice(batches, STEPS):
            step(batch)
        return time.perf_counter() - started

    manifest = read_table(DATA / "manifest.parquet", "manifest")
    train = manifest[manifest["split"] == "train"]
    kept = samples(read_table(DATA / "kept_patches.parquet", "kept_patches"), manifest)
    rows: list[dict[str, object]] = []
    size, peak = params.batch_size, matrix_peak(device)
    for what, table in (("whole photographs", whole_images(train)), ("patches", kept)):
        order = np.random.default_rng(0).permutation(size * (STEPS + 1)) % len(table)
        crops = TrainingCrops(
            pd.DataFrame(table.iloc[order]), params.input_size, params.resize, (0, 0)
        )
        ready = next(_batches(crops, size, execution.model_copy(update={"workers": 0}), device))
        fresh, kept_in_memory = [], []
        for _ in range(ROUNDS):
            fresh.append(seconds(_batches(crops, size, execution, device)))
            kept_in_memory.append(seconds(itertools.repeat(ready)))
        # Backward costs twice forward; torch's counter takes its depthwise layers for dense ones.
        flops = 3e9 * gflops(partial(network, ready[0])) / size
        rate, bare = (STEPS * size / min(each) for each in (fresh, kept_in_memory))
        rows.append(
            {
                "what": f"training on {what}, {params.input_size} pixels, batch {size}: the input "
                "pipeline; a batch kept in memory",
                "value": f"{rate:.1f} photographs a second; {bare:.1f}",
                "ratio": round(rate / bare, 3),
                "goal": 0.97,
            }
        )
        rows.append(
            {
                "what": "the same: share of the device's rate in multiplying large matrices",
                "value": f"{flops / 1e9:.1f} GFLOPs each",
                "ratio": round(rate * flops / peak, 3),
            }
        )
    return rows
