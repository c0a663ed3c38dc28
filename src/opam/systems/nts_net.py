"""NTS-Net: a Navigator proposes parts, a Teacher judges them, a Scrutinizer decides.

Yang, Luo, Wang, Hu, Gao, Wang, "Learning to Navigate for Fine-grained Classification", ECCV 2018
(arXiv 1809.00287). Where the authors' released code and the paper differ, this is the release,
which the published accuracy comes from; docs/systems/nts_net.md says where it is not.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from opam.networks.backbones.backbone import Backbone, pretrained_and_new
from opam.pipeline.errors import OpamError
from opam.pipeline.libraries import torchvision
from opam.pipeline.params import Params
from opam.systems.prediction import Prediction
from opam.systems.released import Release

PAPER_SIDE = 448
"""Side in pixels of the images that the anchors' sides are given for."""
NAVIGATOR_STRIDE = 32
"""Pixels from cell to cell of the Navigator's finest map."""
NAVIGATOR_CHANNELS = 128
SMALLEST_PART = 32
"""Pixels; the stride of most backbones, to which a smaller part gives no cell."""

Factor = Annotated[float, Field(ge=0.01, le=100)]


class AnchorLevel(Params):
    """The anchors of one map of the Navigator; each level halves the map of the one before."""

    side: float = Field(gt=0, le=4096, description="pixels, for images of 448 x 448")
    scales: list[Factor] = Field(min_length=1, description="of the side, each an anchor")


class NtsNetParams(Params):
    """The settings of the method; the defaults are the paper's."""

    proposals: int = Field(6, ge=1, description="M: parts a photograph that the Teacher judges")
    parts: int = Field(
        4, ge=1, description="K: best parts that the Scrutinizer sees beside the photograph"
    )
    anchors: list[AnchorLevel] = Field(
        [
            AnchorLevel(side=48, scales=[2 ** (1 / 3), 2 ** (2 / 3)]),
            AnchorLevel(side=96, scales=[2 ** (1 / 3), 2 ** (2 / 3)]),
            AnchorLevel(side=192, scales=[1.0, 2 ** (1 / 3), 2 ** (2 / 3)]),
        ],
        min_length=1,
        description="the Navigator's maps, finest first",
    )
    ratios: list[Factor] = Field(
        [0.667, 1.0, 1.5], min_length=1, description="width over height of the anchors"
    )
    max_overlap: float = Field(
        0.25, gt=0, le=1, description="IoU with a better part from which on a part is passed over"
    )
    part_scale: float = Field(
        0.5, gt=0, le=1, description="side to which a part is scaled, over the photograph's side"
    )
    ranking_weight: float = Field(
        1.0,
        ge=0,
        le=100,
        description="weight of the Navigator's loss, which grows without end where head rates are "
        "far above the paper's 0.001",
    )
    dropout: float = Field(
        0.5, ge=0, lt=1, description="share of pooled features dropped in training"
    )

    @model_validator(mode="after")
    def _parts_are_proposals(self) -> "NtsNetParams":
        if self.parts > self.proposals:
            raise ValueError("parts must be at most proposals")
        return self


def anchor_boxes(
    params: NtsNetParams, height: int, width: int, cells: Sequence[tuple[int, int]]
) -> torch.Tensor:
    """All anchors of an image: every scale and ratio around the centre of every cell.

    Sides are relative to the image's shorter side. A centre beyond the image, which the last cell
    of a coarse map may have, is put on its border, so that every anchor shows some of the image.

    Args:
        params: sides, scales and ratios.
        height: of the image, pixels.
        width: of the image, pixels.
        cells: rows and columns of the Navigator's maps, finest first.

    Returns:
        int64 N x 4: x0, y0, x1, y1, half-open, at least a pixel wide and high; they may reach
        over the border. Order: level, scale, ratio, row, column.
    """
    unit = min(height, width) / PAPER_SIDE
    stride_y, stride_x = height / cells[0][0], width / cells[0][1]
    boxes = []
    for number, (level, (rows, columns)) in enumerate(zip(params.anchors, cells, strict=True)):
        y = (torch.arange(rows, dtype=torch.float64) + 0.5) * 2**number * stride_y
        x = (torch.arange(columns, dtype=torch.float64) + 0.5) * 2**number * stride_x
        centres = torch.stack(
            torch.meshgrid(x.clamp(max=width), y.clamp(max=height), indexing="xy"), 2
        )
        shapes = [
            (level.side * scale * math.sqrt(ratio), level.side * scale / math.sqrt(ratio))
            for scale in level.scales
            for ratio in params.ratios
        ]
        halves = unit * torch.tensor(shapes, dtype=torch.float64)[:, None, None] / 2
        start = (centres - halves).floor()
        end = (centres + halves).floor().maximum(start + 1)
        boxes.append(torch.cat([start, end], 3).flatten(0, 2))
    return torch.cat(boxes).long()


def best_apart(
    scores: torch.Tensor, boxes: torch.Tensor, count: int, max_overlap: float
) -> torch.Tensor:
    """The first ``count`` boxes of non-maximum suppression, for a whole batch at once.

    Where suppression leaves fewer, those with the highest scores among the suppressed follow, so
    that every image has its number of parts.

    Args:
        scores: float B x N.
        boxes: N x 4, N >= ``count``.
        count: boxes an image.
        max_overlap: a box is suppressed from this IoU with a chosen one on.

    Returns:
        int64 B x ``count`` indices of boxes, best first; equal scores in the order of the boxes.
    """
    chosen: list[torch.Tensor] = []
    taken = torch.zeros_like(scores, dtype=torch.bool)
    suppressed = taken.clone()
    for _ in range(count):
        excluded = torch.where(suppressed.all(1, keepdim=True), taken, suppressed)
        best = scores.masked_fill(excluded, -math.inf).argmax(1)
        taken.scatter_(1, best[:, None], True)
        suppressed |= taken | (torchvision.ops.box_iou(boxes[best], boxes) >= max_overlap)
        chosen.append(best)
    return torch.stack(chosen, 1)


def cut_parts(
    images: torch.Tensor, boxes: torch.Tensor, fill: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Cut boxes out of images that go on in one colour beyond their border, and scale them.

    As in the release, a box's outermost pixels become the outermost pixels of the part ("align
    corners"), without smoothing. With ``fill`` the backbone's mean colour, parts are after
    normalisation what the release cuts from normalised images padded with zeros.

    Args:
        images: B x 3 x H x W, 0..255.
        boxes: int64 B x R x 4: x0, y0, x1, y1, half-open, pixels.
        fill: float 1 x 3 x 1 x 1, 0..255.
        size: height h and width w of a part.

    Returns:
        float (B R) x 3 x h x w, 0..255, an image's parts in a row.
    """

    def positions(start: torch.Tensor, end: torch.Tensor, steps: int, side: int) -> torch.Tensor:
        along = torch.linspace(0, 1, steps, device=boxes.device)
        pixels = start[..., None] + (end - 1 - start)[..., None] * along
        return (2 * pixels + 1) / side - 1  # as grid_sample counts: -1..1 from border to border

    batch, count = boxes.shape[:2]
    height, width = size
    x = positions(boxes[..., 0], boxes[..., 2], width, images.shape[3])
    y = positions(boxes[..., 1], boxes[..., 3], height, images.shape[2])
    grid = torch.stack(
        [x[:, :, None].expand(-1, -1, height, -1), y[..., None].expand(-1, -1, -1, width)], 4
    )
    # An image's parts are sampled as one tall image: no image is copied for each of its parts.
    tall = F.grid_sample(
        images.float() - fill, grid.flatten(1, 2), padding_mode="zeros", align_corners=False
    )
    parts = (tall + fill).reshape(batch, 3, count, height, width)
    return parts.transpose(1, 2).flatten(0, 1)


def ranking_loss(informativeness: torch.Tensor, part_losses: torch.Tensor) -> torch.Tensor:
    """Parts that the Teacher is surer of shall be more informative: the Navigator's loss.

    Args:
        informativeness: float B x M, the Navigator's scores.
        part_losses: float B x M, the Teacher's cross-entropies; no gradient goes to them.

    Returns:
        The hinge of margin 1, summed over all pairs of parts of an image of which the first has
        the lower loss, over B.
    """
    surer = part_losses[:, :, None] < part_losses[:, None, :]
    lead = informativeness[:, :, None] - informativeness[:, None, :]
    return (F.relu(1 - lead) * surer).sum() / len(informativeness)


class Navigator(nn.Module):
    """How informative is each anchor? A small top-down network with a map a level.

    Args:
        channels: of the backbone's maps.
        anchors: anchors a cell of each level.
    """

    def __init__(self, channels: int, anchors: Sequence[int]) -> None:
        super().__init__()
        inputs = [channels] + [NAVIGATOR_CHANNELS] * (len(anchors) - 1)
        self.down = nn.ModuleList(
            nn.Conv2d(count, NAVIGATOR_CHANNELS, 3, stride=1 if number == 0 else 2, padding=1)
            for number, count in enumerate(inputs)
        )
        self.score = nn.ModuleList(nn.Conv2d(NAVIGATOR_CHANNELS, count, 1) for count in anchors)

    def forward(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """Float B x C x h x w to a float B x anchors x rows x columns for each level."""
        scores = []
        for down, score in zip(self.down, self.score, strict=True):
            maps = F.relu(down(maps))
            scores.append(score(maps))
        return scores


class NavigatorTeacherScrutinizer(nn.Module):
    """NTS-Net on any backbone, whose weights whole photographs and parts share.

    The Navigator's finest map has a cell every 32 pixels: finer maps of a backbone are averaged
    down to it, coarser ones stay as they are.

    Args:
        backbone: images to feature maps.
        classes: number of classes C.
        params: settings of the method.
    """

    def __init__(self, backbone: Backbone, classes: int, params: NtsNetParams) -> None:
        super().__init__()
        self.params = params
        self.backbone = backbone
        self.navigator = Navigator(
            backbone.channels, [len(level.scales) * len(params.ratios) for level in params.anchors]
        )
        self.dropout = nn.Dropout(params.dropout)
        self.image_teacher = nn.Linear(backbone.channels, classes)
        self.part_teacher = nn.Linear(backbone.channels, classes)
        self.scrutinizer = nn.Linear((1 + params.parts) * backbone.channels, classes)

    def forward(self, images: torch.Tensor) -> Prediction:
        """Classify photographs from the whole and the K parts that the Navigator puts first.

        Args:
            images: uint8 B x 3 x H x W.

        Returns:
            The Scrutinizer's logits, float B x C, and the parts, float B x K x 4, most
            informative first, clipped to the photograph.

        Raises:
            OpamError: the photographs are too small for the settings.
        """
        maps = self.backbone(images)
        boxes, _ = self._navigate(images, maps, self.params.parts)
        logits = self._scrutinize(self._pool(maps), self._part_features(images, boxes))
        height, width = images.shape[2:]
        sides = torch.tensor([width, height, width, height], device=boxes.device)
        return Prediction(logits, boxes.clamp(min=0).minimum(sides) / sides)

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the four losses (section 3.5).

        Args:
            images: uint8 B x 3 x H x W.
            labels: int64 B.
            label_smoothing: 0..1, for the cross-entropies. The ranking compares without it: by
                the Teacher's confidence in the label.

        Returns:
            The loss, and the Scrutinizer's logits, float B x C.

        Raises:
            OpamError: the photographs are too small for the settings.
        """
        losses, logits = self.losses(images, labels, label_smoothing)
        return torch.stack(list(losses.values())).sum(), logits

    def losses(
        self, images: torch.Tensor, labels: torch.Tensor, label_smoothing: float
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What `loss` adds up: "image" and "parts" (Teacher), "scrutinizer", "ranking"."""
        maps = self.backbone(images)
        boxes, informativeness = self._navigate(images, maps, self.params.proposals)
        whole = self._pool(maps)
        parts = self._part_features(images, boxes)
        logits = self._scrutinize(whole, parts)
        image_logits = self.image_teacher(whole).float()
        part_logits = self.part_teacher(parts).float().flatten(0, 1)
        part_labels = labels.repeat_interleave(self.params.proposals)
        doubts = F.cross_entropy(part_logits, part_labels, reduction="none")
        losses = {
            "image": F.cross_entropy(image_logits, labels, label_smoothing=label_smoothing),
            "parts": F.cross_entropy(part_logits, part_labels, label_smoothing=label_smoothing),
            "scrutinizer": F.cross_entropy(logits, labels, label_smoothing=label_smoothing),
            "ranking": self.params.ranking_weight
            * ranking_loss(informativeness, doubts.view_as(informativeness)),
        }
        return losses, logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The pretrained parameters ("backbone") and all others ("head")."""
        return pretrained_and_new(self, self.backbone)

    def _navigate(
        self, images: torch.Tensor, maps: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The most informative parts: int64 B x count x 4, and their scores, float B x count."""
        height, width = images.shape[2:]
        # The ranking loss must not reach the backbone.
        maps = F.adaptive_avg_pool2d(
            maps.detach(),
            (
                min(maps.shape[2], math.ceil(height / NAVIGATOR_STRIDE)),
                min(maps.shape[3], math.ceil(width / NAVIGATOR_STRIDE)),
            ),
        )
        levels = self.navigator(maps)
        anchors = anchor_boxes(
            self.params, height, width, [(s.shape[2], s.shape[3]) for s in levels]
        ).to(images.device)
        if len(anchors) < count:
            raise OpamError(
                f"nts_net.proposals: photographs of {width} x {height} pixels have {len(anchors)} "
                f"anchors, fewer than {count}; show larger ones or lower it"
            )
        scores = torch.cat([score.flatten(1) for score in levels], 1).float()
        best = best_apart(scores.detach(), anchors, count, self.params.max_overlap)
        return anchors[best], scores.gather(1, best)

    def _part_features(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Parts int64 B x R x 4 to pooled features, float B x R x channels."""
        height, width = (round(self.params.part_scale * side) for side in images.shape[2:])
        if min(height, width) < SMALLEST_PART:
            raise OpamError(
                f"nts_net.part_scale: {self.params.part_scale} of photographs of "
                f"{images.shape[3]} x {images.shape[2]} pixels is less than {SMALLEST_PART} "
                "pixels; show larger ones or raise it"
            )
        parts = cut_parts(images, boxes, 255 * self.backbone.mean, (height, width))
        return self._pool(self.backbone(parts)).view(*boxes.shape[:2], -1)

    def _pool(self, maps: torch.Tensor) -> torch.Tensor:
        return self.dropout(maps.mean((2, 3)))

    def _scrutinize(self, whole: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
        """Logits from the whole, B x channels, and the first K of the parts, B x R x channels."""
        best = parts[:, : self.params.parts].flatten(1)
        return self.scrutinizer(torch.cat([whole, best], 1)).float()


def whole_first(network: NavigatorTeacherScrutinizer, weight: torch.Tensor) -> torch.Tensor:
    """The Scrutinizer's weight as released, with the parts before the whole, in the order here."""
    return weight.roll(network.backbone.channels, 1)


RELEASED = Release(
    names={
        "backbone.body.": "pretrained_model.",
        "image_teacher.": "pretrained_model.fc.",
        "part_teacher.": "partcls_net.",
        "scrutinizer.": "concat_net.",
        **{f"navigator.down.{level}.": f"proposal_net.down{level + 1}." for level in range(3)},
        **{f"navigator.score.{level}.": f"proposal_net.tidy{level + 1}." for level in range(3)},
    },
    class_layers=("image_teacher.", "part_teacher.", "scrutinizer."),
    rearranged={"scrutinizer.weight": whole_first},
)
"""The authors' ``model.ckpt``: ResNet-50, CUB-200-2011, one class after the other."""
