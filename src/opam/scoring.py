"""Scores of crops: softmax probabilities by a trained network, in batches over photographs."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from opam.crops import PhotographCrops, centre_boxes, load_photographs
from opam.device import ExecutionParams, autocast, prepare_device
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
) -> Iterator[np.ndarray]:
    """Score the crops of each photograph: yields float32 N_i x heads x C, one a photograph.

    Photographs are decoded once each and scored as they come; no more than a batch waits.

    Args:
        network: in evaluation mode.
        paths: one photograph an item.
        boxes: int N_i x 4 an item, in pixels; N_i may be 0.
        size: side of a crop as the network sees it.
        fraction: shown part of each box's sides, centred (see `opam.crops`).
        execution: device, threads, workers, batch size.
        description: shown with the progress.
    """
    device = prepare_device(execution)
    network.to(device)
    shown = [centre_boxes(each, fraction) for each in boxes]
    crops = load_photographs(PhotographCrops(paths, shown, size), execution.workers)
    crops = progress(crops, len(paths), description)
    counts = iter([len(each) for each in boxes])
    count = next(counts, None)
    waiting = np.zeros((0, network.heads, network.classes), dtype=np.float32)
    for batch in _batches(crops, execution.batch_size):
        with torch.inference_mode(), autocast(device):
            logits = network(batch.to(device))
        waiting = np.concatenate([waiting, logits.float().softmax(2).cpu().numpy()])
        while count is not None and len(waiting) >= count:
            yield waiting[:count]
            waiting = waiting[count:]
            count = next(counts, None)
    while count is not None:  # photographs without crops, when there was no batch at all
        yield waiting[:count]
        count = next(counts, None)


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
