"""Layers that training leaves as they are."""

import torch

from opam.networks.backbones.backbone import Backbone
from opam.pipeline.errors import OpamError


def freeze_until(backbone: Backbone, module: str | None, name: str) -> torch.nn.ModuleList:
    """Train no layer of the backbone's body up to ``module``; in the order they are defined in.

    Args:
        backbone: of which ``requires_grad`` is changed.
        module: name of a module of the body; None: nothing is frozen.
        name: of the parameters, for the error.

    Returns:
        The frozen layers; for batch norm in evaluation mode is theirs.

    Raises:
        OpamError: the body has no such module.
    """
    if module is None:
        return torch.nn.ModuleList()
    layers = [(n, m) for n, m in backbone.body.named_modules() if [*m.parameters(recurse=False)]]
    inside = [place for place, (n, _) in enumerate(layers) if f"{n}.".startswith(f"{module}.")]
    if not inside:
        known = ", ".join(n for n, _ in backbone.body.named_children())
        raise OpamError(
            f"{name}.frozen_until: the backbone has no '{module}'; it has {known}, or take null"
        )
    frozen = torch.nn.ModuleList([m for _, m in layers[: inside[-1] + 1]])
    frozen.requires_grad_(False)
    return frozen


def freeze_batch_norm(network: torch.nn.Module) -> None:
    """Let every batch norm use the statistics it came with, instead of the batch's own."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
