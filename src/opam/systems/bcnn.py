"""B-CNN: which pairs of features occur at the same place, over all places.

Lin, RoyChowdhury, Maji, "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015
(arXiv 1504.07889). Two streams of feature maps are multiplied at every location and averaged;
signed square root, l2 norm and a linear layer follow. As published, training has two steps: the
linear layer alone on a frozen backbone, then all layers with a small rate.
"""

from typing import Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from opam.networks.backbones.backbone import Backbone, BackboneParams, create_backbone
from opam.pipeline.errors import OpamError
from opam.pipeline.params import Params
from opam.systems.prediction import Prediction
from opam.systems.regions import activation_boxes

EPSILON = 1e-5
"""Under the root, as in the released PyTorch code. Where two channels never meet, the gradient is
that of a value of this size: with 1e-10 it is 300 times as steep as with 1e-5, and one empty pair
outweighs all others."""


class BcnnParams(Params):
    """The settings of the method; the defaults are the symmetric network of the paper."""

    second_backbone: str | None = Field(
        None,
        description="timm name of the second stream's network; null: one stream, multiplied by "
        "itself",
    )
    second_weights: str = Field(
        "package", description="of the second stream's network, as backbone.weights"
    )
    channels: int | None = Field(
        None,
        ge=2,
        le=65_536,
        description="width to which a 1 x 1 convolution reduces each stream; null: as they are, "
        "as published",
    )


def bilinear_pool(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The mean over all locations of the streams' outer product (section 2).

    Args:
        first: float B x D x h x w.
        second: float B x E x h x w, on the same grid.

    Returns:
        float B x D x E. The paper sums over the locations; the l2 norm that follows makes that
        the same, and the mean does not depend on the image's size.
    """
    locations = first.shape[2] * first.shape[3]
    return first.flatten(2) @ second.flatten(2).transpose(1, 2) / locations


def signed_root(values: torch.Tensor) -> torch.Tensor:
    """``x / sqrt(|x| + eps)``: sign(x) sqrt(|x|) with a finite slope at 0, 1 / sqrt(eps)."""
    return values / (values.abs() + EPSILON).sqrt()


def bilinear_vector(pooled: torch.Tensor) -> torch.Tensor:
    """Signed square root and l2 norm (section 2.1): float B x D x E to float B x D*E."""
    return F.normalize(signed_root(pooled.flatten(1)))


def location_scores(
    first: torch.Tensor, second: torch.Tensor, pooled: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What each location adds to a class's score: B-CNN's class activation map.

    The bilinear vector is the mean of the locations' outer products, each entry scaled by one
    over ``sqrt(|x| + eps)`` and one over the l2 norm. With these scales taken as they are in the
    image, the score is a sum over locations, ``f_l^T (W * scale) g_l``.

    Args:
        first: float B x D x h x w.
        second: float B x E x h x w, on the same grid.
        pooled: float B x D x E, their `bilinear_pool`.
        weights: float B x D*E, the linear layer's weights of one class an image.

    Returns:
        float B x h x w; the mean of a map is the class's logit without bias.
    """
    norm = signed_root(pooled).norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    form = weights.view_as(pooled) / (pooled.abs() + EPSILON).sqrt() / norm
    # The sum over the first stream's channels comes first: D x E numbers an image, not a location.
    seen = form.transpose(1, 2) @ first.flatten(2)
    return (seen * second.flatten(2)).sum(1).view(-1, *first.shape[2:])


class BilinearCnn(nn.Module):
    """B-CNN on any backbone; of a VGG it takes conv5_3, without the last pooling.

    The linear layer has D*E weights a class: 262,144 on a symmetric VGG-16 or ResNet-18 (512
    channels), 1.6 million on an EfficientNet-Lite0 (1,280), 4.2 million on a ResNet-50 (2,048).
    That is too wide for small data sets, and for most memories with many classes: there take a
    narrower backbone or set `BcnnParams.channels`. The reduction is linear and not pretrained; it
    is learned together with the linear layer.

    Two streams may have maps of different size: the second is resampled to the first's grid.

    Args:
        backbone: images to feature maps. The convolution that CAM puts behind a VGG is taken off.
        classes: number of classes C.
        params: settings of the method.

    Raises:
        OpamError: the second stream's network or weights cannot be had.
    """

    def __init__(self, backbone: Backbone, classes: int, params: BcnnParams) -> None:
        super().__init__()
        self.params = params
        self.frozen = False
        self.backbone = _without_cam(backbone)
        self.second_backbone: Backbone | None = None
        if params.second_backbone is not None:
            second = _created(params.second_backbone, params.second_weights)
            self.second_backbone = _without_cam(second)
        self.reductions = nn.ModuleList(
            nn.Identity()
            if params.channels is None
            else nn.Conv2d(stream.channels, params.channels, 1, bias=False)
            for stream in self._streams()
        )
        widths = [params.channels or stream.channels for stream in self._streams()]
        self.head = nn.Linear(widths[0] * widths[-1], classes)

    def forward(self, images: torch.Tensor) -> Prediction:
        """Classify photographs.

        Args:
            images: uint8 B x 3 x H x W.

        Returns:
            Logits, float B x C, and float B x 1 x 4 boxes around the largest active region of
            the predicted class's `location_scores`.
        """
        first, second = self._features(images)
        pooled = bilinear_pool(first, second)
        logits = self._classify(pooled)
        scores = location_scores(first, second, pooled, self.head.weight[logits.argmax(1)])
        return Prediction(logits, activation_boxes(scores))

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
        logits = self._classify(bilinear_pool(*self._features(images)))
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The pretrained parameters of both streams ("backbone") and all others ("head")."""
        return {
            "backbone": [p for stream in self._streams() for p in stream.parameters()],
            "head": [*self.reductions.parameters(), *self.head.parameters()],
        }

    def freeze_backbone(self) -> None:
        """Step 1: only the linear layer (and the reduction, where there is one) learns.

        The streams' parameters lose their gradients, and their batch norm and dropout stay in
        evaluation mode, whatever `train` is called with, until `unfreeze_backbone`.
        """
        self._set_frozen(True)

    def unfreeze_backbone(self) -> None:
        """Step 2: all layers learn. What the network answers in evaluation does not change."""
        self._set_frozen(False)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen streams stay in evaluation mode."""
        super().train(mode)
        for stream in self._streams():
            stream.train(mode and not self.frozen)
        return self

    def _set_frozen(self, frozen: bool) -> None:
        self.frozen = frozen
        for parameter in self.parameter_groups()["backbone"]:
            parameter.requires_grad_(not frozen)
            parameter.grad = None  # an optimiser would still follow one that was left behind
        self.train(self.training)

    def _streams(self) -> list[Backbone]:
        if self.second_backbone is None:
            return [self.backbone]
        return [self.backbone, self.second_backbone]

    def _features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both streams on one grid: float B x D x h x w and B x E x h x w."""
        maps = [
            reduction(stream(images))
            for stream, reduction in zip(self._streams(), self.reductions, strict=True)
        ]
        first, second = maps[0], maps[-1]
        if second.shape[2:] != first.shape[2:]:
            second = F.interpolate(second, first.shape[2:], mode="bilinear")
        return first, second

    def _classify(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.head(bilinear_vector(pooled)).float()


def _without_cam(backbone: Backbone) -> Backbone:
    if isinstance(backbone.cam, nn.Sequential):
        backbone.channels = cast(nn.Conv2d, backbone.cam[0]).in_channels
        backbone.cam = nn.Identity()
    return backbone


def _created(name: str, weights: str) -> Backbone:
    try:
        return create_backbone(BackboneParams(name=name, weights=weights))
    except OpamError as error:
        message = str(error).replace("backbone.name", "bcnn.second_backbone")
        raise OpamError(message.replace("backbone.weights", "bcnn.second_weights")) from None
