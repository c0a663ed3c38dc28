"""Scores of crops: softmax probabilities by a trained network, in batches over photographs.

Exact scoring shows the network every crop by itself. Shared scoring shows it the photograph,
at two sizes, and pools each crop's part of the feature maps (ROI align; He et al., ICCV 2017):
its cost hardly depends on the number of crops. What a network answers depends on how large it
sees things; so each crop is taken from the size at which it is nearer to what exact scoring
shows.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from torch.nn.functional import conv2d

from opam.engine.crops import PhotographCrops, centre_boxes, load_ahead
from opam.networks.cam_network import CamNetwork
from opam.photographs.decoding.images import read_image
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.errors import OpamError
from opam.pipeline.libraries import torchvision
from opam.pipeline.progress import progress

Scoring = Literal["exact", "shared"]
"""How patches are scored: each by itself, or from feature maps that they share."""
SHARED_SIDES = (1.0, 3.0)
"""Longer side of the photograph in shared scoring, over the side of an exactly scored crop."""
STRIDE = 32
"""Pixels a cell of the last feature maps of most backbones; others divide it."""
POOLED = 4
"""Bins along each side of a crop in its part of the feature maps."""
SAMPLES = 2
"""Sampled points along each side of a bin."""


def score_crops(
    network: CamNetwork,
    paths: Sequence[str],
    boxes: Sequence[np.ndarray],
    size: int,
    fraction: float,
    execution: ExecutionParams,
    description: str,
    first_batch: int = 0,
    mirrored: bool = False,
) -> Iterator[np.ndarray]:
    """Score all crops of all photographs in order: yields float32 B x heads x C, batch by batch.

    Batches run over the photographs' borders. Photographs are decoded once each and scored as
    they come; no more than a batch waits. A batch that the GPU's memory does not hold is halved.

    Args:
        network: in evaluation mode.
        paths: one photograph an item.
        boxes: int N_i x 4 an item, in pixels; N_i may be 0.
        size: side of a crop as the network sees it.
        fraction: shown part of each box's sides, centred (see `opam.engine.crops`).
        execution: device, threads, workers, batch size B; the last batch may be smaller.
        description: shown with the progress.
        first_batch: where to begin.
        mirrored: a crop's scores are the mean with those of its mirror image.

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
    crops = load_ahead(PhotographCrops(paths[first:], shown, size), execution.workers)
    crops = progress(crops, len(shown), description)
    limit = execution.batch_size
    for batch in _batches(crops, execution.batch_size):
        scores = None
        while scores is None:
            try:
                parts = [
                    probabilities(network, part.to(device), mirrored).cpu().numpy()
                    for part in torch.split(batch, limit)
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


def score_crops_shared(
    network: CamNetwork,
    paths: Sequence[str],
    boxes: Sequence[np.ndarray],
    size: int,
    execution: ExecutionParams,
    description: str,
    first: int = 0,
) -> Iterator[np.ndarray]:
    """Score all crops of each photograph in order from feature maps that they share.

    Args:
        network: in evaluation mode.
        paths: one photograph an item.
        boxes: int N_i x 4 an item, in pixels; N_i may be 0.
        size: side of a crop as exact scoring shows it to the network.
        execution: device, threads, workers.
        description: shown with the progress.
        first: photograph to begin with.

    Yields:
        Of each photograph, float32 N_i x heads x C.
    """
    device = prepare_device(execution)
    network.to(device)
    photographs = WholePhotographs(paths[first:], [round(size * each) for each in SHARED_SIDES])
    loaded = load_ahead(photographs, execution.workers)
    for item, (views, sides) in enumerate(
        progress(loaded, len(photographs), description), start=first
    ):
        crops = torch.from_numpy(np.asarray(boxes[item], dtype=np.float32)).view(-1, 4)
        scores = torch.zeros(len(crops), network.heads, network.classes)
        scales = [
            torch.tensor(view.shape[:0:-1] * 2) / torch.tensor([*sides, *sides]) for view in views
        ]
        scaled = torch.stack([crops * scale for scale in scales])
        seen = (scaled[..., 2:] - scaled[..., :2]).clamp(min=1).prod(2).sqrt()
        nearest = (seen / size).log().abs().argmin(0)
        for level, view in enumerate(views):
            chosen = nearest == level
            if chosen.any():
                scores[chosen] = pooled_probabilities(
                    network, view.to(device), scaled[level][chosen].to(device)
                )
        yield scores.numpy()


def pooled_probabilities(
    network: CamNetwork, image: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """Softmax of boxes whose features are pooled from one image's maps.

    Args:
        network: in evaluation mode.
        image: uint8 3 x H x W, sides that the network's stride divides.
        boxes: float N x 4, in pixels of it.

    Returns:
        float32 N x heads x C, on the CPU.
    """
    with torch.inference_mode(), autocast(image.device):
        maps = network.backbone(image[None]).float()
        # The head is linear, and so is pooling: after it there are fewer maps to pool.
        scored = conv2d(maps, network.head.weight[:, :, None, None], network.head.bias)
        bins = torchvision.ops.roi_align(
            scored.float(), [boxes], POOLED, maps.shape[3] / image.shape[2], SAMPLES, aligned=True
        )
    logits = bins.mean((2, 3)).view(-1, network.heads, network.classes)
    return logits.softmax(2).cpu()


class WholePhotographs:
    """Photographs at several sizes: item i is a list of uint8 3 x H x W, and its width and height.

    Args:
        paths: one photograph an item.
        sides: of the longer side, pixels; both are rounded to whole `STRIDE`.
    """

    def __init__(self, paths: Sequence[str], sides: Sequence[int]) -> None:
        self.paths = paths
        self.sides = sides

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> tuple[list[torch.Tensor], tuple[int, int]]:
        image = read_image(self.paths[item])
        height, width = image.shape[:2]
        views = []
        for side in self.sides:
            columns, rows = (
                max(1, round(each * side / max(width, height) / STRIDE)) * STRIDE
                for each in (width, height)
            )
            way = cv2.INTER_AREA if columns < width else cv2.INTER_LINEAR
            pixels = cv2.resize(image, (columns, rows), interpolation=way)
            views.append(torch.from_numpy(pixels).permute(2, 0, 1))
        return views, (width, height)


def predict(
    network: torch.nn.Module,
    paths: Sequence[str],
    boxes: Sequence[np.ndarray],
    size: int,
    execution: ExecutionParams,
    description: str,
    mirrored: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Predict one crop a photograph by a system: yields batches of what a `Prediction` holds.

    Args:
        network: in evaluation mode; gives a `opam.systems.prediction.Prediction`.
        paths: one photograph an item.
        boxes: float 1 x 4 an item, the crop, in pixels.
        size: side of a crop as the network sees it.
        execution: device, threads, workers, batch size.
        description: shown with the progress.
        mirrored: probabilities are the mean with those of the mirror image.

    Yields:
        Probabilities, float32 B x C, and regions in 0..1 of the crop, float32 B x R x 4 or None.
    """
    device = prepare_device(execution)
    network.to(device)
    crops = load_ahead(PhotographCrops(paths, boxes, size), execution.workers)
    crops = progress(crops, len(paths), description)
    for batch in _batches(crops, execution.batch_size):
        with torch.inference_mode(), autocast(device):
            found = [network(view) for view in _views(batch.to(device), mirrored)]
        own = [each.logits.float().softmax(1) for each in found]
        scores, regions = torch.stack(own).mean(0), found[0].boxes
        yield scores.cpu().numpy(), None if regions is None else regions.float().cpu().numpy()


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


def by_cluster(probabilities: np.ndarray, clusters: Sequence[np.ndarray], count: int) -> np.ndarray:
    """What the parts of each cluster say of each photograph.

    Args:
        probabilities: float P x C, a part each, one photograph's behind the other's.
        clusters: of each of N photographs its parts' clusters, int, 0..K-1; at least one.
        count: K.

    Returns:
        float64 K x N x C: the mean over a photograph's parts of the cluster; where it has none,
        the mean over all its parts.
    """
    cell = np.repeat(np.arange(len(clusters)), [*map(len, clusters)]), np.concatenate(clusters)
    counts = np.zeros((len(clusters), count))
    totals = np.zeros((*counts.shape, probabilities.shape[1]))
    np.add.at(totals, cell, probabilities)
    np.add.at(counts, cell, 1)
    every = totals.sum(1) / counts.sum(1)[:, None]
    own = totals / np.maximum(counts, 1)[..., None]
    return np.where(counts[..., None] > 0, own, every[:, None]).swapaxes(0, 1)


def probabilities(network: CamNetwork, crops: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """Softmax of crops, float32 N x heads x C.

    Args:
        network: in evaluation mode, on the crops' device.
        crops: uint8 N x 3 x S x S.
        mirrored: the mean with the mirror images' is given.
    """
    with torch.inference_mode(), autocast(crops.device):
        found = [network(view).float().softmax(2) for view in _views(crops, mirrored)]
    return torch.stack(found).mean(0)


def _views(crops: torch.Tensor, mirrored: bool) -> list[torch.Tensor]:
    return [crops, crops.flip(3)] if mirrored else [crops]


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
