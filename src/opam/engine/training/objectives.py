"""What is minimised in training, and what is measured on val."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from opam.engine.training.params import TrainingParams

Losses = Callable[
    [Any, torch.Tensor, torch.Tensor, torch.Tensor, TrainingParams],
    tuple[torch.Tensor, torch.Tensor],
]
"""Network, images, labels, heads and params to the mean loss, and bool B: which crops are right."""


@dataclass(frozen=True)
class Objective:
    """What is minimised in training, and what is measured on val."""

    training: Losses
    validation: Losses


def loss_over_heads(
    logits: torch.Tensor, labels: torch.Tensor, heads: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy, each crop by its own head, or by the mean over all heads for -1.

    Args:
        logits: float B x H x C.
        labels: int64 B.
        heads: int64 B, -1..H-1.
        label_smoothing: 0..1.
    """
    count = logits.shape[1]
    losses = cross_entropy(
        logits.float().flatten(0, 1),
        labels.repeat_interleave(count),
        label_smoothing=label_smoothing,
        reduction="none",
    ).view(-1, count)
    return (losses * head_weights(heads, count)).sum(1).mean()


def head_weights(heads: torch.Tensor, count: int) -> torch.Tensor:
    """Float B x H: 1 for a crop's own head, 1 / H everywhere for head -1."""
    own = heads[:, None] == torch.arange(count, device=heads.device)
    return torch.where(heads[:, None] < 0, 1.0 / count, own.float())


def cam_losses(
    network: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    heads: torch.Tensor,
    params: TrainingParams,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of a CAM network, each crop by its own head."""
    logits = network(images)
    loss = loss_over_heads(logits, labels, heads, params.label_smoothing)
    return loss, hits(logits.detach(), labels, heads)


CAM_OBJECTIVE = Objective(cam_losses, cam_losses)


def hits(logits: torch.Tensor, labels: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Bool B: the most probable class is the label, by a crop's own head or the mean of all."""
    weights = head_weights(heads, logits.shape[1])
    probabilities = (logits.float().softmax(2) * weights[:, :, None]).sum(1)
    return probabilities.argmax(1) == labels
