"""A backbone under global average pooling and a linear layer: its class activation map is exact.

The layer was trained, or it is a discriminant that was computed. A discriminant reads the means'
square roots: mean responses are skewed, small for most photographs, large for few; their roots are
nearer to the normal distribution that it assumes, and rare features count for more (Perronnin et
al., "Improving the Fisher Kernel", ECCV 2010).
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from opam.networks.backbones.backbone import Backbone
from opam.networks.backbones.bodies import as_maps, last_maps, outline
from opam.networks.backbones.weights import read_weights, write_weights
from opam.pipeline.errors import OpamError
from opam.pipeline.libraries import without_compiler

KNOWN = 6
"""Layers that an error names."""
Pooled = Literal["mean", "class_token", "both"]
"""What a discriminant reads of a crop: the means of its maps, its class token, or both."""
POOLING: dict[str, Pooled] = {
    "root of mean": "mean",
    "root of class token": "class_token",
    "root of mean and class token": "both",
}
"""What the header of the file says of a discriminant's pooling."""
LEAST = 1e-2
"""Share of a feature's mean size to which its mean counts as cancelled out."""


class CamNetwork(nn.Module):
    """Backbone, global average pooling, linear layers (Zhou et al., CVPR 2016).

    Args:
        backbone: images to feature maps.
        classes: number of classes C.
        heads: number of linear layers on the same features. PartNet has one for each cluster
            of parts, most other networks one.
        rooted: number of the body's own `pooled_features`, which the layers read, as discriminants
            do; None: the layers read the means of the backbone's maps.
        pooled: which features these are.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        heads: int = 1,
        rooted: int | None = None,
        pooled: Pooled = "mean",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        self.heads = heads
        self.rooted = rooted is not None
        self.pooled = pooled
        with warnings.catch_warnings(action="ignore"):  # of no heads there is nothing to draw
            self.head = nn.Linear(rooted or backbone.channels, heads * classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 B x 3 x H x W images to logits, float B x heads x C."""
        if not self.rooted:
            return self.logits(self.maps(images).mean((2, 3)))
        features = pooled_features(self.backbone, images, self.pooled)
        return self.head(features).view(-1, self.heads, self.classes)

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """What is pooled of uint8 B x 3 x H x W images, float B x channels x h x w."""
        return self.backbone.feature_maps(images, None) if self.rooted else self.backbone(images)

    def logits(self, means: torch.Tensor) -> torch.Tensor:
        """Logits of means of `maps`, float B x channels: float B x heads x C."""
        features = roots(means) if self.rooted else means
        return self.head(features).view(-1, self.heads, self.classes)

    def maps_and_logits(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps that the linear layers' weights turn into class activation maps, and logits.

        A root is the mean over the size of its own root: so what a discriminant reads is the mean
        of maps over that, and its class activation map is exact like any other's. Where a feature
        is as often negative as positive the divisor has a floor (`LEAST`).

        Args:
            maps: what `maps` gives, float B x channels x h x w.

        Returns:
            float64 B x channels x h x w, float B x (heads * C).
        """
        maps = maps.float()
        means = maps.mean((2, 3))
        logits = self.logits(means).flatten(1).float()
        if self.rooted:
            sizes = torch.maximum(means.abs(), LEAST * maps.abs().mean((2, 3)))
            maps = maps * torch.where(sizes > 0, sizes.rsqrt(), 0)[..., None, None]
        return maps.double(), logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What is pretrained, and the linear layers."""
        return {
            "backbone": list(self.backbone.parameters()),
            "head": list(self.head.parameters()),
        }

    def neuron_responses(self, images: torch.Tensor, module: str) -> torch.Tensor:
        """Spatial means of the rectified output of a module of the backbone's body.

        Args:
            images: uint8 B x 3 x H x W.
            module: second name of `penultimate_layer`.

        Returns:
            float B x neurons.
        """
        return self.backbone.feature_maps(images, module).clamp(min=0).mean((2, 3))

    def neuron_weights(self, name: str | None) -> tuple[torch.Tensor, str]:
        """Weight vectors of the penultimate convolution, and the module that gives responses."""
        convolution, module = penultimate_layer(self.backbone, name)
        return self.backbone.body.get_submodule(convolution).weight.detach().flatten(1), module


def roots(means: torch.Tensor) -> torch.Tensor:
    """Square roots; a negative mean, which some activation functions allow, keeps its sign."""
    return means.sign() * means.abs().sqrt()


def pooled_features(backbone: Backbone, images: torch.Tensor, pooled: Pooled) -> torch.Tensor:
    """What a discriminant reads of uint8 B x 3 x H x W images: `roots`, float B x D.

    Raises:
        OpamError: the backbone has no class token, and it is asked for.
    """
    if pooled == "mean":
        return roots(backbone.feature_maps(images, None).mean((2, 3)))
    maps, token = backbone.maps_and_class_token(images)
    return roots(torch.cat([maps.mean((2, 3)), token], 1) if pooled == "both" else token)


def write_network(path: Path, network: CamNetwork, settings: dict[str, Any]) -> None:
    """Save weights as safetensors, with ``settings`` (backbone name, sizes) in the header."""
    header = {**settings, "classes": network.classes, "heads": network.heads}
    pooling = next(words for words, pooled in POOLING.items() if pooled == network.pooled)
    write_weights(path, network, header | ({"pooling": pooling} if network.rooted else {}))


def read_network(path: Path) -> tuple[CamNetwork, dict[str, Any]]:
    """Load a network and its settings, in evaluation mode, channels last.

    Raises:
        OpamError: missing, damaged, or not written by `write_network`.
    """

    def build(settings: dict[str, Any], state: dict[str, torch.Tensor]) -> CamNetwork:
        classes, heads = settings["classes"], settings["heads"]
        pooling = settings.get("pooling", "root of mean")
        if pooling not in POOLING:
            raise ValueError(f"it pools by {pooling}")
        # Its size comes from the tensors, which are there, before any memory is asked for.
        rows, channels = state["head.weight"].shape
        if classes < 1 or heads < 0 or classes * heads != rows:
            raise ValueError(f"{heads} x {classes} classes do not fit its weights")
        rooted = channels if "pooling" in settings else None
        backbone = Backbone(settings["backbone"])
        return CamNetwork(backbone, classes, heads, rooted, POOLING[pooling])

    network, settings = read_weights(path, build, "network")
    return network.to(memory_format=torch.channels_last), settings


def with_heads(network: CamNetwork, heads: int) -> CamNetwork:
    """The same network with its (only) linear layer copied ``heads`` times."""
    copy = CamNetwork(network.backbone, network.classes, heads)
    copy.load_state_dict(
        {
            name: value.repeat(heads, *[1] * (value.ndim - 1))
            if name.startswith("head.")
            else value
            for name, value in network.state_dict().items()
        }
    )
    return copy


def penultimate_layer(backbone: Backbone, name: str | None = None) -> tuple[str, str]:
    """The layer whose output neurons stand for parts, and the module to read them from.

    It is the last but one convolution (not a depthwise one) or linear layer that looks at places,
    in the order in which the body calls them; in the paper VGG-19's. In a transformer's block, or
    ConvNeXt's, it is the first of the two linear layers that follow attention (or the depthwise
    convolution): its neurons are detectors whose rectified answers the second one mixes. The
    response is read behind the batch norm that follows the layer, where one does.

    Args:
        backbone: the network.
        name: module name of a convolution or linear layer in ``backbone.body``; None finds it.

    Returns:
        Names in ``backbone.body`` of the layer and of the module that gives its response.

    Raises:
        OpamError: no layer of that name, or none at all.
    """
    calls: list[tuple[str, Any]] = []

    def record(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        maps = as_maps(body, output)
        if maps is not None and len(maps) == 1 and maps.shape[-1] > 1:
            calls.append((names[module], module))

    body = outline(backbone.name).body
    names = {module: name for name, module in body.named_modules()}
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(record) for m in names if isinstance(m, kinds)]
    image = torch.zeros(1, *body.pretrained_cfg["input_size"], device="meta")
    with torch.inference_mode(), without_compiler():
        last_maps(body, image, backbone.tokens)
    for hook in hooks:
        hook.remove()
    dense = [
        index
        for index, (_, module) in enumerate(calls)
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    ]
    if name is None and len(dense) > 1:
        position = dense[-2]
    else:
        matches = [index for index in dense if calls[index][0] == name]
        if not matches:
            known = ", ".join(calls[index][0] for index in dense[-KNOWN:])
            raise OpamError(
                f"alignment.convolution: no convolution or linear layer '{name}'; the last ones "
                f"are {known}"
            )
        position = matches[-1]
    layer = calls[position]
    follower = calls[position + 1] if position + 1 < len(calls) else layer
    norm = follower[1]
    width = layer[1].weight.shape[0]
    follows = isinstance(norm, nn.BatchNorm2d) and norm.num_features == width
    return layer[0], follower[0] if follows else layer[0]
