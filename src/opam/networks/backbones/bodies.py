"""Bodies of backbones: timm's models without what classifies, and their output as feature maps."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any

import torch

from opam.pipeline.errors import OpamError, cause
from opam.pipeline.libraries import timm, without_compiler, without_weights

WAYS: list[dict[str, Any]] = [
    {"global_pool": "", "dynamic_img_size": True},  # transformers that take images of other sizes
    {"global_pool": ""},
    {},
]
"""Arguments of timm's models; the first are taken that a model knows."""

VGG: list[dict[str, Any]] = [{"global_pool": "", "mlp_ratio": 0.001}]
"""Without most of the 100 million weights of layers that `Backbone` leaves away."""

SMALLEST = 32
"""Side of an image in pixels."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A timm model without its weights.

    Attributes:
        body: the model, on torch's meta device.
        way: the arguments that it is built with.
    """

    body: Any
    way: dict[str, Any]


def create_body(name: str, drop_path: float = 0.0, parameter: str = "drop_path") -> Any:
    """The timm model ``name`` without classifier, with random weights.

    Args:
        name: timm's.
        drop_path: share of residual branches of the last block that training leaves out.
        parameter: that says so, for the error.

    Raises:
        OpamError: as `outline`; or there is no branch that could be left out.
    """
    way = outline(name).way
    if not drop_path:
        return timm.create_model(name, pretrained=False, num_classes=0, **way)
    try:
        way = way | {"drop_path_rate": drop_path}
        body = timm.create_model(name, pretrained=False, num_classes=0, **way)
        if any(type(module).__name__ == "DropPath" for module in body.modules()):
            return body
    except TypeError:  # the family does not know the argument
        pass
    raise OpamError(f"{parameter}: {name} has no branches that can be left out; set it to 0")


@cache
def outline(name: str) -> Outline:
    """Build the timm model ``name`` without memory.

    Raises:
        OpamError: timm has none of that name, or it cannot be built without its classifier.
    """
    if name.startswith("hf-hub:"):
        raise OpamError(
            f"backbone.name: '{name}' is weights of some architecture; write that, resnet50 say, "
            f"as backbone.name, timm as backbone.weights, and backbone.hub: {name}"
        )
    if name not in timm.list_models() and name not in timm.list_pretrained():
        raise OpamError(f"backbone.name: timm has no model '{name}'; see timm.list_models()")
    problem: Exception = OpamError(name)
    for way in VGG if name.startswith("vgg") else WAYS:
        try:
            with without_weights():
                body: Any = timm.create_model(name, pretrained=False, num_classes=0, **way)
            return Outline(body.eval(), way)
        except Exception as error:  # each family has its own
            problem = error
    raise OpamError(
        f"backbone.name: '{name}' cannot be built without its classifier ({cause(problem)}); "
        "take another"
    )


def gives_tokens(body: Any, name: str) -> bool:
    """Whether ``body`` gives B x tokens x C, not maps.

    Args:
        body: by `create_body`, before anything was done with it, on any device.
        name: timm's.

    Raises:
        OpamError: it gives no feature maps.
    """
    training = body.training
    try:
        with torch.no_grad(), without_compiler():
            parameter = next(body.parameters())
            image = torch.zeros(1, *body.pretrained_cfg["input_size"], device=parameter.device)
            tokens = bool(body.eval().forward_features(image).ndim == 3)
            maps = last_maps(body, image, tokens)
        if maps.ndim == 4 and maps.shape[1] == body.num_features:
            return tokens
    except Exception:  # each family has its own
        pass
    finally:
        body.train(training)
    raise OpamError(
        f"backbone.name: '{name}' gives no feature maps; take a network that looks at places, a "
        "ResNet, a ConvNeXt or a ViT say"
    )


@cache
def _tokens(name: str) -> bool:
    return gives_tokens(outline(name).body, name)


def last_maps(body: Any, images: torch.Tensor, tokens: bool) -> torch.Tensor:
    """The last feature maps of ``body``, float B x C x h x w, for normalised images.

    Of a transformer these are the tokens of places behind its last norm. Tokens that stand for no
    place (class token, registers) are left out.

    Args:
        body: by `create_body`.
        images: float B x 3 x H x W.
        tokens: by `gives_tokens`.
    """
    if tokens:
        (maps,) = body.forward_intermediates(
            images,
            indices=1,
            norm=hasattr(body, "norm"),
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return maps
    maps = body.forward_features(images)
    return maps if maps.shape[1] == body.num_features else maps.permute(0, 3, 1, 2)


def maps_and_class_token(body: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `last_maps` of a transformer, and its class token behind the same norm, float B x C.

    Raises:
        OpamError: it has none.
    """
    if getattr(body, "cls_token", None) is not None:
        how = {"indices": 1, "norm": hasattr(body, "norm"), "output_fmt": "NCHW"}
        how |= {"intermediates_only": True, "return_prefix_tokens": True}
        with suppress(TypeError):  # some families keep theirs to themselves
            [(maps, before)] = body.forward_intermediates(images, **how)
            return maps, before[:, 0]
    raise OpamError("the backbone gives no class token; set it to mean")


def as_maps(body: Any, output: Any) -> torch.Tensor | None:
    """What a module inside ``body`` gives for square images, as B x C x h x w.

    Args:
        body: by `create_body`.
        output: B x C x h x w, B x h x w x C, B x tokens x C, or anything else.

    Returns:
        None where it has no places.
    """
    if not torch.is_tensor(output) or output.ndim not in (3, 4):
        return None
    if output.ndim == 4:
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.permute(0, 3, 1, 2) if channels_last else output
    places = output.shape[1] - (getattr(body, "num_prefix_tokens", None) or 0)
    side = isqrt(max(places, 0))
    if not side or side**2 != places:
        return None
    return output[:, -places:].transpose(1, 2).reshape(len(output), -1, side, side)


def check_size(name: str, size: int, parameter: str) -> None:
    """The timm model ``name`` takes square images of ``size`` pixels.

    Raises:
        OpamError: it does not; with the nearest sizes that it takes.
    """
    if _takes(name, size):
        return
    native = outline(name).body.pretrained_cfg["input_size"][1]
    even = size - size % 2
    smaller = next((side for side in range(even, SMALLEST, -2) if _takes(name, side)), None)
    end = max(2 * size, native + 1)
    larger = next((side for side in range(even + 2, end, 2) if _takes(name, side)), None)
    nearest = " or ".join(str(side) for side in (smaller, larger) if side)
    raise OpamError(
        f"{parameter}: backbone '{name}' takes no images of {size} pixels; take {nearest or native}"
    )


@cache
def _takes(name: str, size: int) -> bool:
    found = outline(name)
    try:
        with torch.inference_mode(), without_compiler():
            last_maps(found.body, torch.zeros(1, 3, size, size, device="meta"), _tokens(name))
    except Exception:  # each family has its own
        return False
    return True
