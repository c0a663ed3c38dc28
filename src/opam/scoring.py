"""Scores of crops: softmax probabilities by a trained network, in batches over photographs."""

import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from opam.crops import PhotographCrops, centre_boxes, load_photographs
from opam.device import ExecutionParams, autocast, prepare_device
from opam.errors import OpamError
from opam.models.cam_network import CamNetwork
from opam.progress import progress


def score_crops(
    network: CamNetwork,
    paths: Sequence[str],
    boxes: Sequence[np.ndarray],
    size: int,
    fraction: float,
    execution: ExecutionParams,
    description: str,
    first_batch: int = 0,
) -> Iterator[np.ndarray]:
    """Score all crops of all photographs in order: yields float32 B x heads x C, batch by batch.

    Batches run over the photographs' borders. Photographs are decoded once each and scored as
    they come; no more than a batch waits. A batch that the GPU's memory does not hold is halved.

    Args:
        network: in evaluation mode.
        paths: one photograph an item.
        boxes: int N_i x 4 an item, in pixels; N_i may be 0.
        size: side of a crop as the network sees it.
        fraction: shown part of each box's sides, centred (see `opam.crops`).
        execution: device, threads, workers, batch size B; the last batch may be smaller.
        description: shown with the progress.
        first_batch: where to begin.

    Raises:
        OpamError: not one crop fits the GPU's memory.
    """
    device = prepare_device(execution)
    network.to(device)
    before = np.cumsum([0, *map(len, boxes)])
    first_crop = first_batch * execution.batch_size
    first = int(np.searchsorted(before[1:], first_crop, side="right"))
    shown = [centre_boxes(each, fraction) for each in boxes[first:]]
    if shown:
        shown[0] = shown[0][first_crop - before[first] :]
    crops = load_photographs(PhotographCrops(paths[first:], shown, size), execution.workers)
    crops = progress(crops, len(shown), description)
    limit = execution.batch_size
    for batch in _batches(crops, execution.batch_size):
        scores = None
        while scores is None:
            try:
                parts = [
                    _probabilities(network, part, device) for part in torch.split(batch, limit)
                ]
                scores = np.concatenate(parts)
            except torch.cuda.OutOfMemoryError:
                if limit == 1:
                    raise OpamError(
                        f"{description}: one crop of {size} pixels does not fit the GPU's memory; "
                        "free it, or set execution.device: cpu"
                    ) from None
            if scores is None:
                limit //= 2
                torch.cuda.empty_cache()
                print(
                    f"{description}: GPU memory is full, on with {limit} crops a batch",
                    file=sys.stderr,
                    flush=True,
                )
        yield scores


def predict(
    network: torch.nn.Module,
    paths: Sequence[str],
    boxes: Sequence[np.ndarray],
    size: int,
    execution: ExecutionParams,
    description: str,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Predict one crop a photograph by a system: yields batches of what a `Prediction` holds.

    Args:
        network: in evaluation mode; gives a `opam.models.prediction.Prediction`.
        paths: one photograph an item.
        boxes: float 1 x 4 an item, the crop, in pixels.
        size: side of a crop as the network sees it.
        execution: device, threads, workers, batch size.
        description: shown with the progress.

    Yields:
        Probabilities, float32 B x C, and regions in 0..1 of the crop, float32 B x R x 4 or None.
    """
    device = prepare_device(execution)
    network.to(device)
    crops = load_photographs(PhotographCrops(paths, boxes, size), execution.workers)
    crops = progress(crops, len(paths), description)
    for batch in _batches(crops, execution.batch_size):
        with torch.inference_mode(), autocast(device):
            found = network(batch.to(device))
        regions = None if found.boxes is None else found.boxes.float().cpu().numpy()
        yield found.logits.float().softmax(1).cpu().numpy(), regions


def batch_rows(batch: int, counts: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which crops a batch of `score_crops` holds.

    Args:
        batch: its number, from 0.
        counts: int N, crops of each photograph.
        batch_size: crops a batch.

    Returns:
        For each crop the photograph's index, and the crop's index within the photograph.
    """
    before = np.cumsum([0, *counts])
    rows = np.arange(batch * batch_size, min((batch + 1) * batch_size, before[-1]))
    photograph = np.searchsorted(before[1:], rows, side="right")
    return photograph, rows - before[photograph]


def _probabilities(network: CamNetwork, crops: torch.Tensor, device: torch.device) -> np.ndarray:
    with torch.inference_mode(), autocast(device):
        return network(crops.to(device)).float().softmax(2).cpu().numpy()


def _batches(items: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """Join N_i x ... tensors and cut them anew into batches of ``size``, the last one smaller."""
    waiting: list[torch.Tensor] = []
    for item in items:
        waiting.append(item)
        if sum(map(len, waiting)) >= size:
            joined = torch.cat(waiting)
            full = len(joined) // size * size
            for start in range(0, full, size):
                yield joined[start : start + size]
            waiting = [joined[full:]]
    if sum(map(len, waiting)):
        yield torch.cat(waiting)
