"""The optimizer, and the running average of what it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from opam.engine.training.params import TrainingParams
from opam.networks.backbones.backbone import Backbone
from opam.pipeline.libraries import without_compiler


@without_compiler()
def create_optimizer(network: Any, params: TrainingParams, fused: bool) -> torch.optim.Optimizer:
    """Stochastic gradient descent or AdamW on all parameters of ``network``.

    Each group has a "factor": its learning rate over ``params.rate``.

    Args:
        network: its ``parameter_groups()`` are "backbone" and "head".
        params: optimizer, rates, decay.
        fused: in one kernel, on a GPU.
    """
    groups = network.parameter_groups()
    head = {"params": groups["head"], "factor": params.head_rate_factor}
    found = [{"params": groups["backbone"], "factor": 1.0}, head]
    if params.optimizer == "adamw" or params.layer_decay < 1:
        found = [*_by_layer(network, params), *_by_kind(head, params)]
    common: dict[str, Any] = {
        "lr": params.rate,
        "weight_decay": params.weight_decay,
        "fused": fused,
    }
    if params.optimizer == "adamw":
        return torch.optim.AdamW(found, betas=(params.momentum, 0.999), **common)
    return torch.optim.SGD(found, momentum=params.momentum, **common)


def _by_layer(network: nn.Module, params: TrainingParams) -> list[dict[str, Any]]:
    """The bodies' parameters that learn, a group for each layer and kind, as timm divides them."""
    # Here, because most trainings do without it and it loads every optimizer.
    from timm.optim._param_groups import param_groups_layer_decay

    found: list[dict[str, Any]] = []
    for module in network.modules():
        if isinstance(module, Backbone):
            apart: set[str] = getattr(module.body, "no_weight_decay", set)()
            found += param_groups_layer_decay(
                module.body, params.weight_decay, apart, layer_decay=params.layer_decay
            )
    return [
        {
            "params": group["params"],
            "weight_decay": group["weight_decay"],
            "factor": group["lr_scale"],
        }
        for group in found
    ]


def _by_kind(group: dict[str, Any], params: TrainingParams) -> list[dict[str, Any]]:
    """Matrices, which decay, and vectors (biases, norms), which do not."""
    kinds = {params.weight_decay: lambda each: each.ndim > 1, 0.0: lambda each: each.ndim <= 1}
    found = [
        {**group, "params": [*filter(kind, group["params"])], "weight_decay": decay}
        for decay, kind in kinds.items()
    ]
    return [each for each in found if each["params"]]


class RunningAverage:
    """The mean of a network's weights over its last steps, each weighing less than the next.

    In the first steps it forgets faster, so that it does not remember where the network began.

    Args:
        network: followed; only what learns, and statistics, are averaged.
        share: that the average keeps in a step, 0..1.
    """

    def __init__(self, network: nn.Module, share: float) -> None:
        self.own: list[torch.Tensor] = [p for p in network.parameters() if p.requires_grad]
        self.own += [b for b in network.buffers() if b.is_floating_point()]
        self.values = [each.detach().clone() for each in self.own]
        self.share = share
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in what the network is now."""
        self.steps += 1
        share = min(self.share, self.steps / (self.steps + 9))
        for value, own in zip(self.values, self.own, strict=True):
            value.lerp_(own.detach(), 1 - share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network is the average in the with-block, and itself again behind it."""
        before = [each.detach().clone() for each in self.own]
        self.write(self.values)
        yield
        self.write(before)

    @torch.no_grad()
    def write(self, values: list[torch.Tensor]) -> None:
        """Make the network's weights these."""
        for own, value in zip(self.own, values, strict=True):
            own.copy_(value)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"values": self.values, "steps": self.steps}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.steps = state["steps"]
        for value, kept in zip(self.values, state["values"], strict=True):
            value.copy_(kept)
