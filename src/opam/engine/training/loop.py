"""Training on crops: the loop that all networks of the pipeline share."""

import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from opam.engine.crops.ahead import load_ahead
from opam.engine.crops.batches import TrainingCrops
from opam.engine.crops.cutting import Read
from opam.engine.crops.on_device import OnDevice, on_device
from opam.engine.training.freezing import backbones_of, freeze_batch_norm, freeze_until
from opam.engine.training.objectives import CAM_OBJECTIVE, Losses, Objective
from opam.engine.training.optimizer import RunningAverage, create_optimizer
from opam.engine.training.params import TrainingParams, rate_factor
from opam.engine.training.samples import epoch_order
from opam.networks.backbones.backbone import drop_paths, fold_batch_norm
from opam.networks.backbones.weights import state_digest
from opam.photographs.decoding.archive import archive_of
from opam.photographs.decoding.images import read_image
from opam.pipeline.artifacts import write_json
from opam.pipeline.checkpoints import read_checkpoint, write_checkpoint
from opam.pipeline.curves import CURVES, TIME, live_curves
from opam.pipeline.device import ExecutionParams, autocast, fits_memory, prepare_device
from opam.pipeline.distributed import (
    added_up,
    even_out_statistics,
    join,
    launch,
    shared_out,
)
from opam.pipeline.errors import OpamError
from opam.pipeline.libraries import without_compiler
from opam.pipeline.progress import progress
from opam.pipeline.ranks import processes, rank
from opam.pipeline.resume import RESUME, Fingerprint, fingerprint

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Images, labels, heads."""


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        history: losses and accuracies of each epoch.
        seconds: that all epochs took, those before an interruption too.
    """

    history: list[dict[str, float]]
    seconds: float


def network_settings(backbone: str, params: TrainingParams) -> dict[str, Any]:
    """What travels with a network's weights: how to build it and what to show it."""
    return {"backbone": backbone, "input_size": params.input_size, "resize": params.resize}


def train(
    name: str,
    network: torch.nn.Module,
    epoch_samples: Callable[[int], pd.DataFrame],
    val_samples: pd.DataFrame,
    params: TrainingParams,
    execution: ExecutionParams,
    seed: int,
    objective: Objective = CAM_OBJECTIVE,
    curves: Path | None = None,
    read: Read = read_image,
) -> Trained:
    """Train ``network`` in place; it is left as the last epoch made it.

    An epoch chosen by its accuracy on val would be chosen by chance where val is small, and val's
    probabilities, on which fusion is chosen, would flatter it.

    Curves and `TIME` are written. After each epoch a checkpoint goes to ``.resume/``; a training
    that was interrupted goes on from it if network, samples and params are the same, and ends
    with the same bytes. With more than one of ``execution.devices`` or ``nodes`` the script starts
    again in as many processes; only the first of them writes.

    Args:
        name: of the parameters that ``params`` are; names checkpoint and curves, too.
        network: its ``parameter_groups()`` are "backbone" and "head".
        epoch_samples: sample table of an epoch, 0-based.
        val_samples: sample table that each epoch is measured on; it may be empty.
        params: schedule, sizes and rates.
        execution: device, threads, workers.
        seed: of order and augmentation.
        objective: losses in training and on val.
        curves: folder of the curves; ``data/curves/NAME`` when not given.
        read: gives the photographs.

    Raises:
        OpamError: the loss is not finite, or the GPU's memory does not suffice.
    """
    launch(execution)
    device = prepare_device(execution)
    join(device)
    drop_paths(network, params.drop_path, name)
    network.to(device)
    network.to(memory_format=cast(Any, torch.channels_last))
    if execution.compile:
        for backbone in backbones_of(network):
            backbone.compile()
    else:
        fold_batch_norm(network)
    frozen = freeze_until(network, params.frozen_until, name)
    optimizer = create_optimizer(network, params, fused=device.type == "cuda")
    average = RunningAverage(network, params.average) if params.average else None
    first = epoch_samples(0)
    inputs = _inputs(network, first, val_samples, params, seed)

    checkpoint = RESUME / f"{name}.pt"
    history: list[dict[str, float]] = []
    seconds = 0.0
    if saved := read_checkpoint(checkpoint, inputs):
        network.load_state_dict(saved["network"])
        with without_compiler():
            optimizer.load_state_dict(saved["optimizer"])
        if average:
            average.resume(saved["average"])
        history, seconds = saved["history"], saved["seconds"]
        _say(f"{name}: resumed behind epoch {len(history)}")

    step = shared_out(_Step(network, objective, params))
    steps = math.ceil(len(first) / params.batch_size)
    curves = curves or CURVES / name
    with live_curves(name, curves, history, execution.trackers) as log:
        for epoch in range(len(history), params.epochs):
            started = time.monotonic()
            torch.manual_seed(seed * 100_003 + epoch + 10_007 * rank())
            table = epoch_samples(epoch)
            order = epoch_order(table["label"].to_numpy(), params.balanced, seed, epoch)
            crops = TrainingCrops(
                *(table.iloc[order], params.input_size, params.resize),
                *((seed, epoch), params.min_area, read),
            )
            network.train()
            frozen.eval()
            if params.frozen_batch_norm:
                freeze_batch_norm(network)
            batches = _batches(crops, params.batch_size, execution, device)
            shown = progress(batches, steps, f"{name} epoch {epoch + 1}/{params.epochs}", "batches")
            row = _epoch(name, step, optimizer, average, shown, epoch, len(table), params)
            even_out_statistics(network)
            if len(val_samples):
                how = params, execution, device, objective.validation, read
                with average.in_place() if average else nullcontext():
                    row["val_loss"], row["val_accuracy"] = evaluate(network, val_samples, *how)
            history.append(row)
            log(row)
            seconds += time.monotonic() - started
            _say(f"{name}: " + _line(epoch, row))
            with without_compiler():
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            done = {"inputs": inputs, "history": history, "seconds": seconds}
            if average:
                done["average"] = average.state()
            write_checkpoint(checkpoint, state | done)
    if average:
        average.write(average.values)
    write_json(curves / TIME, {"training_seconds": seconds})
    return Trained(history, seconds)


def _epoch(
    name: str,
    step: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: RunningAverage | None,
    batches: Iterable[Batch],
    epoch: int,
    count: int,
    params: TrainingParams,
) -> dict[str, float]:
    """A pass over ``count`` crops in ``batches``; the ``epoch`` is counted from 0.

    Returns:
        Mean loss and accuracy (0..1) in training.

    Raises:
        OpamError: the loss is not finite, or the GPU's memory does not suffice.
    """
    # On the device until the epoch ends: to ask for a figure is to wait for it.
    total: Any = 0.0
    correct: Any = 0
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    last = math.ceil(count / params.batch_size) - 1
    steps = last // params.accumulate + 1
    for batch, crops in enumerate(batches):
        images, labels, heads = crops
        number = batch // params.accumulate
        factor = rate_factor(epoch * steps + number, params.epochs * steps, params)
        # The last step of an epoch may be of fewer batches.
        together = min(params.accumulate, last + 1 - number * params.accumulate)
        for group in optimizer.param_groups:
            group["lr"] = params.rate * group["factor"] * factor
        size = min(params.batch_size, count - batch * params.batch_size)
        share = len(labels) / size
        if not share:  # of the last batch; the others wait for gradients
            images, labels, heads = (each.new_zeros(1, *each.shape[1:]) for each in crops)
        with fits_memory(f"{name}.batch_size", params.batch_size, params.input_size):
            with autocast(images.device):
                loss, hit = step(images, labels, heads)
            (loss * (share * processes() / together)).backward()
        if (batch + 1) % params.accumulate == 0 or batch == last:
            if params.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, params.clip_norm)
            with without_compiler():
                optimizer.step()
                optimizer.zero_grad()
            if average:
                average.update()
        if share:
            total += loss.detach().double() * len(labels)
            correct += hit.sum()
    total, correct = added_up(float(total), float(correct), device=images.device)
    if not math.isfinite(total):
        raise OpamError(
            f"{name}.rate: {params.rate} made the loss infinite in epoch {epoch + 1}; "
            f"lower it, or {name}.head_rate_factor"
        )
    return {"train_loss": total / count, "train_accuracy": correct / count}


@torch.no_grad()
def evaluate(
    network: torch.nn.Module,
    table: pd.DataFrame,
    params: TrainingParams,
    execution: ExecutionParams,
    device: torch.device,
    losses: Losses,
    read: Read = read_image,
) -> tuple[float, float]:
    """Mean loss and accuracy (0..1) of centred crops."""
    network.eval()
    crops = TrainingCrops(table, params.input_size, params.resize, None, read=read)
    plain = params.model_copy(update={"label_smoothing": 0.0})
    # On the device until all are looked at, as in `_epoch`.
    loss: Any = 0.0
    correct: Any = 0
    for images, labels, heads in _batches(crops, execution.batch_size, execution, device):
        if not len(labels):
            continue
        memory = fits_memory("execution.batch_size", execution.batch_size, params.input_size)
        with memory, autocast(device):
            batch_loss, right = losses(network, images, labels, heads, plain)
        loss += batch_loss.double() * len(labels)
        correct += right.sum()
    loss, correct = added_up(float(loss), float(correct), device=device)
    return loss / len(table), correct / len(table)


def _batches(
    crops: TrainingCrops, batch_size: int, execution: ExecutionParams, device: torch.device
) -> Iterator[Batch]:
    there = on_device(crops.read, device, execution.gpu_gigabytes)
    made = _Batches(crops, batch_size, device.type == "cuda", there)
    size = batch_size * crops.input_size**2 * 3
    for batch in load_ahead(made.__getitem__, range(len(made)), execution.workers, size):
        images, labels, heads = (part.to(device, non_blocking=True) for part in batch)
        yield images, labels, heads


class _Step(torch.nn.Module):
    """A batch to its loss, and which crops are right."""

    def __init__(self, network: torch.nn.Module, objective: Objective, params: Any) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.params = params

    def forward(
        self, images: torch.Tensor, labels: torch.Tensor, heads: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.objective.training(self.network, images, labels, heads, self.params)


class _Batches:
    """Crops in batches, in order: uint8 B x 3 x S x S, channels last; int64 labels; int64 heads.

    Of every batch this process's share: with n processes each n-th crop.

    Args:
        crops: in the order of training.
        size: crops a batch.
        pinned: for a GPU to take over.
        there: the photographs in its memory, where crops are then cut.
    """

    def __init__(
        self, crops: TrainingCrops, size: int, pinned: bool, there: OnDevice | None
    ) -> None:
        self.crops = crops
        self.size = size
        self.pinned = pinned
        self.there = there

    def __len__(self) -> int:
        return math.ceil(len(self.crops) / self.size)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, ...]:
        rows = range(number * self.size, min((number + 1) * self.size, len(self.crops)))
        rows = rows[rank() :: processes()]
        side = self.crops.input_size
        columns = self.crops.labels, self.crops.heads
        targets = [self._pinned(torch.from_numpy(each[[*rows]])) for each in columns]
        with suppress(torch.cuda.OutOfMemoryError):  # then on the CPU
            if self.there is not None and len(rows):
                cuts = [self.crops.shown(row) for row in rows]
                return self.there.cut(cuts, side), *targets
        # Filled by NumPy: torch would start threads of its own beside those of the network.
        pixels = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            pixels[place] = self.crops[row].permute(1, 2, 0).numpy()
        return self._pinned(torch.from_numpy(pixels)).permute(0, 3, 1, 2), *targets

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.pin_memory() if self.pinned else tensor


def _inputs(
    network: torch.nn.Module,
    first: pd.DataFrame,
    val: pd.DataFrame,
    params: TrainingParams,
    seed: int,
) -> Fingerprint:
    """What a checkpoint must agree with to be resumed."""
    tables = {
        name: hashlib.sha256(
            pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes()
        ).hexdigest()
        for name, table in {"training samples": first, "val samples": val}.items()
    }
    archives = {archive_of(path) for path in [*first["path"], *val["path"]]}
    return fingerprint(
        *map(Path, sorted(filter(None, archives))),
        params,
        seed=seed,
        **{"the weights to begin with": state_digest(network)},
        **tables,
    )


def _say(line: str) -> None:
    """One line on stderr, of all processes together."""
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)


def _line(epoch: int, row: dict[str, float]) -> str:
    return f"epoch {epoch + 1}, " + ", ".join(f"{k} {v:.4f}" for k, v in row.items())
