"""Backbones: any convolutional timm model as a function from images to feature maps."""

from itertools import pairwise
from typing import Any

import torch
from pydantic import Field
from torch import nn

from opam.networks.backbones.folding import fold, whole
from opam.networks.backbones.pretrained import pretrained_weights
from opam.pipeline.errors import OpamError, cause
from opam.pipeline.libraries import timm
from opam.pipeline.params import Params


class BackboneParams(Params):
    """Which network everything stands on."""

    name: str = Field("tf_efficientnet_lite0", description="any convolutional timm model")
    weights: str = Field(
        "package",
        description="'package': from an installed PyPI package; 'timm': downloaded by timm; "
        "'none': random; else a file: a state dict, a checkpoint of timm's or torchvision's "
        "scripts or of Lightning, safetensors",
    )


class Backbone(nn.Module):
    """Images to feature maps.

    Attributes:
        body: the timm model without classifier and pooling.
        cam: what the paper puts on VGG (a 3 x 3 convolution to 1024 channels); else nothing.
        channels: number of feature maps.
        mean, std: the input normalisation that belongs to the weights, for values in 0..1.
    """

    body: Any  # timm's models share methods and attributes that nn.Module does not have
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = _timm_body(name)
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

    def _body_maps(self, images: torch.Tensor) -> torch.Tensor:
        scaled = (images.float() / 255.0 - self.mean) / self.std
        return self.body.forward_features(scaled.contiguous(memory_format=torch.channels_last))

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
        hook = layer.register_forward_hook(lambda _m, _i, output: outputs.append(output))
        try:
            with whole(layer):
                self._body_maps(images)
        finally:
            hook.remove()
        if not outputs or outputs[-1].ndim != 4:
            raise OpamError(f"colocalization.layer: '{module}' gives no feature maps; name another")
        return outputs[-1]

    def stage_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps of the last three stages for uint8 B x 3 x H x W images.

        Returns:
            float B x C x h x w, finest first: a cell every 8, 16 and 32 pixels (VGG, which has
            lost its last pooling: 8, 16 and 16). The last is what the backbone itself gives.

        Raises:
            OpamError: as `run_stages`.
        """
        scaled = (images.float() / 255.0 - self.mean) / self.std
        return self.run_stages(scaled.contiguous(memory_format=torch.channels_last), first=0)

    def run_stages(self, maps: torch.Tensor, first: int) -> list[torch.Tensor]:
        """Run the backbone from one of the last three stages on.

        Args:
            maps: what stage ``first`` reads: normalised images for 0, else the maps that
                `stage_maps` gives for the stage before, or such as these.
            first: 0..2.

        Returns:
            The maps of stage ``first`` and of every later one, float B x C x h x w.

        Raises:
            OpamError: the body is of no family whose stages are known.
        """
        found = []
        for stage in self._stages()[first:]:
            maps = stage(maps)
            found.append(maps)
        return found

    def stage_channels(self) -> list[int]:
        """Channels of each of `stage_maps`; raises as these do."""
        training = self.training
        images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=self.mean.device)
        with torch.no_grad():
            channels = [maps.shape[1] for maps in self.eval().stage_maps(images)]
        self.train(training)
        return channels

    def _stages(self) -> list[nn.Sequential]:
        """All modules in the order of their calls, cut behind the strides 8 and 16."""
        body = self.body
        cuts: list[int] = []
        if isinstance(body, timm.models.ResNet):
            modules = [body.conv1, body.bn1, body.act1, body.maxpool]
            modules += [body.layer1, body.layer2, body.layer3, body.layer4]
            cuts = [6, 7]
        elif isinstance(body, timm.models.EfficientNet | timm.models.MobileNetV3):
            modules = [body.conv_stem, body.bn1, *body.blocks]
            names = {info["reduction"]: info["module"] for info in body.feature_info}
            cuts = [3 + int(names[stride].removeprefix("blocks.")) for stride in (8, 16)]
            if isinstance(body, timm.models.EfficientNet):
                modules += [body.conv_head, body.bn2]
        elif isinstance(body, timm.models.VGG):
            modules = list(body.features)
            pools = [i for i, module in enumerate(modules) if isinstance(module, nn.MaxPool2d)]
            cuts = [pools[2] + 1, pools[3] + 1]
        else:
            raise OpamError(
                f"backbone.name: '{body.pretrained_cfg['architecture']}' cannot be run in stages; "
                "take a ResNet, Res2Net, EfficientNet, MobileNetV3 or VGG"
            )
        modules.append(self.cam)
        bounds = [0, *cuts, len(modules)]
        return [nn.Sequential(*modules[start:end]) for start, end in pairwise(bounds)]


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


def _timm_body(name: str) -> Any:
    if name not in timm.list_models() and name not in timm.list_pretrained():
        raise OpamError(f"backbone.name: timm has no model '{name}'; see timm.list_models()")
    try:
        body: Any = timm.create_model(name, pretrained=False, num_classes=0, global_pool="")
    except Exception as error:  # each family has its own
        raise OpamError(
            f"backbone.name: '{name}' cannot be built without its classifier ({cause(error)}); "
            "take another"
        ) from None
    body.eval()
    with torch.inference_mode():
        maps = body.forward_features(torch.zeros(1, 3, *body.pretrained_cfg["input_size"][1:]))
    if maps.ndim != 4 or maps.shape[1] != body.num_features:
        raise OpamError(
            f"backbone.name: '{name}' gives no feature maps (channels first); take a "
            "convolutional network, a ResNet or an EfficientNet say"
        )
    return body.train()


def create_backbone(params: BackboneParams) -> Backbone:
    """A backbone with the weights that ``params`` ask for.

    Raises:
        OpamError: unknown or not convolutional name, or weights missing, not fitting, not finite.
    """
    if params.weights == "none":
        with torch.random.fork_rng(devices=[]):  # random, but the same in every stage and process
            torch.manual_seed(0)
            return Backbone(params.name)
    backbone = Backbone(params.name)
    state = pretrained_weights(backbone.body, params.name, params.weights)
    backbone.body.load_state_dict({**backbone.body.state_dict(), **state})
    return backbone


def penultimate_convolution(backbone: Backbone, name: str | None = None) -> tuple[str, str]:
    """The convolution whose output neurons stand for parts, and the module to read them from.

    It is the last but one dense (not depthwise) convolution in the order in which the body
    calls them. Its response is read behind the batch norm that follows it, where one does.

    Args:
        backbone: the network.
        name: module name of a convolution in ``backbone.body``; None finds it.

    Returns:
        Names in ``backbone.body`` of the convolution and of the module that gives its response.

    Raises:
        OpamError: no convolution of that name.
    """
    calls: list[tuple[str, Any]] = []

    def record(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if torch.is_tensor(output) and output.ndim == 4 and output.shape[-1] > 1:
            calls.append((names[module], module))

    names = {module: name for name, module in backbone.body.named_modules()}
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(record) for m in names if isinstance(m, kinds)]
    training = backbone.training
    size = backbone.body.pretrained_cfg["input_size"][1:]
    with torch.inference_mode():
        backbone.eval()(torch.zeros(1, 3, *size, dtype=torch.uint8, device=backbone.mean.device))
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    dense = [
        index
        for index, (_, module) in enumerate(calls)
        if isinstance(module, nn.Conv2d) and module.groups == 1
    ]
    if name is None:
        position = dense[-2]
    else:
        matches = [index for index in dense if calls[index][0] == name]
        if not matches:
            known = ", ".join(calls[index][0] for index in dense[-6:])
            raise OpamError(
                f"alignment.convolution: no convolution '{name}'; the last ones are {known}"
            )
        position = matches[-1]
    convolution = calls[position]
    follower = calls[position + 1] if position + 1 < len(calls) else convolution
    norm = follower[1]
    follows = isinstance(norm, nn.BatchNorm2d) and norm.num_features == convolution[1].out_channels
    return convolution[0], follower[0] if follows else convolution[0]
