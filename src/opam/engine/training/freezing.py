"""Layers that training leaves as they are."""

from typing import cast

import torch

from opam.networks.backbones.backbone import Backbone
from opam.pipeline.errors import OpamError


def backbones_of(network: torch.nn.Module) -> list[Backbone]:
    """The backbones of a network, two of a B-CNN with two streams; what has none is one."""
    named = (getattr(network, name, None) for name in ("backbone", "second_backbone"))
    return [each for each in named if each is not None] or [cast(Backbone, network)]


def freeze_until(network: torch.nn.Module, module: str | None, name: str) -> torch.nn.ModuleList:
    """Train no layer of a backbone's body up to ``module``; in the order they are defined in.

    Args:
        network: of whose backbones ``requires_grad`` is changed.
        module: name of a module of each body; None: nothing is frozen.
        name: of the parameters, for the error.

    Returns:
        The frozen layers; for batch norm in evaluation mode is theirs.

    Raises:
        OpamError: a body has no such module.
    """
    frozen = torch.nn.ModuleList()
    for backbone in backbones_of(network) if module else []:
        frozen.extend(_layers_until(backbone, str(module), name))
    return frozen.requires_grad_(False)


def _layers_until(backbone: Backbone, module: str, name: str) -> list[torch.nn.Module]:
    layers = [(n, m) for n, m in backbone.body.named_modules() if [*m.parameters(recurse=False)]]
    inside = [place for place, (n, _) in enumerate(layers) if f"{n}.".startswith(f"{module}.")]
    if not inside:
        known = ", ".join(n for n, _ in backbone.body.named_children())
        raise OpamError(
            f"{name}.frozen_until: the backbone has no '{module}'; it has {known}, or take null"
        )
    return [m for _, m in layers[: inside[-1] + 1]]


def freeze_batch_norm(network: torch.nn.Module) -> None:
    """Let the backbones' batch norm use the statistics it came with, not the batch's own."""
    for module in (each for backbone in backbones_of(network) for each in backbone.modules()):
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
