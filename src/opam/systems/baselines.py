"""Other systems on the same data: how one is trained."""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch.nn.functional import cross_entropy

from opam.engine.training.objectives import Objective
from opam.engine.training.params import TrainingParams
from opam.networks.backbones.backbone import BackboneParams
from opam.pipeline.params import Params

RELEASED = ("nts_net", "ap_cnn")
"""Systems that can begin with the weights that their authors released."""


class SystemTrainingParams(TrainingParams):
    """How a system is trained, or that it is not."""

    epochs: int = Field(
        ge=0,
        description="passes over the samples; the last is kept; 0, where there are weights: "
        "nothing is trained, it scores as it was released",
    )


class BaselineParams(Params):
    """One system, and how it is trained."""

    system: Literal["finetune", "bcnn", "nts_net", "mc_loss", "ap_cnn"] = Field(
        description="what is trained; see docs/systems/"
    )
    backbone: BackboneParams | None = Field(None, description="null: the backbone of all others")
    weights: str | None = Field(
        None,
        description="of nts_net and ap_cnn: the checkpoint that the authors released, a file in "
        "data/weights/, which all of it begins with, so that backbone.weights may be none; null: "
        "the backbone alone is pretrained",
    )
    method: dict[str, Any] = Field({}, description="what differs from the system's own defaults")
    classifier_training: TrainingParams | None = Field(
        None, description="a first step with the backbone frozen: bcnn's; null: none"
    )
    training: SystemTrainingParams

    @model_validator(mode="after")
    def _two_steps_are_of_bcnn(self) -> "BaselineParams":
        if self.classifier_training is not None and self.system != "bcnn":
            raise ValueError(f"classifier_training is a step of bcnn, not of {self.system}")
        return self

    @model_validator(mode="after")
    def _released_or_trained(self) -> "BaselineParams":
        if self.weights is not None and self.system not in RELEASED:
            raise ValueError(
                f"weights are what authors released of {' or '.join(RELEASED)}, not of "
                f"{self.system}; set weights to null"
            )
        if self.weights is None and self.training.epochs == 0:
            raise ValueError("training.epochs is 0, and weights null: nothing is learned; set one")
        return self


def _training_losses(
    network: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    _heads: torch.Tensor,
    params: TrainingParams,
) -> tuple[torch.Tensor, torch.Tensor]:
    loss, logits = network.loss(images, labels, params.label_smoothing)
    return loss, logits.argmax(1) == labels


def _validation_losses(
    network: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    _heads: torch.Tensor,
    _params: TrainingParams,
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = network(images).logits.float()
    return cross_entropy(logits, labels), logits.argmax(1) == labels


SYSTEM_OBJECTIVE = Objective(_training_losses, _validation_losses)
"""A system's own loss in training, cross-entropy of its prediction on val."""
