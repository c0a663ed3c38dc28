"""Familiarity: how near a photograph lies to what is known, and how many known ones lie farther.

A discriminant answers with one of its classes whatever it is shown, and can be sure of it. The
question here is another: with the common covariance S of the classes whitened, and the centre g of
their means m_c in the origin, does a photograph lie in the direction of any class's mean?

    z = W^(1/2) (x - g),  z_c = W^(1/2) (m_c - g),  nearness = max over c of cos(z, z_c)

W is the inverse of the shrunk S. Familiarity is the share of photographs of training, each judged
by what was fitted without it, that are no nearer: of photographs of known classes a share a has a
familiarity of at most a, whatever the classes are.
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
    known: torch.Tensor

    def __init__(self, width: int, classes: int, known: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("whitening", torch.zeros(width, width))
        self.register_buffer("directions", torch.zeros(classes, width))
        self.register_buffer("known", torch.zeros(known))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features, float B x D, to familiarities, float B, 0..1; 1 where none could be judged."""
        found = nearness(self.whitened(features), self.directions)
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


def nearness(whitened: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Cosine with the nearest direction, float B of B x D and unit C x D."""
    return (normalize(whitened) @ directions.T).amax(1)
