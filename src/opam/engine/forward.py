"""Ready batches through a network: loaded ahead of time, on the device, results as they come."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from opam.engine import crops
from opam.engine.crops.ahead import load_ahead
from opam.engine.crops.batches import CropBatches
from opam.engine.crops.on_device import OnDevice, on_device
from opam.networks.backbones import backbone as backbones
from opam.networks.backbones.backbone import fold_batch_norm
from opam.networks.backbones.weights import state_digest
from opam.photographs.decoding import images
from opam.photographs.decoding.images import Photographs
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.environment import installed_versions
from opam.pipeline.errors import OpamError
from opam.pipeline.kept import of_each, version_of
from opam.pipeline.progress import progress

Arrays = tuple[np.ndarray, ...]
Function = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def forward(
    network: nn.Module,
    function: Function,
    batches: CropBatches,
    execution: ExecutionParams,
    description: str,
    first: int = 0,
    group: int = 1,
    shown: bool = True,
) -> Iterator[Arrays]:
    """Yield what ``function`` gives of each batch.

    A batch that the GPU's memory does not hold is halved.

    Args:
        network: brought to the device.
        function: of it and uint8 B x 3 x S x S there; gives tensors of B, or B / ``group``, rows.
        batches: of crops.
        execution: device, threads, workers.
        description: shown with the progress.
        first: batch to begin with.
        group: crops that ``function`` must get together; batches hold whole groups.
        shown: whether progress is.

    Raises:
        OpamError: not one group fits the GPU's memory.
    """
    device = prepare_device(execution)
    network.to(device)
    fold_batch_norm(network)
    ready = partial(
        ready_crops, batches, device, on_device(batches.read, device, execution.gpu_gigabytes)
    )

    numbers = range(first, len(batches))
    size = batches.batch_size * batches.size**2 * 3
    loaded = load_ahead(ready, numbers, execution.workers, size)
    limit = batches.batch_size
    waiting: tuple[torch.Tensor, ...] | None = None
    for batch in progress(loaded, len(numbers), description, "batches") if shown else loaded:
        found = None
        while found is None:
            try:
                with torch.inference_mode(), autocast(device):
                    parts = [
                        function(part.to(device, non_blocking=True))
                        for part in torch.split(batch, limit)
                    ]
                found = tuple(torch.cat(each) for each in zip(*parts, strict=True))
            except torch.cuda.OutOfMemoryError:
                if limit <= group:
                    raise OpamError(
                        f"{description}: a batch of {group} crops of {batches.size} pixels does "
                        "not fit the GPU's memory; free it, or set execution.device: cpu"
                    ) from None
            if found is None:
                limit = max(1, limit // 2 // group) * group
                torch.cuda.empty_cache()
                print(
                    f"{description}: GPU memory is full, on with {limit} crops a batch",
                    file=sys.stderr,
                    flush=True,
                )
        # The device computes this batch while the one before is taken over.
        if waiting is not None:
            yield _arrays(waiting)
        waiting = found
    if waiting is not None:
        yield _arrays(waiting)


def ready_crops(
    batches: CropBatches, device: torch.device, there: OnDevice | None, number: int
) -> torch.Tensor:
    """A batch as the network takes it: cut on the device, or cut here and pinned for it."""
    with suppress(torch.cuda.OutOfMemoryError):  # then on the CPU
        if there is not None:
            return there.cut([*batches.shown(number, there.sizes.__getitem__)], batches.size)
    batch = batches[number]
    return batch.pin_memory() if device.type == "cuda" else batch


def forward_by_maps(
    network: nn.Module,
    maps: Callable[[torch.Tensor], torch.Tensor],
    function: Function,
    batches: CropBatches,
    kept: str | None,
    execution: ExecutionParams,
    description: str,
    first: int = 0,
    group: int = 1,
) -> Iterator[Arrays]:
    """`forward` of ``function`` of ``maps``, which are kept by what each crop shows.

    On the CPU a crop that was looked at before is not looked at again; a GPU computes maps in less
    time than they are read.

    Args:
        network: brought to the device.
        maps: of it and uint8 B x 3 x S x S there; gives float B x C x h x w.
        function: of these, a batch's at a time; as in `forward`.
        batches: of crops, read by `Photographs`.
        kept: `kept_as` of what decides on the maps beside the crops; None: none are kept.
        execution: device, threads, workers, room.
        description: shown with the progress.
        first: batch to begin with.
        group: crops that ``function`` must get together; batches hold whole groups.

    Raises:
        OpamError: as `forward`.
    """
    photographs, size = batches.read, batches.batch_size
    if kept is None or prepare_device(execution).type != "cpu":

        def both(crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return function(maps(crops))

        yield from forward(network, both, batches, execution, description, first, group)
        return

    def filled(crops: torch.Tensor) -> tuple[torch.Tensor]:
        return (maps(whole_batch(crops, size))[: len(crops)],)

    def made(places: list[int]) -> Iterator[np.ndarray]:
        missing = batches.only([first * size + place for place in places])
        for (found,) in forward(network, filled, missing, execution, description):
            yield from found

    assert isinstance(photographs, Photographs)
    # On a cluster each shard begins anew.
    stop = first + execution.shard_size if execution.engine == "ray" else len(batches)
    digests = batches.digests(photographs, first, min(stop, len(batches)))
    found = of_each(kept, digests, made, np.float32, execution.decoded_gigabytes)
    while batch := [*islice(found, size)]:
        with torch.inference_mode():
            given = function(torch.from_numpy(np.stack(batch)))
        yield _arrays(given)


def whole_batch(crops: torch.Tensor, size: int) -> torch.Tensor:
    """Crops, channels last, filled up to ``size``: a batch's shape may decide on the last bits."""
    full = torch.cat([crops, crops[-1:].expand(size - len(crops), -1, -1, -1)])
    return full.contiguous(memory_format=torch.channels_last)


def kept_as(
    kind: str, execution: ExecutionParams, *how: object, code: tuple[Path, ...] = ()
) -> str:
    """What `opam.pipeline.kept` calls what a backbone says of crops: all that decides on its bits.

    Args:
        kind: a word.
        execution: device, threads, batch size.
        how: anything else, by its ``repr``: a digest of the backbone's weights, a layer.
        code: files that it depends on beside this one, the backbones and what cuts crops.
    """
    return version_of(kind, [*_code(), *code], *how, execution.same_bits(), installed_versions())


def kept_where_untrained(
    network: Any, kind: str, execution: ExecutionParams, *how: object
) -> str | None:
    """`kept_as` of a `CamNetwork` whose body is the pretrained one, a discriminant; else None."""
    if not network.rooted:
        return None
    return kept_as(kind, execution, state_digest(network.backbone.body), *how)


@cache
def _code() -> list[Path]:
    rooms = (Path(module.__file__ or "").parent for module in (backbones, images, crops))
    files = [path for room in rooms for path in sorted(room.glob("*.py"))]
    return [*files, Path(__file__)]


def _arrays(tensors: tuple[torch.Tensor, ...]) -> Arrays:
    # NumPy knows no bf16.
    return tuple(
        (each.float() if each.dtype == torch.bfloat16 else each).cpu().numpy() for each in tensors
    )


def whole_groups(group: int, execution: ExecutionParams) -> int:
    """Crops a batch, so that it holds whole groups: ``execution.batch_size``, or little off it."""
    return max(1, execution.batch_size // group) * group
