"""Batch norm in the convolution before it, wherever neither learns.

With its statistics fixed, batch norm scales and shifts each channel, which the convolution's own
weights and bias can do as well: w' = w s and b' = b - m s + b_c s, where s = g / sqrt(v + e). What
is saved is a pass over the feature maps.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from opam.pipeline.libraries import timm


class _Pair:
    """A convolution, and the batch norm that alone reads what it gives."""

    def __init__(self, convolution: Any, norm: Any) -> None:
        self.convolution = convolution
        self.norm = norm
        self.apart = False
        # In place of the modules' own; not as attributes, which would make modules of them.
        convolution.__dict__.update(pair=self, forward=self.convolve)
        norm.__dict__.update(pair=self, forward=self.normalise)

    def lies_in(self, modules: set[nn.Module]) -> bool:
        return self.convolution in modules and self.norm in modules

    def is_folded(self) -> bool:
        learns = self.convolution.weight.requires_grad or self.norm.weight.requires_grad
        return not (self.apart or self.norm.training or (learns and torch.is_grad_enabled()))

    def convolve(self, maps: torch.Tensor) -> torch.Tensor:
        convolution, norm = self.convolution, self.norm
        if not self.is_folded():
            return type(convolution).forward(convolution, maps)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * scale
        if convolution.bias is not None:
            bias = bias + convolution.bias * scale
        # Found before the parameters of the same name, for the one call.
        own = {"weight": convolution.weight * scale.view(-1, 1, 1, 1), "bias": bias}
        convolution.__dict__.update(own)
        try:
            return type(convolution).forward(convolution, maps)
        finally:
            for name in own:
                del convolution.__dict__[name]

    def normalise(self, maps: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        if not self.is_folded():
            return type(norm).forward(norm, maps)
        return norm.act(norm.drop(maps)) if isinstance(norm, timm.layers.BatchNormAct2d) else maps


def fold(body: Any) -> None:
    """Fold every batch norm of a timm model that can be.

    A batch norm is folded whenever neither it nor the convolution before it learns: in evaluation
    mode without gradients, and in frozen layers. What the model gives stays the same but for
    rounding; its parameters are untouched.
    """
    for convolution, norm in _pairs(body):
        _Pair(convolution, norm)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """What ``module`` gives is its own meanwhile: no batch norm behind it is folded into it."""
    inside = set(module.modules())
    across = [
        each.__dict__["pair"]
        for each in inside
        if "pair" in each.__dict__ and not each.__dict__["pair"].lies_in(inside)
    ]
    for pair in across:
        pair.apart = True
    try:
        yield
    finally:
        for pair in across:
            pair.apart = False


def _pairs(body: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Each convolution with the batch norm that alone reads what it gives."""
    given: dict[int, tuple[nn.Module, torch.Tensor]] = {}
    found: list[tuple[nn.Module, nn.Module, Any]] = []

    def gave(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        given[id(output)] = module, output

    def reads(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if id(inputs[0]) in given:
            convolution, output = given[id(inputs[0])]
            found.append((convolution, module, output.grad_fn))

    hooks = []
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(gave))
        elif _is_plain(module):
            hooks.append(module.register_forward_pre_hook(reads))
    training = [module for module in body.modules() if module.training]
    body.eval()
    device = next(body.parameters()).device
    size = body.pretrained_cfg["input_size"]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            image = torch.zeros(1, *size, device=device, requires_grad=True)
            readers = _readers(body.forward_features(image))
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    calls = Counter(id(convolution) for convolution, _, _ in found)
    return [
        (convolution, norm)
        for convolution, norm, node in found
        if readers[node] == 1 and calls[id(convolution)] == 1
    ]


def _is_plain(module: nn.Module) -> bool:
    known = type(module) is nn.BatchNorm2d or isinstance(module, timm.layers.BatchNormAct2d)
    return known and module.running_var is not None and module.weight is not None


def _readers(output: torch.Tensor) -> Counter[Any]:
    """How many steps read what each step of the autograd graph gives."""
    counts: Counter[Any] = Counter()
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for step, _ in node.next_functions:
            counts[step] += 1
            waiting.append(step)
    return counts
