"""Plain fine-tuning: the yardstick that every other system is held against."""

import torch
import torch.nn.functional as F
from torch import nn

from opam.networks.backbones.backbone import Backbone, pretrained_and_new
from opam.pipeline.params import Params
from opam.systems.prediction import Prediction
from opam.systems.regions import cam_prediction, pooled_logits


class FinetuneParams(Params):
    """The method has no settings of its own."""


class Finetune(nn.Module):
    """Backbone, global average pooling, linear layer.

    Args:
        backbone: images to feature maps.
        classes: number of classes C.
        params: none.
    """

    def __init__(self, backbone: Backbone, classes: int, params: FinetuneParams) -> None:
        super().__init__()
        self.params = params
        self.backbone = backbone
        self.head = nn.Linear(backbone.channels, classes)

    def forward(self, images: torch.Tensor) -> Prediction:
        """Classify photographs.

        Args:
            images: uint8 B x 3 x H x W.

        Returns:
            Logits, float B x C, and float B x 1 x 4 boxes around the largest active region of
            the predicted class's activation map.
        """
        return cam_prediction(self.backbone(images), self.head)

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy.

        Args:
            images: uint8 B x 3 x H x W.
            labels: int64 B.
            label_smoothing: 0..1.

        Returns:
            The loss, and logits, float B x C.
        """
        logits = pooled_logits(self.backbone(images), self.head)
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The pretrained parameters ("backbone") and all others ("head")."""
        return pretrained_and_new(self, self.backbone)
