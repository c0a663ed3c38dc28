"""The pretrained backbone, untouched, under a root of its mean features and linear layers.

Mean responses are skewed: small for most photographs, large for few. Their square roots are nearer
to the normal distribution that a linear discriminant assumes, and rare features count for more
(Perronnin et al., "Improving the Fisher Kernel", ECCV 2010).
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from opam.networks.backbones.backbone import Backbone
from opam.networks.backbones.weights import read_weights, write_weights

POOLING = "root of mean"
"""What the header of the file says of it, so that weights for other features are not read."""


class ProbeNetwork(nn.Module):
    """Backbone, mean over places, square root, linear layers.

    Args:
        backbone: with pretrained weights; its own last maps are what is pooled.
        channels: of these maps.
        classes: number of classes C.
        heads: number of linear layers: one for each kind of crop.
    """

    def __init__(self, backbone: Backbone, channels: int, classes: int, heads: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        self.heads = heads
        self.head = nn.Linear(channels, heads * classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 B x 3 x H x W images to logits, float B x heads x C."""
        return self.head(pooled(self.backbone, images)).view(-1, self.heads, self.classes)


def pooled(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    """uint8 B x 3 x H x W images to the features of a probe, float B x channels.

    A negative mean, which some activation functions allow, keeps its sign.
    """
    mean = backbone.feature_maps(images, None).mean((2, 3))
    return mean.sign() * mean.abs().sqrt()


def write_probes(path: Path, network: ProbeNetwork, settings: dict[str, Any]) -> None:
    """Save weights as safetensors, with ``settings`` (backbone name, sizes) in the header."""
    header = {**settings, "classes": network.classes, "heads": network.heads, "pooling": POOLING}
    write_weights(path, network, header)


def read_probes(path: Path) -> tuple[ProbeNetwork, dict[str, Any]]:
    """Load the probes and their settings, in evaluation mode, channels last.

    Raises:
        OpamError: missing, damaged, or not written by `write_probes`.
    """

    def build(settings: dict[str, Any], state: dict[str, torch.Tensor]) -> ProbeNetwork:
        rows, channels = state["head.weight"].shape
        classes, heads = settings["classes"], settings["heads"]
        if settings["pooling"] != POOLING:
            raise ValueError(f"it pools by {settings['pooling']}")
        if classes < 1 or heads < 1 or classes * heads != rows:
            raise ValueError(f"{heads} x {classes} classes do not fit its weights")
        return ProbeNetwork(Backbone(settings["backbone"]), channels, classes, heads)

    network, settings = read_weights(path, build, "probe network")
    return network.to(memory_format=torch.channels_last), settings
