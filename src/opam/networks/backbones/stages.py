"""A body cut into stages behind the strides 8 and 16, so that it can be run from one of them on."""

from itertools import pairwise
from math import log2
from typing import Any

import torch
from torch import nn

from opam.pipeline.errors import OpamError
from opam.pipeline.libraries import timm

STRIDES = (8, 16, 32)


class Stage(nn.Module):
    """Some modules of a body, one after the other; B x C x h x w in and out.

    Args:
        modules: in the order in which the body calls them.
        enter, leave: whether what the first reads and the last gives is B x h x w x C.
    """

    def __init__(self, modules: list[nn.Module], enter: bool = False, leave: bool = False) -> None:
        super().__init__()
        self.steps = nn.Sequential(*modules)
        self.enter = enter
        self.leave = leave

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Float B x C x h x w in and out."""
        maps = self.steps(maps.permute(0, 2, 3, 1) if self.enter else maps)
        return maps.permute(0, 3, 1, 2) if self.leave else maps


def stages_of(body: Any) -> list[Stage]:
    """Three stages that share their modules with ``body``; the last maps of them are its own.

    Raises:
        OpamError: it is more than its modules one after the other, or its maps do not grow coarser
            stage by stage, as in a plain ViT.
    """
    if isinstance(body, timm.models.VGG):
        # It has lost its last pooling, and begins each stage behind one.
        modules = list(body.features)
        pools = [i for i, module in enumerate(modules) if isinstance(module, nn.MaxPool2d)]
        bounds = [0, pools[2] + 1, pools[3] + 1, len(modules)]
        return [Stage(modules[start:end]) for start, end in pairwise(bounds)]
    training = [module for module in body.modules() if module.training]
    body.eval()
    try:
        with torch.inference_mode():
            found = _cut(body)
    except Exception:  # each family has its own
        found = None
    finally:
        for module in training:
            module.training = True
    if found is None:
        raise OpamError(
            f"backbone.name: '{body.pretrained_cfg['architecture']}' cannot be run in stages; take "
            "a network of coarser and coarser maps, a ResNet, EfficientNet, ConvNeXt or Swin say"
        )
    return found


def _cut(body: Any) -> list[Stage] | None:
    size = body.pretrained_cfg["input_size"]
    device = next(body.parameters()).device
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)).to(device)
    modules: list[nn.Module] = []
    last: list[bool] = []
    strides: list[int] = []

    def run(module: nn.Module, maps: torch.Tensor) -> torch.Tensor:
        """Run and write down; what holds several stages one after the other, child by child."""
        found = module(maps)
        channels_last = found.shape[1] == found.shape[2] != found.shape[3]
        stride = 2 ** round(log2(size[1] / found.shape[1 if channels_last else 2]))
        if isinstance(module, nn.Sequential) and stride > 2 * (strides[-1] if strides else 1):
            for child in module:
                maps = run(child, maps)
            return maps
        modules.append(module)
        last.append(channels_last)
        strides.append(stride)
        return found

    maps = image
    for child in _called(body, image):
        maps = run(child, maps)
    if not torch.equal(maps, body.forward_features(image)) or strides != sorted(strides):
        return None
    if not {*STRIDES} <= {*strides} or strides[-1] != STRIDES[-1]:
        return None
    bounds = [0, *(len(strides) - strides[::-1].index(stride) for stride in STRIDES)]
    return [
        Stage(modules[start:end], start > 0 and last[start - 1], last[end - 1])
        for start, end in pairwise(bounds)
    ]


def _called(body: Any, image: torch.Tensor) -> list[nn.Module]:
    """The body's own modules in the order in which it calls them."""
    called: dict[nn.Module, None] = {}
    hooks = [
        each.register_forward_hook(lambda module, *_: called.setdefault(module))
        for each in body.children()
    ]
    try:
        body.forward_features(image)
    finally:
        for hook in hooks:
            hook.remove()
    return list(called)
