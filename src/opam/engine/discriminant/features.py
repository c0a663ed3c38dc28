"""Features of boxes, kept by content: a photograph that was looked at is not looked at again.

Every box is seen several times, cut a little differently each time, for a discriminant to know how
much a class varies. What is drawn depends on the photograph and its box alone, and every batch has
the same shape: so features are the same bytes whichever other photographs there are.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from opam.engine import forward
from opam.engine.crops import batches as batching
from opam.engine.crops.cutting import Read
from opam.networks import cam_network
from opam.networks.backbones.backbone import Backbone
from opam.networks.cam_network import Pooled
from opam.pipeline.artifacts import BOX
from opam.pipeline.device import ExecutionParams
from opam.pipeline.kept import digest_of, of_each
from opam.pipeline.resume import in_shards

AREAS = (0.35, 1.4)
"""Area of a random view over that of its box."""
ASPECT = 0.25
"""Natural logarithm by which a random view is drawn out along one side, at most."""
BLOCK = 256
"""Boxes whose features are in memory together."""


def random_views(box: np.ndarray, views: int, generator: np.random.Generator) -> np.ndarray:
    """A box twice, and boxes like it, float64 (2 + views) x 4; every other one is to be mirrored.

    Args:
        box: x0, y0, x1, y1.
        views: how many are drawn; they may reach over the box's borders.
        generator: drawn from.
    """
    x0, y0, x1, y1 = np.asarray(box, dtype=np.float64)
    side = np.sqrt(generator.uniform(*AREAS, views))
    stretch = np.exp(generator.uniform(-ASPECT, ASPECT, views))
    sizes = np.array([x1 - x0, y1 - y0]) * np.stack([side * stretch, side / stretch], 1)
    slack = np.abs(np.array([x1 - x0, y1 - y0]) - sizes)
    middles = np.array([x0 + x1, y0 + y1]) / 2 + generator.uniform(-0.5, 0.5, (views, 2)) * slack
    drawn = np.hstack([middles - sizes / 2, middles + sizes / 2])
    return np.vstack([np.array([[x0, y0, x1, y1]] * 2), drawn])


def features_of(
    backbone: Backbone,
    weights: str,
    rows: pd.DataFrame,
    input_size: int,
    pooled: Pooled,
    views: int | None,
    seed: int,
    execution: ExecutionParams,
    name: str,
    read: Read,
) -> Iterator[np.ndarray]:
    """Yield features of all views of rows' boxes, float32 n x V x D, in their order.

    n is `BLOCK`, but of the last ones.

    What was computed before on this machine is taken from where `opam.pipeline.kept` keeps it.
    Asked again, before `opam.pipeline.resume.finish` for `work_on`, it computes nothing.

    Args:
        backbone: its own last maps or class tokens are what is read.
        weights: `opam.networks.backbones.weights.state_digest` of its body.
        rows: ``image_id, path, sha256, width, height`` and a box each.
        input_size: side of a crop, pixels.
        pooled: which of `opam.networks.cam_network.pooled_features`.
        views: drawn beside the box and its mirror image, V - 2; None: the box alone.
        seed: of the views.
        execution: device, threads, workers, and the room for what is kept.
        name: of the boxes, for resuming and progress.
        read: gives the photographs.
    """
    each = 1 if views is None else 2 + views
    size = forward.whole_groups(each, execution)
    photographs = size // each
    pieces = math.ceil(len(rows) / photographs)
    code = Path(cam_network.__file__), Path(__file__)
    version = forward.kept_as("features", execution, weights, input_size, pooled, each, code=code)
    backbone.to(memory_format=torch.channels_last)

    def features(own: pd.DataFrame) -> Iterator[np.ndarray]:
        digests, boxes = _digests_and_views(own, seed, each)

        def computed(places: list[int]) -> Iterator[np.ndarray]:
            paths = own["path"].iloc[places].tolist()
            sizes = input_size, size, each
            how = pooled, execution, name, read
            chosen = [boxes[place] for place in places]
            return _computed(backbone, paths, chosen, sizes, *how)

        found = of_each(version, digests, computed, np.float32, execution.decoded_gigabytes)
        return (each[0] for each in found)

    def rows_from(first: int) -> Iterator[pd.DataFrame]:
        for start in range(first, pieces, execution.shard_size):
            own = rows.iloc[start * photographs : (start + execution.shard_size) * photographs]
            found = zip(own["image_id"], features(own), strict=True)
            while piece := [*islice(found, photographs)]:
                flat = [(image_id, each.reshape(-1)) for image_id, each in piece]
                yield pd.DataFrame(flat, columns=["image_id", "features"])

    inputs = {"features": version, "boxes": f"{seed} {hash_of(rows)}"}
    shards = in_shards(work_on(name), inputs, "view_features", pieces, rows_from, execution)
    found = (
        np.stack(shard["features"].to_list()).reshape(len(shard), each, -1) for shard in shards
    )
    yield from _in_blocks(found)


def _in_blocks(features: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """`BLOCK` boxes each, however many come together: sums over them get the same bits."""
    waiting: list[np.ndarray] = []
    for piece in features:
        waiting.append(piece)
        while sum(map(len, waiting)) >= BLOCK:
            together = np.concatenate(waiting)
            yield together[:BLOCK]
            waiting = [together[BLOCK:]]
    if any(map(len, waiting)):
        yield np.concatenate(waiting)


def hash_of(rows: pd.DataFrame) -> str:
    """Of photographs and boxes, in their order."""
    own = rows[["image_id", "sha256", "width", "height", *BOX]]
    hashed = pd.util.hash_pandas_object(own, index=False).to_numpy()
    return hashlib.sha256(hashed.tobytes()).hexdigest()


def work_on(name: str) -> str:
    """What `opam.pipeline.resume` calls the features of a kind of crop."""
    return f"features_{name.replace(' ', '_')}"


def _digests_and_views(
    rows: pd.DataFrame, seed: int, each: int
) -> tuple[list[str], list[np.ndarray]]:
    """Of each row the digest that its features are kept under, and its views."""
    digests, views = [], []
    photographs = rows[["sha256", "width", "height"]].to_numpy(object)
    for photograph, box in zip(photographs, rows[BOX].to_numpy(), strict=True):
        digest = digest_of(*photograph, box.tolist(), seed)
        generator = np.random.default_rng(int(digest[:16], 16))
        digests.append(digest)
        views.append(random_views(box, max(0, each - 2), generator)[:each])
    return digests, views


def _computed(
    backbone: Backbone,
    paths: list[str],
    boxes: list[np.ndarray],
    sizes: tuple[int, int, int],
    pooled: Pooled,
    execution: ExecutionParams,
    name: str,
    read: Read,
) -> Iterator[np.ndarray]:
    """Features of each photograph's boxes, float32 1 x V x D; ``sizes``: of crop, batch and V."""
    input_size, size, each = sizes
    mirrored = [view % 2 == 1 for view in range(each)]
    batches = batching.CropBatches(paths, boxes, input_size, size, mirrored, read=read)

    def features(batch: torch.Tensor) -> tuple[torch.Tensor]:
        whole = forward.whole_batch(batch, size)
        return (cam_network.pooled_features(backbone, whole, pooled)[: len(batch)].float(),)

    how = execution, f"features of {name}"
    for (found,) in forward.forward(backbone, features, batches, *how):
        yield from found.reshape(-1, 1, each, found.shape[1])
