"""MC-Loss: a loss that gives every class feature channels of its own, each for another place.

Chang, Ding, Xie, Bhunia, Li, Ma, Wu, Guo, Song, "The Devil is in the Channels: Mutual-Channel
Loss for Fine-Grained Image Classification", IEEE TIP 29, 2020 (arXiv 2002.04264). The loss acts
in training only: what classifies is a backbone under global average pooling and a linear layer,
so that plain fine-tuning (`opam.systems.finetune`) is its control.

Where the authors' released code and the paper differ, this is the release, but for what
docs/systems/mc_loss.md says.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from opam.networks.backbones.backbone import Backbone, pretrained_and_new
from opam.pipeline.params import Params
from opam.systems.prediction import Prediction
from opam.systems.regions import cam_prediction, pooled_logits

PUBLISHED_CHANNELS = 3
"""Channels a class, xi, of a network that is given as many as it needs."""

Allotment = list[tuple[int, int]]
"""Blocks of (classes, channels of each); the channels of a class follow one another."""


class McLossParams(Params):
    """The settings of the method; the defaults are those released for pretrained backbones."""

    mu: float = Field(
        0.0005,
        ge=0,
        description="weight of the discriminality part beside the cross-entropy; released: 0.0005 "
        "for a pretrained backbone, 1.5 from scratch",
    )
    diversity: float = Field(
        10.0,
        ge=0,
        description="lambda: weight of the diversity part over that of the discriminality part; "
        "released: 10 for a pretrained backbone, 13.3 from scratch",
    )
    dropped: float = Field(
        0.4,
        gt=0,
        lt=1,
        description="share of a class's channels that the mask drops, rounded down, but one at "
        "least",
    )
    channels_per_class: int | None = Field(
        None,
        ge=2,
        description="xi: a 1 x 1 convolution gives every class so many channels (from scratch: 3); "
        "null: the backbone's own channels are shared out",
    )


def allot_channels(channels: int, classes: int) -> Allotment:
    """Share ``channels`` out evenly; some classes get one more where they do not divide.

    Returns:
        One or two blocks of (classes, channels of each), first the classes with fewer.
    """
    each, more = divmod(channels, classes)
    return [block for block in [(classes - more, each), (more, each + 1)] if block[0]]


def by_class(values: torch.Tensor, allotment: Allotment) -> list[torch.Tensor]:
    """Split B x N x ... values into a B x classes x channels x ... tensor a block."""
    blocks = torch.split(values, [classes * each for classes, each in allotment], 1)
    return [
        block.reshape(block.shape[0], *sizes, *block.shape[2:])
        for block, sizes in zip(blocks, allotment, strict=True)
    ]


def channel_mask(allotment: Allotment, dropped: float) -> torch.Tensor:
    """Channel-wise attention: which channels are kept (section III).

    Args:
        allotment: blocks of classes.
        dropped: share of each class's channels to drop, rounded down, but one at least.

    Returns:
        float N of 0 and 1, on the CPU: torch's global generator there draws the same mask
        whatever device the network runs on.
    """
    kept = [
        # Sorting random numbers gives each class a random order of its channels.
        torch.rand(classes, each).argsort(1) >= max(1, int(dropped * each))
        for classes, each in allotment
    ]
    return torch.cat([block.flatten() for block in kept]).float()


def discriminality(
    maps: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, allotment: Allotment
) -> torch.Tensor:
    """Every class's kept channels must tell it from the others (L_dis, section III).

    Mask, maximum over the channels of a class at each location, spatial mean, cross-entropy.

    Args:
        maps: float B x N x h x w.
        labels: int64 B.
        mask: float N of 0 and 1.
        allotment: blocks of classes that share the N channels.

    Returns:
        The mean over the batch, a scalar.
    """
    masked = maps * mask.to(maps.device)[:, None, None]
    # Cross-channel max pooling, then global average pooling.
    scores = [block.amax(2).mean((2, 3)) for block in by_class(masked, allotment)]
    return F.cross_entropy(torch.cat(scores, 1), labels)


def diversity(maps: torch.Tensor, allotment: Allotment) -> torch.Tensor:
    """How far the channels of a class look at different places (L_div over xi, section III).

    Softmax over the locations of each channel, maximum over the channels of a class, sum over the
    locations, over the number of channels.

    Args:
        maps: float B x N x h x w.
        allotment: blocks of classes that share the N channels.

    Returns:
        The mean over classes and batch, a scalar: one over xi where a class's channels are all
        alike, up to 1 where each has a place of its own, for which it takes xi cells.
    """
    attention = maps.flatten(2).softmax(2)
    spread = [block.amax(2).sum(2) / block.shape[2] for block in by_class(attention, allotment)]
    return torch.cat(spread, 1).mean()


class MutualChannelNetwork(nn.Module):
    """Backbone, global average pooling, linear layer, trained with MC-Loss.

    The backbone's own channels are shared out, as published for pretrained networks: nothing new
    stands between them and the loss. With fewer than two channels a class there would be nothing
    to drop and nothing to keep apart; then, and where `McLossParams.channels_per_class` asks for
    it, a 1 x 1 convolution with ReLU makes as many channels as are needed (3 a class unless set),
    which corresponds to the wider last convolution that the paper trains from scratch.

    Args:
        backbone: images to feature maps.
        classes: number of classes C.
        params: settings of the method.

    Attributes:
        allotment: which channels belong to which class.
    """

    def __init__(self, backbone: Backbone, classes: int, params: McLossParams) -> None:
        super().__init__()
        self.params = params
        self.backbone = backbone
        self.expansion: nn.Module = nn.Identity()
        channels = backbone.channels
        if params.channels_per_class is not None or channels < 2 * classes:
            channels = classes * (params.channels_per_class or PUBLISHED_CHANNELS)
            # Rectified, because a dropped channel counts as 0 beside the others.
            convolution = nn.Conv2d(backbone.channels, channels, 1)
            self.expansion = nn.Sequential(convolution, nn.ReLU(inplace=True))
        self.allotment = allot_channels(channels, classes)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: torch.Tensor) -> Prediction:
        """Classify photographs; the loss has no part in it.

        Args:
            images: uint8 B x 3 x H x W.

        Returns:
            Logits, float B x C, and float B x 1 x 4 boxes around the largest active region of
            the predicted class's activation map.
        """
        return cam_prediction(self._maps(images), self.head)

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``L_CE + mu (L_dis + lambda (1 - L_div / xi))`` (section III, as released).

        Args:
            images: uint8 B x 3 x H x W.
            labels: int64 B.
            label_smoothing: 0..1, for the linear layer's cross-entropy.

        Returns:
            The loss, and the linear layer's logits, float B x C.
        """
        maps = self._maps(images)
        logits = pooled_logits(maps, self.head)
        classified = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        mask = channel_mask(self.allotment, self.params.dropped)
        mutual = discriminality(maps.float(), labels, mask, self.allotment)
        mutual = mutual + self.params.diversity * (1 - diversity(maps.float(), self.allotment))
        return classified + self.params.mu * mutual, logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The pretrained parameters ("backbone") and all others ("head")."""
        return pretrained_and_new(self, self.backbone)

    def _maps(self, images: torch.Tensor) -> torch.Tensor:
        return self.expansion(self.backbone(images))
