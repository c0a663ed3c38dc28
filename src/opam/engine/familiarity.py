"""What is familiar, from features of training photographs (`opam.networks.familiarity`)."""

import numpy as np
import torch
from torch.nn.functional import normalize

from opam.engine.discriminant.analysis import CPU, Features, Statistics, hold_out
from opam.networks.familiarity import Familiarity, nearness

SHRINKAGE = 0.3
"""Of the covariance: told classes that were left out from others best on twenty of birds."""


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


def _whitened(statistics: Statistics) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The classes' centre, D; D x D that whitens; the classes' directions, unit C x D."""
    means = statistics.means[statistics.there]
    middle = means.mean(0)
    scale = statistics.shrunk(SHRINKAGE).rsqrt()
    directions = normalize((means - middle) * scale)
    return statistics.vectors @ middle, statistics.vectors * scale, directions
