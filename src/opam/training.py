"""Training on crops: the loop that all networks of the pipeline share.

A sample table has a row per crop: ``path`` of the photograph, box ``x0, y0, x1, y1``,
``label``, and ``head``: which linear layer the crop trains, or -1 for all of them.
"""

import hashlib
import importlib.util
import io
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch.nn.functional import cross_entropy

from opam.archive import archive_of
from opam.artifacts import BOX, atomic, write_json
from opam.config import Params
from opam.crops import TrainingCrops, load_ahead
from opam.device import ExecutionParams, autocast, prepare_device
from opam.distributed import (
    add_up_gradients,
    added_up,
    even_out_statistics,
    join,
    launch,
)
from opam.errors import OpamError, cause
from opam.models.backbones import Backbone
from opam.models.weights import state_digest
from opam.progress import progress
from opam.ranks import processes, rank
from opam.resume import RESUME, Fingerprint, fingerprint, say_thrown_away

CURVES = Path("data/curves")
TIME = "time.json"
"""Beside the curves: the seconds that training took."""


class TrainingParams(Params):
    """One network's training."""

    epochs: int = Field(ge=1, description="passes over the samples; the last is kept")
    batch_size: int = Field(16, ge=1, description="crops a step")
    input_size: int = Field(224, ge=32, le=2048, description="side of a crop, pixels")
    resize: int = Field(
        256, ge=32, le=2048, description="side a box is scaled to before input_size of it is shown"
    )
    min_area: float = Field(
        1.0,
        gt=0,
        le=1,
        description="area of a training crop, over that of input_size in resize, is drawn evenly "
        "from here to 1; lower: sizes vary more, and a small set is learned by heart later",
    )
    rate: float = Field(1e-4, gt=0, description="learning rate of the backbone")
    head_rate_factor: float = Field(1.0, gt=0, description="rate of the linear layer over rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of stochastic gradient descent")
    weight_decay: float = Field(5e-4, ge=0, description="of stochastic gradient descent")
    schedule: Literal["step", "cosine"] = Field(
        "step", description="step: x0.1 every step_iterations; cosine: to zero at the end"
    )
    step_iterations: int = Field(
        25_000, ge=1, description="schedule step: iterations from one cut of the rate to the next"
    )
    warmup_iterations: int = Field(0, ge=0, description="rate rises linearly from zero")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a target that is spread evenly over all classes"
    )
    frozen_batch_norm: bool = Field(
        False,
        description="batch norm keeps the pretrained statistics; serves small sets of photographs "
        "like those of the pretraining",
    )
    frozen_until: str | None = Field(
        None,
        description="module of the backbone up to which, and with which, nothing is trained, such "
        "as blocks.3; faster, and enough for small sets of photographs like those of the "
        "pretraining; null: all is trained",
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> "TrainingParams":
        if self.resize < self.input_size:
            raise ValueError("resize must be at least input_size")
        return self


class PatchTrainingParams(TrainingParams):
    """ClassNet's training: whole photographs and kept patches."""

    patches_per_image: int = Field(
        0, ge=0, description="kept patches of an image drawn anew in each epoch; 0: all of them"
    )


def network_settings(backbone: str, params: TrainingParams) -> dict[str, Any]:
    """What travels with a network's weights: how to build it and what to show it."""
    return {"backbone": backbone, "input_size": params.input_size, "resize": params.resize}


Losses = Callable[
    [Any, torch.Tensor, torch.Tensor, torch.Tensor, TrainingParams],
    tuple[torch.Tensor, torch.Tensor],
]
"""Network, images, labels, heads and params to the mean loss, and bool B: which crops are right."""


@dataclass(frozen=True)
class Objective:
    """What is minimised in training, and what is measured on val."""

    training: Losses
    validation: Losses


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        history: losses and accuracies of each epoch.
        seconds: that all epochs took, those before an interruption too.
    """

    history: list[dict[str, float]]
    seconds: float


def samples(table: pd.DataFrame, manifest: pd.DataFrame, head: int = -1) -> pd.DataFrame:
    """A sample table from rows with ``image_id`` and a box; the label is the photograph's own."""
    columns = manifest.set_index("image_id")[["path", "label"]]
    return table[["image_id", *BOX]].join(columns, on="image_id").assign(head=head)


def whole_images(manifest: pd.DataFrame) -> pd.DataFrame:
    """A sample table of whole photographs."""
    boxes = manifest[["image_id"]].assign(x0=0, y0=0, x1=manifest["width"], y1=manifest["height"])
    return samples(boxes, manifest)


def rate_factor(iteration: int, iterations: int, params: TrainingParams) -> float:
    """The learning rate at ``iteration`` of ``iterations`` over ``params.rate``, 0..1."""
    if iteration < params.warmup_iterations:
        return (iteration + 1) / params.warmup_iterations
    if params.schedule == "step":
        return float(0.1 ** (iteration // params.step_iterations))
    after = iteration - params.warmup_iterations
    return 0.5 * (1 + math.cos(math.pi * after / max(1, iterations - params.warmup_iterations)))


def loss_over_heads(
    logits: torch.Tensor, labels: torch.Tensor, heads: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy, each crop by its own head, or by the mean over all heads for -1.

    Args:
        logits: float B x H x C.
        labels: int64 B.
        heads: int64 B, -1..H-1.
        label_smoothing: 0..1.
    """
    count = logits.shape[1]
    losses = cross_entropy(
        logits.float().flatten(0, 1),
        labels.repeat_interleave(count),
        label_smoothing=label_smoothing,
        reduction="none",
    ).view(-1, count)
    return (losses * head_weights(heads, count)).sum(1).mean()


def head_weights(heads: torch.Tensor, count: int) -> torch.Tensor:
    """Float B x H: 1 for a crop's own head, 1 / H everywhere for head -1."""
    own = heads[:, None] == torch.arange(count, device=heads.device)
    return torch.where(heads[:, None] < 0, 1.0 / count, own.float())


def cam_losses(
    network: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    heads: torch.Tensor,
    params: TrainingParams,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of a CAM network, each crop by its own head."""
    logits = network(images)
    loss = loss_over_heads(logits, labels, heads, params.label_smoothing)
    return loss, hits(logits.detach(), labels, heads)


CAM_OBJECTIVE = Objective(cam_losses, cam_losses)


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
        val_samples: sample table that each epoch is measured on.
        params: schedule, sizes and rates.
        execution: device, threads, workers.
        seed: of order and augmentation.
        objective: losses in training and on val.
        curves: folder of the curves; ``data/curves/NAME`` when not given.

    Raises:
        OpamError: the loss is not finite, or the GPU's memory does not suffice.
    """
    launch(execution)
    device = prepare_device(execution)
    join(device)
    network.to(device)
    network.to(memory_format=cast(Any, torch.channels_last))
    if execution.compile:
        cast(Any, network).backbone.compile()
    frozen = freeze_until(cast(Any, network).backbone, params.frozen_until, name)
    groups = cast(Any, network).parameter_groups()
    optimizer = torch.optim.SGD(
        [
            {"params": groups["backbone"], "factor": 1.0},
            {"params": groups["head"], "factor": params.head_rate_factor},
        ],
        lr=params.rate,
        momentum=params.momentum,
        weight_decay=params.weight_decay,
        fused=device.type == "cuda",
    )
    first = epoch_samples(0)
    inputs = _inputs(network, first, val_samples, params, seed)

    checkpoint = RESUME / f"{name}.pt"
    history: list[dict[str, float]] = []
    iteration, seconds = 0, 0.0
    saved = _read_checkpoint(checkpoint, inputs)
    if saved:
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        history, iteration, seconds = saved["history"], saved["iteration"], saved["seconds"]
        _say(f"{name}: resumed behind epoch {len(history)}")

    batches_an_epoch = math.ceil(len(first) / params.batch_size)
    iterations = params.epochs * batches_an_epoch
    curves = curves or CURVES / name
    with _curves(name, curves, history, execution.tensorboard) as log:
        for epoch in range(len(history), params.epochs):
            started = time.monotonic()
            torch.manual_seed(seed * 100_003 + epoch + 10_007 * rank())
            table = epoch_samples(epoch)
            order = np.random.default_rng([seed, epoch]).permutation(len(table))
            crops = TrainingCrops(
                table.iloc[order], params.input_size, params.resize, (seed, epoch), params.min_area
            )
            network.train()
            frozen.eval()
            if params.frozen_batch_norm:
                freeze_batch_norm(cast(Any, network).backbone)
            total, correct = 0.0, 0.0
            batches = _batches(crops, params.batch_size, execution.workers, device)
            description = f"{name} epoch {epoch + 1}/{params.epochs}"
            for batch, (images, labels, heads) in enumerate(
                progress(batches, batches_an_epoch, description, "batches")
            ):
                for group in optimizer.param_groups:
                    factor = rate_factor(iteration, iterations, params)
                    group["lr"] = params.rate * group["factor"] * factor
                size = min(params.batch_size, len(table) - batch * params.batch_size)
                value, right = 0.0, 0.0
                if len(labels):  # a process's share of the last batch may be empty
                    try:
                        with autocast(device):
                            loss, hit = objective.training(network, images, labels, heads, params)
                        share = len(labels) / size
                        (loss * share).backward()
                    except torch.cuda.OutOfMemoryError:
                        raise OpamError(
                            f"{name}.batch_size: {params.batch_size} crops of "
                            f"{params.input_size} pixels do not fit the GPU's memory; lower it"
                        ) from None
                    except torch._dynamo.exc.TorchDynamoException as error:
                        raise OpamError(
                            f"execution.compile: torch cannot ({cause(error)}); set false"
                        ) from None
                    value, right = loss.item() * share, hit.sum().item()
                value, right = added_up(value, right, device=device)
                if not math.isfinite(value):
                    raise OpamError(
                        f"{name}.rate: {params.rate} made the loss infinite in epoch {epoch + 1}; "
                        f"lower it, or {name}.head_rate_factor"
                    )
                add_up_gradients(network)
                optimizer.step()
                optimizer.zero_grad()
                iteration += 1
                total += value * size
                correct += right
            even_out_statistics(network)
            val_loss, val_accuracy = evaluate(
                network, val_samples, params, execution, device, objective.validation
            )
            row = {
                "train_loss": total / len(table),
                "train_accuracy": correct / len(table),
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
            }
            history.append(row)
            log(row)
            seconds += time.monotonic() - started
            _say(f"{name}: " + _line(epoch, row))
            _write_checkpoint(
                checkpoint,
                {
                    "inputs": inputs,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                    "iteration": iteration,
                    "seconds": seconds,
                },
            )
    write_json(curves / TIME, {"training_seconds": seconds})
    return Trained(history, seconds)


@torch.no_grad()
def evaluate(
    network: torch.nn.Module,
    table: pd.DataFrame,
    params: TrainingParams,
    execution: ExecutionParams,
    device: torch.device,
    losses: Losses,
) -> tuple[float, float]:
    """Mean loss and accuracy (0..1) of centred crops."""
    network.eval()
    crops = TrainingCrops(table, params.input_size, params.resize, None)
    plain = params.model_copy(update={"label_smoothing": 0.0})
    loss, correct = 0.0, 0.0
    for images, labels, heads in _batches(crops, execution.batch_size, execution.workers, device):
        if not len(labels):
            continue
        try:
            with autocast(device):
                batch_loss, right = losses(network, images, labels, heads, plain)
        except torch.cuda.OutOfMemoryError:
            raise OpamError(
                f"execution.batch_size: {execution.batch_size} crops of {params.input_size} pixels "
                "do not fit the GPU's memory; lower it"
            ) from None
        loss += batch_loss.item() * len(labels)
        correct += right.sum().item()
    loss, correct = added_up(loss, correct, device=device)
    return loss / len(table), correct / len(table)


def freeze_until(backbone: Backbone, module: str | None, name: str) -> torch.nn.ModuleList:
    """Train no layer of the backbone's body up to ``module``; in the order they are defined in.

    Args:
        backbone: of which ``requires_grad`` is changed.
        module: name of a module of the body; None: nothing is frozen.
        name: of the parameters, for the error.

    Returns:
        The frozen layers; for batch norm in evaluation mode is theirs.

    Raises:
        OpamError: the body has no such module.
    """
    if module is None:
        return torch.nn.ModuleList()
    layers = [(n, m) for n, m in backbone.body.named_modules() if [*m.parameters(recurse=False)]]
    inside = [place for place, (n, _) in enumerate(layers) if f"{n}.".startswith(f"{module}.")]
    if not inside:
        known = ", ".join(n for n, _ in backbone.body.named_children())
        raise OpamError(
            f"{name}.frozen_until: the backbone has no '{module}'; it has {known}, or take null"
        )
    frozen = torch.nn.ModuleList([m for _, m in layers[: inside[-1] + 1]])
    frozen.requires_grad_(False)
    return frozen


def freeze_batch_norm(network: torch.nn.Module) -> None:
    """Let every batch norm use the statistics it came with, instead of the batch's own."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def hits(logits: torch.Tensor, labels: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Bool B: the most probable class is the label, by a crop's own head or the mean of all."""
    weights = head_weights(heads, logits.shape[1])
    probabilities = (logits.float().softmax(2) * weights[:, :, None]).sum(1)
    return probabilities.argmax(1) == labels


def _batches(
    crops: TrainingCrops, batch_size: int, workers: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    for batch in load_ahead(_Batches(crops, batch_size, device.type == "cuda"), workers):
        images, labels, heads = (part.to(device, non_blocking=True) for part in batch)
        yield images, labels, heads


class _Batches:
    """Crops in batches, in order: uint8 B x 3 x S x S, channels last; int64 labels; int64 heads.

    Of every batch this process's share: with n processes each n-th crop.
    """

    def __init__(self, crops: TrainingCrops, size: int, pinned: bool) -> None:
        self.crops = crops
        self.size = size
        self.pinned = pinned

    def __len__(self) -> int:
        return math.ceil(len(self.crops) / self.size)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, ...]:
        rows = range(number * self.size, min((number + 1) * self.size, len(self.crops)))
        rows = rows[rank() :: processes()]
        side = self.crops.input_size
        # Filled by NumPy: torch would start threads of its own beside those of the network.
        pixels = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        labels, heads = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.int64)
        for place, row in enumerate(rows):
            crop, labels[place], heads[place] = self.crops[row]
            pixels[place] = crop.permute(1, 2, 0).numpy()
        batch = (torch.from_numpy(each) for each in (pixels, labels, heads))
        images, *targets = (each.pin_memory() if self.pinned else each for each in batch)
        return images.permute(0, 3, 1, 2), *targets


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


def _read_checkpoint(path: Path, inputs: Fingerprint) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged checkpoint costs time, never the run
        print(f"{path}: unreadable, training starts anew", file=sys.stderr)
        return None
    before = saved.get("inputs") if isinstance(saved, dict) else None
    if before != inputs:
        if rank() == 0:
            say_thrown_away(path.stem, before, inputs)
        return None
    return saved


def _write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _say(line: str) -> None:
    """One line on stderr, of all processes together."""
    if rank() == 0:
        print(line, file=sys.stderr, flush=True)


def _line(epoch: int, row: dict[str, float]) -> str:
    return f"epoch {epoch + 1}, " + ", ".join(f"{k} {v:.4f}" for k, v in row.items())


@contextmanager
def _curves(
    name: str, folder: Path, history: list[dict[str, float]], tensorboard: bool
) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield a function that adds an epoch to the live curves, after those of ``history``."""
    live = None
    if rank() == 0 and importlib.util.find_spec("dvclive"):
        from dvclive.live import Live

        live = Live(str(folder), dvcyaml=None, report=None, save_dvc_exp=False)
    board = None
    if rank() == 0 and tensorboard:
        if not importlib.util.find_spec("tensorboard"):
            raise OpamError(
                "execution.tensorboard: not installed; `pip install tensorboard` or set false"
            )
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(RESUME / "tensorboard" / name))
    epoch = 0

    def log(row: dict[str, float]) -> None:
        nonlocal epoch
        for key, value in row.items():
            if live is not None:
                live.log_metric(key, value)
            if board is not None:
                board.add_scalar(f"{name}/{key}", value, epoch)
        if live is not None:
            live.next_step()
        epoch += 1

    for row in history:
        log(row)
    yield log
    if live is not None:
        live.end()
    if board is not None:
        board.close()
