"""Photographs of one class taken in one burst: not copies, but next to each other in all but name.

A photograph whose burst was trained on is no test of what was learnt. Bursts are found by the time
of taking, and by features of a network that is always the same, so that two backbones are compared
on one split. Two photographs are near when their distance is well below what is usual in their
class. Average linkage keeps a class of like photographs from becoming one chain.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from opam.networks.backbones import backbone
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.backbones.weights import state_digest
from opam.photographs.descriptors import opened
from opam.photographs.groups import joined
from opam.pipeline.device import ExecutionParams, prepare_device
from opam.pipeline.environment import installed_versions
from opam.pipeline.kept import of_each, version_of
from opam.pipeline.progress import progress

NETWORK = BackboneParams(name="tf_efficientnet_lite0", weights="package")
LAYER, CELLS = "blocks.4", 4
"""Its maps, averaged in 4 x 4 cells, say where in the picture what is; the last ones, averaged over
all of it, say what it shows."""
BATCH = 64
"""Pictures a batch; no parameter, because it changes the last bits."""

SECONDS = 60.0
"""Between one photograph of a burst and the next, at most: who turns round an object, or waits for
a bird to turn, does so within a minute; another object or another place takes longer."""

NEAR = 0.5
"""Distance over the usual distance, at most. At 0.5, 10% of the photographs of Oxford Flowers 1-34
are grouped (the same plant once more), 4 to 5% of CUB's, none of the drawn birds'."""
FLOOR = 0.5
"""The usual distance of a class is its median, but no less than this times the set's median: a
class that is one long burst has a small median of its own."""
MEDIAN_ROWS, ROWS = 1000, 512
"""Photographs, evenly chosen, that a median is of; and that are compared at a time."""

NONE = np.empty((0, 2), dtype=np.int64)


def in_time(labels: np.ndarray, taken: np.ndarray, cameras: np.ndarray) -> np.ndarray:
    """Pairs of photographs of one class that one camera took within `SECONDS`.

    Where that would join all photographs of a class, it is not believed (a clock that stands still,
    a machine that never pauses), and none of that class are paired; that is said on stderr.

    Args:
        labels: N.
        taken: float N, seconds; not a number where unknown.
        cameras: N.

    Returns:
        int64 K x 2.
    """
    rows = np.flatnonzero(np.isfinite(taken))
    dated = pd.DataFrame({"label": labels[rows], "camera": cameras[rows], "taken": taken[rows]})
    dated["row"] = rows
    found = [NONE]
    for label, members in dated.groupby("label"):
        chains = [
            pair
            for _, own in members.sort_values(["taken", "row"]).groupby("camera")
            for pair, gap in zip(pairwise(own["row"]), own["taken"].diff()[1:], strict=True)
            if gap <= SECONDS
        ]
        if 0 < len(chains) < (labels == label).sum() - 1:
            found.append(np.array(chains, dtype=np.int64))
        elif chains:
            print(
                f"bursts: all photographs of class '{label}' were taken within a minute of each "
                "other, by their own dates; these are not believed, and not kept together",
                file=sys.stderr,
                flush=True,
            )
    return np.vstack(found)


def describe(pictures: Sequence[bytes], execution: ExecutionParams) -> list[np.ndarray]:
    """What the network says of each photograph, as two tables of features; kept by content.

    Args:
        pictures: as `descriptors.Descriptor` holds them.
        execution: device, threads, room for what is kept; 32 bits throughout, for CPU and GPU to
            agree.

    Returns:
        float32 N x D: what it shows; and where in it what is.
    """
    device = prepare_device(execution)
    network = create_backbone(NETWORK).eval().to(memory_format=torch.channels_last).to(device)
    how = state_digest(network.body), execution.same_bits(), installed_versions()
    version = version_of("bursts", [Path(__file__), *_backbones()], *how)
    digests = [hashlib.sha256(each).hexdigest() for each in pictures]
    outputs: list[torch.Tensor] = []
    hook = network.body.get_submodule(LAYER).register_forward_hook(
        lambda _m, _i, output: outputs.append(output)
    )

    def computed(places: list[int]) -> Iterator[np.ndarray]:
        batches = range(0, len(places), BATCH)
        for start in progress(batches, len(batches), "finding bursts", "batches"):
            own = [opened(pictures[place]) for place in places[start : start + BATCH]]
            images = np.stack([*own, *own[-1:] * (BATCH - len(own))])  # as many, the same bits
            with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
                maps = network(torch.from_numpy(images).permute(0, 3, 1, 2).to(device))
            cells = torch.nn.functional.adaptive_avg_pool2d(outputs.pop(), CELLS)
            found = torch.cat([maps.mean((2, 3)), cells.flatten(1)], 1)[: len(own)]
            yield from found.cpu().numpy()[:, None, None]

    try:
        room = execution.decoded_gigabytes
        found = np.concatenate([*of_each(version, digests, computed, np.float32, room)])[:, 0]
    finally:
        hook.remove()
    return [found[:, : network.channels], found[:, network.channels :]]


def _backbones() -> list[Path]:
    return sorted(Path(backbone.__file__).parent.glob("*.py"))


def in_features(labels: np.ndarray, features: Sequence[np.ndarray]) -> np.ndarray:
    """Pairs of photographs of one class that are near in all features together.

    Args:
        labels: N.
        features: float N x D each.

    Returns:
        int64 K x 2.
    """
    units = [_unit(each) for each in features]
    usual = [_median(each) for each in units]
    found = [NONE]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        own = [each[members] for each in units]
        scales = [
            max(_median(each), FLOOR * set_median, 1e-6)
            for each, set_median in zip(own, usual, strict=True)
        ]
        near = [NONE]
        for start in range(0, len(members), ROWS):
            one = [each[start : start + ROWS] for each in own]
            pairs = np.argwhere(_relative(one, own, scales) <= NEAR)
            near.append(pairs + np.array([start, 0]))
        # Average linkage joins none that single linkage does not, and that is quickly found.
        chain = joined(len(members), near)
        order = np.argsort(chain, kind="stable")
        found += [
            members[_averaged([each[linked] for each in own], scales, linked)]
            for linked in np.split(order, np.cumsum(np.bincount(chain))[:-1])
            if len(linked) > 1
        ]
    return np.vstack(found)


def _averaged(units: list[np.ndarray], scales: list[float], rows: np.ndarray) -> np.ndarray:
    """Pairs of ``rows`` that average linkage joins, int64 K x 2; ``units`` are of these rows."""
    apart = _relative(units, units, scales)
    apart = (apart + apart.T) / 2
    np.fill_diagonal(apart, 0)
    cluster = fcluster(linkage(squareform(apart, checks=False), "average"), NEAR, "distance")
    _, first, number = np.unique(cluster, return_index=True, return_inverse=True)
    pairs = np.column_stack([rows[first[number]], rows])
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1 about the set's mean, of roots (as `opam.networks.probe_network`)."""
    roots = np.sign(features) * np.sqrt(np.abs(features, dtype=np.float64))
    roots -= roots.mean(0)
    lengths = np.linalg.norm(roots, axis=1, keepdims=True)
    return (roots / np.maximum(lengths, 1e-9)).astype(np.float32)


def _median(units: np.ndarray) -> float:
    """The median distance (1 minus cosine) of two rows; of one row 0."""
    some = units[np.unique(np.linspace(0, len(units) - 1, MEDIAN_ROWS).astype(np.int64))]
    apart = (1 - some @ some.T)[np.triu_indices(len(some), 1)]
    return float(np.median(apart)) if len(apart) else 0.0


def _relative(one: list[np.ndarray], other: list[np.ndarray], scales: list[float]) -> np.ndarray:
    """Distances over the usual ones: the geometric mean over the features, float64 M x N.

    Rounded, because the last bits depend on the machine.
    """
    ratios = [
        np.maximum(1 - a @ b.T, 0).astype(np.float64) / scale
        for a, b, scale in zip(one, other, scales, strict=True)
    ]
    return np.round(np.prod(ratios, axis=0) ** (1 / len(ratios)), 4)


def bursts(images: pd.DataFrame, execution: ExecutionParams) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of photographs of one burst, by time and by features, int64 K x 2 each.

    Each given split is looked at by itself, and test not at all: nothing is drawn from it.

    Args:
        images: N rows with ``class_name``, ``split`` (missing: to be drawn) and the columns of
            `descriptors.Descriptor`.
        execution: as for `describe`.
    """
    by_time, by_features = [NONE], [NONE]
    given = images["split"].fillna("")
    for split in sorted(set(given) - {"test"}):
        rows = np.flatnonzero(given == split)
        own = images.iloc[rows]
        labels = own["class_name"].to_numpy(object)
        by_time.append(
            rows[in_time(labels, own["taken"].to_numpy(), own["camera"].to_numpy(object))]
        )
        by_features.append(rows[in_features(labels, describe(own["picture"].to_list(), execution))])
    return np.vstack(by_time), np.vstack(by_features)


def told(pairs: tuple[np.ndarray, np.ndarray], images: pd.DataFrame) -> str:
    """What was grouped, in one line."""
    group = joined(len(images), pairs)
    sizes = np.bincount(group)
    several = sizes[sizes > 1]
    if not len(several):
        return "bursts: none found"
    largest = images["image_id"].iloc[np.flatnonzero(group == sizes.argmax())[0]]
    kinds = [len(np.unique(each)) for each in pairs]
    return (
        f"bursts: {several.sum()} photographs in {len(several)} group{'s' * (len(several) > 1)} "
        f"({kinds[0]} by the time of taking, {kinds[1]} by features), the largest of {sizes.max()} "
        f"({largest} ...); each is kept on one side of splits and folds"
    )
