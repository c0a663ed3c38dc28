"""Backbones: any timm model that looks at places as a function from images to feature maps."""

from contextlib import suppress
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional

from opam.networks.backbones.bodies import (
    as_maps,
    create_body,
    gives_tokens,
    last_maps,
    maps_and_class_token,
)
from opam.networks.backbones.folding import fold, whole
from opam.networks.backbones.pretrained import pretrained_weights
from opam.networks.backbones.stages import Stage, stages_of
from opam.pipeline.errors import OpamError
from opam.pipeline.params import Params

HUB = r"^(hf-hub:)?([\w.-]+/[\w.-]+)?(@[\w./-]+)?$"
"""How a repository of the hub, and its revision, are written."""


class BackboneParams(Params):
    """Which network everything stands on."""

    name: str = Field("tf_efficientnet_lite0", description="any timm model that gives feature maps")
    weights: str = Field(
        "package",
        description="'package': from an installed PyPI package; 'timm': downloaded by timm; "
        "'none': random; else a file: a state dict, a checkpoint of timm's or torchvision's "
        "scripts or of Lightning, safetensors",
    )
    hub: str | None = Field(
        default=None,
        pattern=HUB,
        description="with weights 'timm': repository and revision on the Hugging Face hub, such as "
        "owner/model@revision; @revision alone is that of timm's own repository; null: the latest",
    )

    @model_validator(mode="after")
    def _hub_is_asked(self) -> "BackboneParams":
        if self.hub and self.weights != "timm":
            raise ValueError(
                f"hub is {self.hub}, but weights is {self.weights}; set weights to timm, or hub to "
                "null"
            )
        return self


class _Enough(Exception):  # noqa: N818  nothing is wrong
    """The module that was asked for has given all that it gives."""


class Backbone(nn.Module):
    """Images to feature maps.

    Attributes:
        body: the timm model without classifier and pooling.
        cam: what the paper puts on VGG (a 3 x 3 convolution to 1024 channels); else nothing.
        channels: number of feature maps.
        name: timm's.
        tokens: the body gives B x tokens x C.
        calls: how often the body calls each module that was asked for.
        mean, std: the input normalisation that belongs to the weights, for values in 0..1.
    """

    body: Any  # timm's models share methods and attributes that nn.Module does not have
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.body = create_body(name)
        self.tokens = gives_tokens(self.body, name)
        self.stages: list[Stage] | None = None
        self.calls: dict[str, int] = {}
        self.folded = False
        config = self.body.pretrained_cfg
        for key in ("mean", "std"):
            values = torch.tensor(config[key], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(key, values, persistent=False)
        self.cam: nn.Module = nn.Identity()
        self.channels = int(self.body.num_features)
        if name.startswith("vgg"):
            # Zhou et al. (CAM, 2016), used by the paper: no fully connected layers, no last
            # pooling, and one more convolution in their place.
            self.body.pre_logits = nn.Identity()
            self.body.features = self.body.features[:-1]
            self.cam = nn.Sequential(nn.Conv2d(512, 1024, 3, padding=1), nn.ReLU(inplace=True))
            self.channels = 1024

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 B x 3 x H x W images to float B x C x h x w feature maps."""
        return self.cam(self._body_maps(images))

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        scaled = (images.float() / 255.0 - self.mean) / self.std
        return scaled.contiguous(memory_format=torch.channels_last)

    def _body_maps(self, images: torch.Tensor) -> torch.Tensor:
        return last_maps(self.body, self._normalised(images), self.tokens)

    def maps_and_class_token(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of uint8 B x 3 x H x W images the body's last maps, and its class token, float B x C.

        Raises:
            OpamError: it has none.
        """
        return maps_and_class_token(self.body, self._normalised(images))

    def feature_maps(self, images: torch.Tensor, module: str | None) -> torch.Tensor:
        """What a module of the body gives for uint8 B x 3 x H x W images; None: its last maps.

        Returns:
            float B x C x h x w.

        Raises:
            OpamError: the body has no such module, or it gives no feature maps.
        """
        if module is None:
            return self._body_maps(images)
        if module not in dict(self.body.named_modules()):
            known = ", ".join(name for name, _ in self.body.named_children())
            raise OpamError(f"colocalization.layer: the backbone has no '{module}'; it has {known}")
        outputs: list[torch.Tensor] = []
        layer = self.body.get_submodule(module)

        def take(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            outputs.append(output)
            if len(outputs) == self.calls.get(module):
                raise _Enough  # what follows is not asked for

        hook = layer.register_forward_hook(take)
        try:
            with whole(layer), suppress(_Enough):
                self._body_maps(images)
                self.calls[module] = len(outputs)
        finally:
            hook.remove()
        maps = as_maps(self.body, outputs[-1]) if outputs else None
        if maps is None or len(maps) != len(images):
            raise OpamError(f"colocalization.layer: '{module}' gives no feature maps; name another")
        return maps

    def shared_maps(self, images: torch.Tensor, module: str | None) -> torch.Tensor:
        """`feature_maps` that tell objects from backgrounds, whatever the class, and finer ones.

        None is the last maps; where a convolution widens these for a classifier, as in
        EfficientNets, the maps of the last stage but one. Behind their channels stand those of the
        last module of a finer grid, where the backbone has any: what is an object is told by the
        coarse maps, where it ends by the fine ones.

        Returns:
            float B x C x h x w, of the finer grid.
        """
        body = self.body
        if module is None and hasattr(body, "conv_head") and hasattr(body, "blocks"):
            module = f"blocks.{len(body.blocks) - 2}"
        finer = finer_module(body)
        if finer is None or finer == module:
            return self.feature_maps(images, module)
        fine: list[torch.Tensor] = []
        layer = body.get_submodule(finer)
        hook = layer.register_forward_hook(lambda _module, _inputs, output: fine.append(output))
        try:
            with whole(layer):
                coarse = self.feature_maps(images, module)
        finally:
            hook.remove()
        maps = as_maps(body, fine[-1]) if fine else None
        if maps is None or maps.shape[2] <= coarse.shape[2]:  # behind the module, or as coarse
            return coarse
        return torch.cat([functional.interpolate(coarse, maps.shape[2:], mode="bilinear"), maps], 1)

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps of the last three stages for uint8 B x 3 x H x W images.

        Returns:
            float B x C x h x w, finest first: a cell every 8, 16 and 32 pixels (VGG, which has
            lost its last pooling: 8, 16 and 16). The last is what the backbone itself gives.

        Raises:
            OpamError: as `run_stages`.
        """
        return self.run_stages(self._normalised(images), first=0)

    def run_stages(self, maps: torch.Tensor, first: int) -> list[torch.Tensor]:
        """Run the backbone from one of the last three stages on.

        Args:
            maps: what stage ``first`` reads: normalised images for 0, else the maps that
                `stage_maps` gives for the stage before, or such as these.
            first: 0..2.

        Returns:
            The maps of stage ``first`` and of every later one, float B x C x h x w.

        Raises:
            OpamError: as `opam.networks.backbones.stages.stages_of`.
        """
        if self.stages is None:
            self.stages = stages_of(self.body)
        found = []
        for stage in self.stages[first:]:
            maps = stage(maps)
            found.append(maps)
        return [*found[:-1], self.cam(maps)]

    def stage_channels(self) -> list[int]:
        """Channels of each of `stage_maps`; raises as these do."""
        training = self.training
        size = self.body.pretrained_cfg["input_size"][1:]
        images = torch.zeros(1, 3, *size, dtype=torch.uint8, device=self.mean.device)
        with torch.no_grad():
            channels = [maps.shape[1] for maps in self.eval().stage_maps(images)]
        self.train(training)
        return channels


def finer_module(body: Any) -> str | None:
    """The last module whose maps are finer than the body's last ones, by timm's table of them."""
    table = getattr(body, "feature_info", None)
    rows = getattr(table, "info", table) or []
    finer = [row["module"] for row in rows if row["reduction"] < rows[-1]["reduction"]]
    known = dict(body.named_modules())
    return finer[-1] if finer and finer[-1] in known else None


def drop_paths(network: nn.Module, share: float, name: str) -> None:
    """Let training leave out residual branches of the backbones of ``network``.

    Args:
        network: whose backbones get a body that does, with the weights that they have.
        share: of branches of the last block, of those before it fewer; 0: nothing is changed.
        name: of the parameters, for the error.

    Raises:
        OpamError: as `opam.networks.backbones.bodies.create_body`.
    """
    for module in network.modules():
        if share and isinstance(module, Backbone):
            weights = module.body.state_dict()
            module.body = create_body(module.name, share, f"{name}.drop_path")
            module.body.load_state_dict(weights)
            module.stages = None


def fold_batch_norm(network: nn.Module) -> None:
    """`folding.fold` for all backbones of ``network``, once."""
    for module in network.modules():
        if isinstance(module, Backbone) and not module.folded:
            fold(module.body)
            module.folded = True


def pretrained_and_new(network: nn.Module, backbone: Backbone) -> dict[str, list[nn.Parameter]]:
    """All parameters of ``network``: those of ``backbone``'s body ("backbone"), the rest ("head").

    What `Backbone` itself adds to the body is not pretrained either.
    """
    pretrained = list(backbone.body.parameters())
    known = set(pretrained)
    return {"backbone": pretrained, "head": [p for p in network.parameters() if p not in known]}


def create_backbone(params: BackboneParams) -> Backbone:
    """A backbone with the weights that ``params`` ask for.

    Raises:
        OpamError: unknown name, no feature maps, or weights missing, not fitting, not finite.
    """
    if params.weights == "none":
        with torch.random.fork_rng(devices=[]):  # random, but the same in every stage and process
            torch.manual_seed(0)
            return Backbone(params.name)
    backbone = Backbone(params.name)
    state = pretrained_weights(backbone.body, params.name, params.weights, params.hub)
    backbone.body.load_state_dict({**backbone.body.state_dict(), **state})
    return backbone
