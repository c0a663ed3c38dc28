"""How a network is trained: the parameters, and the learning rate they make."""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from opam.pipeline.errors import OpamError
from opam.pipeline.params import NETWORKS, Params, read_params


class TrainingParams(Params):
    """One network's training."""

    epochs: int = Field(ge=1, description="passes over the samples; the last is kept")
    batch_size: int = Field(16, ge=1, description="crops a step")
    input_size: int = Field(224, ge=32, le=2048, description="side of a crop, pixels")
    resize: int = Field(
        256, ge=32, le=2048, description="side a box is scaled to before input_size of it is shown"
    )
    min_area: float = Field(
        1.0,
        gt=0,
        le=1,
        description="area of a training crop, over that of input_size in resize, is drawn evenly "
        "from here to 1; lower: sizes vary more, and a small set is learned by heart later",
    )
    rate: float = Field(1e-4, gt=0, description="learning rate of the backbone")
    head_rate_factor: float = Field(1.0, gt=0, description="rate of the linear layer over rate")
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd",
        description="sgd: stochastic gradient descent, as in the paper; adamw: as transformers and "
        "ConvNeXt want it, at rates a hundred times lower",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd; of adamw its first beta")
    weight_decay: float = Field(
        5e-4, ge=0, description="of the optimizer; with adamw no bias and no norm decays"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="rate of a layer of the backbone over that of the layer behind it; pretrained "
        "transformers want 0.65 to 0.9",
    )
    drop_path: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of residual branches of the last block that a step leaves out; of those "
        "before it fewer",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="length that a step's gradient is cut to; null: it is not cut"
    )
    balanced: bool = Field(
        False,
        description="an epoch shows each class as often as any other: crops of small classes more "
        "than once, of large ones some; for sets whose classes differ much in size",
    )
    accumulate: int = Field(
        1, ge=1, description="batches whose gradients make a step, where memory holds few crops"
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share that the running average of the weights (EMA) keeps in a step, such as "
        "0.999; the average is what is kept in the end; 0: there is none",
    )
    schedule: Literal["step", "cosine"] = Field(
        "step", description="step: x0.1 every step_iterations; cosine: to zero at the end"
    )
    step_iterations: int = Field(
        25_000, ge=1, description="schedule step: iterations from one cut of the rate to the next"
    )
    warmup_iterations: int = Field(0, ge=0, description="rate rises linearly from zero")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a target that is spread evenly over all classes"
    )
    frozen_batch_norm: bool = Field(
        False,
        description="batch norm keeps the pretrained statistics; serves small sets of photographs "
        "like those of the pretraining",
    )
    frozen_until: str | None = Field(
        None,
        description="module of the backbone up to which, and with which, nothing is trained, such "
        "as blocks.3; faster, and enough for small sets of photographs like those of the "
        "pretraining; null: all is trained",
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> "TrainingParams":
        if self.resize < self.input_size:
            raise ValueError(
                f"resize is {self.resize}, less than input_size, {self.input_size}; raise the one, "
                "or lower the other"
            )
        return self


class NetworkParams(TrainingParams):
    """A network of the paper: how it comes about."""

    by: Literal["training", "discriminant"] = Field(
        description="training: fine-tuned, as in the paper; discriminant: nothing is trained, its "
        "linear layer is a discriminant of the features that it begins with, which takes minutes; "
        "of this section and training's it reads input_size, views and patches_per_image alone"
    )
    views: int = Field(
        8,
        ge=0,
        le=1000,
        description="of a discriminant: random crops of each box that are seen beside the box and "
        "its mirror image",
    )


class BoxNetworkParams(NetworkParams):
    """ObjectNet or PartNet, whose maps nothing is read from."""

    pooled: Literal["mean", "class_token", "both"] = Field(
        "mean",
        description="of a discriminant: what it reads of a crop: the mean of its maps, a "
        "transformer's class token, or both",
    )


class PatchNetworkParams(NetworkParams):
    """ClassNet: whole photographs and kept patches."""

    patches_per_image: int = Field(
        0,
        ge=0,
        description="kept patches of an image: drawn anew in each epoch, or those that FilterNet "
        "is surest of for a discriminant; 0: all of them",
    )


def network_params(arguments: Sequence[str]) -> tuple[str, NetworkParams]:
    """The network that a script was asked for, and its section of params.yaml.

    Raises:
        OpamError: none, or no such network; as `opam.pipeline.params.read_params`.
    """
    name = arguments[1] if len(arguments) == 2 else ""
    types: dict[str, type[NetworkParams]] = {
        "classnet": PatchNetworkParams,
        **dict.fromkeys(("objectnet", "partnet"), BoxNetworkParams),
    }
    if name not in NETWORKS:
        raise OpamError(f"python {arguments[0]} NAME: give one of {', '.join(NETWORKS)}")
    return name, read_params(name, types.get(name, NetworkParams))


def rate_factor(iteration: int, iterations: int, params: TrainingParams) -> float:
    """The learning rate at ``iteration`` of ``iterations`` over ``params.rate``, 0..1."""
    if iteration < params.warmup_iterations:
        return (iteration + 1) / params.warmup_iterations
    if params.schedule == "step":
        return float(0.1 ** (iteration // params.step_iterations))
    after = iteration - params.warmup_iterations
    return 0.5 * (1 + math.cos(math.pi * after / max(1, iterations - params.warmup_iterations)))
