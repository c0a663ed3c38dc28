"""Ready batches through a network: loaded ahead of time, on the device, results as they come."""

import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from opam.engine.crops import CropBatches, load_ahead
from opam.networks.backbones.backbone import fold_batch_norm
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.errors import OpamError
from opam.pipeline.progress import progress

Arrays = tuple[np.ndarray, ...]


def forward(
    network: nn.Module,
    function: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
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
    on_gpu = device.type == "cuda"

    def ready(number: int) -> torch.Tensor:
        batch = batches[number]
        return batch.pin_memory() if on_gpu else batch

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


def _arrays(tensors: tuple[torch.Tensor, ...]) -> Arrays:
    # NumPy knows no bf16.
    return tuple(
        (each.float() if each.dtype == torch.bfloat16 else each).cpu().numpy() for each in tensors
    )


def whole_groups(group: int, execution: ExecutionParams) -> int:
    """Crops a batch, so that it holds whole groups: ``execution.batch_size``, or little off it."""
    return max(1, execution.batch_size // group) * group
