"""Familiarity: how near a photograph lies to what is known, and how many known ones lie farther.

A discriminant answers with one of its classes whatever it is shown, and can be sure of it. The
questions here are others: with the common covariance S of the classes whitened, and the centre g of
their means m_c in the origin, does a photograph lie in the direction of any class's mean, and does
it lie nearer to that mean than to the centre (relative Mahalanobis distance; Ren et al., "A Simple
Fix to Mahalanobis Distance", 2021)?

    z = W^(1/2) (x - g),  z_c = W^(1/2) (m_c - g)
    direction = max over c of cos(z, z_c),  distance = max over c of z . z_c - |z_c|^2 / 2

W is the inverse of the shrunk S; the distance is the largest logit of a discriminant, and what the
energy of its logits (Liu et al., NeurIPS 2020) comes to. Each is standardised by photographs of
training, each judged by what was fitted without it, and the smaller of both is the nearness.
Familiarity is the share of those photographs that are no nearer: of photographs of known classes a
share a has a familiarity of at most a, whatever the classes are.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from opam.networks.backbones.weights import read_weights


class Familiarity(nn.Module):
    """What is known, and how near what is known lies to it.

    Args:
        width: of features, D.
        classes: C.
        known: photographs that it was measured on.
    """

    centre: torch.Tensor
    whitening: torch.Tensor
    directions: torch.Tensor
    lengths: torch.Tensor
    mean: torch.Tensor
    spread: torch.Tensor
    known: torch.Tensor

    def __init__(self, width: int, classes: int, known: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("whitening", torch.zeros(width, width))
        self.register_buffer("directions", torch.zeros(classes, width))
        self.register_buffer("lengths", torch.zeros(classes))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("spread", torch.ones(2))
        self.register_buffer("known", torch.zeros(known))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features, float B x D, to familiarities, float B, 0..1; 1 where none could be judged."""
        both = scores(self.whitened(features), self.directions, self.lengths)
        found = nearness(both, self.mean, self.spread)
        if not len(self.known):
            return torch.ones_like(found)
        return torch.searchsorted(self.known, found, right=True) / len(self.known)

    def whitened(self, features: torch.Tensor) -> torch.Tensor:
        """Features, float B x D, seen from the classes' centre, as their covariance sees them."""
        return (features.float() - self.centre) @ self.whitening


def read_familiarity(path: Path) -> tuple[Familiarity, dict[str, Any]]:
    """What `fit_probes` wrote, and what it was fitted on: ``input_size``, ``pooled``.

    Raises:
        OpamError: missing, damaged, or not written by this project.
    """

    def build(_: dict[str, Any], state: dict[str, torch.Tensor]) -> Familiarity:
        classes, width = state["directions"].shape
        return Familiarity(width, classes, len(state["known"]))

    return read_weights(path, build, "familiarity")


def scores(whitened: torch.Tensor, directions: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Direction and distance of whitened features, float B x 2 of B x D.

    Args:
        whitened: seen from the centre.
        directions: of the classes' means, unit C x D.
        lengths: of these means, C.
    """
    along = whitened @ directions.T
    cosines = normalize(whitened) @ directions.T
    return torch.stack([cosines.amax(1), (lengths * along - lengths**2 / 2).amax(1)], 1)


def nearness(both: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """The smaller standardised one of `scores`, float B."""
    return ((both - mean) / spread).amin(1)
