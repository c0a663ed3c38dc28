"""What is familiar, from features of training photographs (`opam.networks.familiarity`)."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from opam.engine.crops.cutting import Read
from opam.engine.discriminant.analysis import CPU, Features, Statistics, hold_out
from opam.networks.familiarity import Familiarity, nearness
from opam.photographs.decoding.images import bounded_size, resized
from opam.pipeline.artifacts import BOX

SHRINKAGE = 0.3
"""Of the covariance: told classes that were left out from others best on twenty of birds."""
SIDE = 128
"""Pixels that the longer side of a known object's picture has at most."""
QUALITY = 80
"""Of its JPEG."""


def fit_familiarity(
    features: Features,
    labels: np.ndarray,
    classes: int,
    seed: int,
    groups: np.ndarray | None = None,
    device: torch.device = CPU,
) -> Familiarity:
    """Of the first view of all boxes; arguments as `opam.engine.discriminant.analysis`'s fit."""
    labels = np.array(labels)
    held = hold_out(features, labels, classes, seed, groups, device)
    without = {number: _whitened(statistics) for number, statistics in held.without.items()}
    found = []
    for rows, boxes in held.first_views(features(), device):
        near = torch.zeros(len(boxes), device=device)
        for number, (centre, whitening, directions) in without.items():
            own = torch.from_numpy(held.fold[rows] == number).to(device)
            near[own] = nearness((boxes[own] - centre) @ whitening, directions)
        found.append(near.cpu().numpy())
    known = np.sort(np.concatenate(found)[held.known])
    centre, whitening, directions = _whitened(held.whole)
    made = Familiarity(len(centre), len(directions), len(known))
    state = {
        "centre": held.centre + centre * held.spread,
        "whitening": whitening / held.spread[:, None],
        "directions": directions,
        "known": torch.from_numpy(known),
    }
    made.load_state_dict({name: value.float() for name, value in state.items()})
    return made.eval()


def known_photographs(
    familiarity: Familiarity, features: Features, objects: pd.DataFrame, read: Read
) -> Iterator[pd.DataFrame]:
    """Yield what the bundle shows of the photographs that it knows, in the order of ``objects``.

    Args:
        familiarity: fitted on ``features``, on the CPU.
        features: of the first view of each object.
        objects: ``image_id, path, label`` and a box each.
        read: gives the photographs.

    Yields:
        ``image_id, label``; ``features``, float16 D: `Familiarity.whitened`, of length 1;
        ``picture``: the object, a JPEG file.
    """
    start = 0
    for piece in features():
        rows = objects.iloc[start : start + len(piece)]
        start += len(piece)
        own = normalize(familiarity.whitened(torch.from_numpy(piece[:, 0].copy())))
        yield rows[["image_id", "label"]].assign(
            features=list(own.half().numpy()),
            picture=[picture_of(read(row.path), row) for row in rows.itertuples()],
        )


def picture_of(photograph: np.ndarray, box: Any) -> bytes:
    """What a box, ``x0`` to ``y1``, shows of uint8 H x W x 3: a JPEG file of `SIDE` at most."""
    x0, y0, x1, y1 = (getattr(box, side) for side in BOX)
    small = resized(photograph[y0:y1, x0:x1], bounded_size(x1 - x0, y1 - y0, SIDE))
    _, written = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return written.tobytes()


def _whitened(statistics: Statistics) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The classes' centre, D; D x D that whitens; the classes' directions, unit C x D."""
    means = statistics.means[statistics.there]
    middle = means.mean(0)
    scale = statistics.shrunk(SHRINKAGE).rsqrt()
    directions = normalize((means - middle) * scale)
    return statistics.vectors @ middle, statistics.vectors * scale, directions
