"""Scores of crops: softmax probabilities by a trained network, in batches over photographs.

Exact scoring shows the network every crop by itself. Shared scoring shows it the photograph,
at two sizes, and pools each crop's part of the feature maps (ROI align; He et al., ICCV 2017):
its cost hardly depends on the number of crops. What a network answers depends on how large it
sees things; so each crop is taken from the size at which it is nearer to what exact scoring
shows.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import cv2
import numpy as np
import torch
from torch.nn.functional import conv2d

from opam.engine.crops.ahead import load_ahead
from opam.engine.crops.batches import CropBatches
from opam.engine.crops.cutting import Read
from opam.engine.forward import forward
from opam.networks.cam_network import CamNetwork
from opam.photographs.decoding.images import Photographs, read_image
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.kept import digest_of, of_each
from opam.pipeline.libraries import torchvision
from opam.pipeline.progress import progress

Scoring = Literal["auto", "exact", "shared"]
"""How patches are scored: each by itself, or from feature maps that they share; see `chosen`."""
SHARED_SIDES = (1.0, 3.0)
"""Longer side of the photograph in shared scoring, over the side of an exactly scored crop."""
STRIDE = 32
"""Pixels a cell of the last feature maps of most backbones; others divide it."""
POOLED = 4
"""Bins along each side of a crop in its part of the feature maps."""
SAMPLES = 2
"""Sampled points along each side of a bin."""


def chosen(scoring: Scoring, device: torch.device) -> Scoring:
    """What ``auto`` is on a device: exact on a GPU, shared on a CPU.

    A GPU is shown hundreds of patches at once and is idle when it is shown one photograph at a
    time; a CPU computes a photograph's two views in the time of a dozen patches.
    """
    if scoring != "auto":
        return scoring
    return "exact" if device.type == "cuda" else "shared"


def score_crops(
    network: CamNetwork,
    batches: CropBatches,
    execution: ExecutionParams,
    description: str,
    first: int = 0,
    mirrored: bool = False,
) -> Iterator[np.ndarray]:
    """Score crops in order: yields float32 B x heads x C, batch by batch.

    Args:
        network: in evaluation mode.
        batches: of crops.
        execution: device, threads, workers.
        description: shown with the progress.
        first: batch to begin with.
        mirrored: a crop's scores are the mean with those of its mirror image.

    Raises:
        OpamError: not one crop fits the GPU's memory.
    """

    def scored(crops: torch.Tensor) -> tuple[torch.Tensor]:
        return (probabilities(network, crops, mirrored),)

    for (found,) in forward(network, scored, batches, execution, description, first):
        yield found


def score_crops_shared(
    network: CamNetwork,
    paths: Sequence[str],
    boxes: Sequence[np.ndarray],
    size: int,
    execution: ExecutionParams,
    description: str,
    first: int = 0,
    read: Read = read_image,
    kept: str | None = None,
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
        read: gives the photographs.
        kept: as in `opam.engine.forward.forward_by_maps`: maps are kept by the photograph.

    Yields:
        Of each photograph, float32 N_i x heads x C.
    """
    device = prepare_device(execution)
    network.to(device)
    keeps = kept is not None and device.type == "cpu"
    view_sides = [round(size * each) for each in SHARED_SIDES]

    def views_of(item: int) -> tuple[list[torch.Tensor], tuple[int, int]]:
        return whole_views(read(paths[item]), view_sides)

    def maps_of(item: int, level: int, view: torch.Tensor) -> torch.Tensor:
        def made(_: list[int]) -> Iterator[np.ndarray]:
            yield shared_maps(network, view.to(device))[0].numpy()

        if not keeps:
            return shared_maps(network, view.to(device))
        assert kept is not None
        assert isinstance(read, Photographs)
        digest = digest_of(read.content(paths[item]), view_sides[level])
        [maps] = of_each(kept, [digest], made, np.float32, execution.decoded_gigabytes)
        return torch.from_numpy(maps.copy())[None]

    items = range(first, len(paths))
    largest = sum(3 * (side + STRIDE) ** 2 for side in view_sides)
    loaded = load_ahead(views_of, items, execution.workers, largest)
    shown = progress(loaded, len(items), description)
    for item, (views, sides) in zip(items, shown, strict=True):
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
                maps = maps_of(item, level, view)
                own = scaled[level][chosen].to(device) * maps.shape[3] / view.shape[2]
                scores[chosen] = pooled_probabilities(network, maps, own)
        yield scores.numpy()


def shared_maps(network: CamNetwork, image: torch.Tensor) -> torch.Tensor:
    """float32 1 x channels x h x w of uint8 3 x H x W, sides that the network's stride divides."""
    with torch.inference_mode(), autocast(image.device):
        return network.maps(image[None]).float()


def pooled_probabilities(
    network: CamNetwork, maps: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """Softmax of boxes whose features are pooled from one image's maps.

    Args:
        network: in evaluation mode.
        maps: its `shared_maps`.
        boxes: float N x 4, in cells of these.

    Returns:
        float32 N x heads x C, on the CPU.
    """
    with torch.inference_mode(), autocast(maps.device):
        if not network.rooted:
            # The head is linear, and so is pooling: after it there are fewer maps to pool.
            maps = conv2d(maps, network.head.weight[:, :, None, None], network.head.bias).float()
        bins = torchvision.ops.roi_align(maps, [boxes], POOLED, 1.0, SAMPLES, aligned=True)
        pooled = bins.mean((2, 3))
        logits = network.logits(pooled) if network.rooted else pooled
    return logits.view(-1, network.heads, network.classes).softmax(2).cpu()


def whole_views(
    image: np.ndarray, sides: Sequence[int]
) -> tuple[list[torch.Tensor], tuple[int, int]]:
    """A photograph at several sizes.

    Args:
        image: uint8 H x W x 3.
        sides: of the longer side, pixels; both are rounded to whole `STRIDE`.

    Returns:
        A list of uint8 3 x h x w, and the photograph's width and height.
    """
    height, width = image.shape[:2]
    views = []
    for side in sides:
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
    batches: CropBatches,
    execution: ExecutionParams,
    description: str,
    mirrored: bool = False,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Predict crops by a system: gives batches of what a `Prediction` holds.

    Args:
        network: in evaluation mode; gives a `opam.systems.prediction.Prediction`.
        batches: of crops.
        execution: device, threads, workers.
        description: shown with the progress.
        mirrored: probabilities are the mean with those of the mirror image.

    Returns:
        Probabilities, float32 B x C, and regions in 0..1 of the crop, float32 B x R x 4; R may
        be 0.
    """

    def predicted(crops: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = [network(view) for view in _views(crops, mirrored)]
        own = [each.logits.float().softmax(1) for each in found]
        return torch.stack(own).mean(0), found[0].boxes

    return forward(network, predicted, batches, execution, description)


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
    found = [network(view).float().softmax(2) for view in _views(crops, mirrored)]
    return torch.stack(found).mean(0)


def _views(crops: torch.Tensor, mirrored: bool) -> list[torch.Tensor]:
    return [crops, crops.flip(3)] if mirrored else [crops]
