"""AP-CNN: an attention pyramid finds regions on three scales, and the network looks again there.

Ding, Ma, Wen, Xie, Chang, Si, Wu, Ling, "AP-CNN: Weakly Supervised Attention Pyramid Convolutional
Neural Network for Fine-Grained Visual Classification", IEEE TIP 30, 2021 (first version: arXiv
2002.03353). What the paper leaves open follows the authors' released code, which the published
accuracy comes from: the context of the whole photograph on the coarsest level, the form of the
classifiers, the classifier on the concatenated levels before their gates. docs/systems/ap_cnn.md
says where the release is not followed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from opam.networks.backbones.backbone import Backbone, pretrained_and_new
from opam.pipeline.errors import OpamError
from opam.pipeline.libraries import torchvision
from opam.pipeline.params import Params
from opam.systems.prediction import Prediction
from opam.systems.released import Release

PAPER_SIDE = 448
"""Side in pixels of the images that the anchors' sides are given for."""
COARSEST_STRIDE = 32
"""Pixels from cell to cell of the last stage; in VGG half of it."""
GATE_REDUCTION = 16
"""Channels over the width of the hidden layer of a channel gate."""


class ApCnnParams(Params):
    """The settings of the method; lists go from the finest level of the pyramid to the coarsest."""

    channels: int = Field(
        256, ge=GATE_REDUCTION, description="feature maps on each level of the pyramid"
    )
    hidden: int = Field(
        256, ge=1, description="width of the classifiers' hidden layer; released for CUB: 512"
    )
    anchors: list[Annotated[int, Field(ge=1, le=PAPER_SIDE)]] = Field(
        [64, 128, 256],
        min_length=3,
        max_length=3,
        description="side of each level's square regions, pixels of an image of 448 x 448",
    )
    regions: list[Annotated[int, Field(ge=1)]] = Field(
        [5, 3, 1], min_length=3, max_length=3, description="regions of interest of each level"
    )
    max_overlap: float = Field(
        0.05, ge=0, lt=1, description="IoU above which the worse of two regions is passed over"
    )
    border: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="share of a map's side, on each side, where no region may have its centre; "
        "released for CUB: 0.2",
    )
    drop: float = Field(
        0.3,
        ge=0,
        le=0.5,
        description="probability of dropping a region of the finest level in training, and "
        "likewise one of the middle level",
    )


@dataclass(frozen=True)
class Regions:
    """The regions of interest of one level.

    Attributes:
        boxes: float B x R x 4: x0, y0, x1, y1 in pixels of the image, clipped to it, best first.
            Where an image has fewer than R, its best one is repeated.
        counts: int64 B, 1..R: how many are its own.
    """

    boxes: torch.Tensor
    counts: torch.Tensor


def anchor_boxes(side: float, cells: tuple[int, int], image_size: tuple[int, int]) -> torch.Tensor:
    """A square around the centre of each cell.

    Args:
        side: pixels.
        cells: rows and columns of the map.
        image_size: height and width in pixels.

    Returns:
        float A x 4: x0, y0, x1, y1 in pixels, row by row; they may reach over the border.
    """
    (rows, columns), (height, width) = cells, image_size
    y = (torch.arange(rows) + 0.5) * (height / rows)
    x = (torch.arange(columns) + 0.5) * (width / columns)
    centres = torch.cartesian_prod(y, x).flip(1)
    return torch.cat([centres - side / 2, centres + side / 2], 1)


def without_border(scores: torch.Tensor, border: float) -> torch.Tensor:
    """Set the scores of B x h x w maps to 0 on a share ``border`` of the side, on each side."""
    rows, columns = scores.shape[1:]
    y, x = int(border * rows), int(border * columns)
    return F.pad(scores[:, y : rows - y, x : columns - x], (x, x, y, y))


def best_apart(
    scores: torch.Tensor, boxes: torch.Tensor, count: int, max_overlap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Non-maximum suppression among the boxes with scores above the image's mean.

    Args:
        scores: float B x A.
        boxes: float A x 4.
        count: R, boxes to choose for each image.
        max_overlap: a box is suppressed above this IoU with a chosen one.

    Returns:
        Indices of boxes, int64 B x R, best first (equal scores: first box first), and how many
        were found, int64 B, 1..R; behind these the best one is repeated. The best one counts
        even if no score is above the mean, as on a constant map.
    """
    mean = scores.mean(1)
    left = scores.clone()
    chosen: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    for _ in range(count):
        score, best = left.max(1)
        found.append(score > mean if chosen else torch.ones_like(score, dtype=torch.bool))
        chosen.append(torch.where(found[-1], best, chosen[0] if chosen else best))
        overlap = torchvision.ops.box_iou(boxes[best], boxes) > max_overlap
        left = left.masked_fill(overlap, -torch.inf).scatter(1, best[:, None], -torch.inf)
    return torch.stack(chosen, 1), torch.stack(found, 1).sum(1)


@torch.no_grad()
def regions_of_interest(
    gate: torch.Tensor, side: float, count: int, image_size: tuple[int, int], params: ApCnnParams
) -> Regions:
    """The regions of a level of the ROI pyramid: where its spatial gate is most open.

    Args:
        gate: float B x 1 x h x w, 0..1: how likely each cell is the centre of an object's part.
        side: of the regions, pixels.
        count: at most so many.
        image_size: height and width in pixels.
        params: border and overlap.

    Returns:
        Regions without gradient.
    """
    height, width = image_size
    rows, columns = gate.shape[2:]
    anchors = anchor_boxes(side, (rows, columns), image_size).to(gate.device)
    scores = without_border(gate.squeeze(1).float(), params.border).flatten(1)
    chosen, counts = best_apart(scores, anchors, count, params.max_overlap)
    boxes = anchors[chosen].clamp(min=0)
    return Regions(boxes.minimum(boxes.new_tensor([width, height, width, height])), counts)


def box_around(regions: Sequence[Regions]) -> torch.Tensor:
    """The smallest box that holds all regions of an image: float B x 4."""
    boxes = torch.cat([level.boxes for level in regions], 1)
    return torch.cat([boxes[..., :2].amin(1), boxes[..., 2:].amax(1)], 1)


def cells_of(
    boxes: torch.Tensor, image_size: tuple[int, int], cells: tuple[int, int]
) -> torch.Tensor:
    """Boxes in pixels to boxes in cells of a map, both ends rounded down, as released.

    Args:
        boxes: float B x 4, inside the image.
        image_size: height and width in pixels.
        cells: rows and columns of the map.

    Returns:
        int64 B x 4: x0, y0, x1, y1, half-open, at least one cell wide and high.
    """
    (height, width), (rows, columns) = image_size, cells
    counts = boxes.new_tensor([columns, rows, columns, rows])
    floors = (boxes * counts / boxes.new_tensor([width, height, width, height])).floor().long()
    start, end = floors[:, :2], floors[:, 2:]
    return torch.cat([start, end.maximum(start + 1)], 1)


def inside(boxes: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """Which cells of h x w maps lie in int64 B x 4 boxes of cells: bool B x h x w."""
    y, x = (torch.arange(count, device=boxes.device) for count in cells)
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    return ((y >= y0) & (y < y1))[:, :, None] & ((x >= x0) & (x < x1))[:, None, :]


def choose_dropped(
    finest: Regions, middle: Regions, probability: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw what ROI guided dropblock drops in each image.

    Args:
        finest: regions of the finest level.
        middle: regions of the middle level.
        probability: of dropping one of the finest level, and of dropping one of the middle level;
            never both.

    Returns:
        A box of each image, float B x 4, and whether it is dropped, bool B.
    """
    level, own = torch.rand(2, len(finest.boxes), device=finest.boxes.device).unbind()

    def one_of(regions: Regions) -> torch.Tensor:
        chosen = (own * regions.counts).long()[:, None, None].expand(-1, 1, 4)
        return regions.boxes.gather(1, chosen).squeeze(1)

    box = torch.where((level < probability)[:, None], one_of(finest), one_of(middle))
    return box, level < 2 * probability


def dropblock(maps: torch.Tensor, dropped: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """ROI guided dropblock: set cells to 0, and scale the others by shown over kept cells.

    Args:
        maps: float B x C x h x w.
        dropped: bool B x h x w.
        shown: bool B x h x w: cells that the second pass will see.

    Returns:
        float B x C x h x w.
    """
    kept = (shown & ~dropped).sum((1, 2), keepdim=True).clamp(min=1)
    factor = ~dropped * shown.sum((1, 2), keepdim=True) / kept
    return maps * factor[:, None].to(maps.dtype)


def zoom_in(maps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """ROI guided zoom-in: cut a box out of each image's maps and scale it to their size.

    It is ``F.interpolate(cut, (h, w), mode="bilinear")`` for boxes of different sizes at once:
    one matrix resamples the rows, another the columns.

    Args:
        maps: float B x C x h x w.
        boxes: int64 B x 4: x0, y0, x1, y1, half-open, cells.

    Returns:
        float B x C x h x w.
    """

    def weights(start: torch.Tensor, end: torch.Tensor, size: int) -> torch.Tensor:
        cells = torch.arange(size, device=boxes.device)
        along = (cells + 0.5) * ((end - start) / size)[:, None] - 0.5
        # Beyond the centres of the outermost cells the box goes on as it ends.
        along = start[:, None] + along.clamp(min=0).minimum(end[:, None] - start[:, None] - 1)
        return (1 - (along[:, :, None] - cells).abs()).clamp(min=0)  # B x new x old

    y = weights(boxes[:, 1], boxes[:, 3], maps.shape[2]).to(maps.dtype)
    x = weights(boxes[:, 0], boxes[:, 2], maps.shape[3]).to(maps.dtype)
    zoomed = torch.einsum("bip,bcpq,bjq->bcij", y, maps, x)
    return zoomed.contiguous(memory_format=torch.channels_last)


class VectorNorm(nn.BatchNorm1d):
    """Batch norm of vectors that normalises a batch of one, too: by the running statistics."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Float B x C to float B x C."""
        if self.training and len(vectors) == 1:
            return F.batch_norm(
                vectors, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(vectors)


class FeaturePyramid(nn.Module):
    """Top-down feature pathway: coarse, semantic maps are added to fine ones.

    Args:
        inputs: channels of the backbone's stages, finest first.
        channels: of every level of the pyramid.
    """

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        *finer, coarsest = inputs
        self.lateral = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in finer)
        self.top = nn.Sequential(
            nn.Conv2d(coarsest, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.context = nn.Sequential(
            nn.Linear(coarsest, channels, bias=False), VectorNorm(channels), nn.ReLU()
        )
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs)

    def forward(self, stages: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Maps of the stages to those of the levels, float B x channels x h x w, finest first."""
        *finer, coarsest = stages
        levels = [self.top(coarsest) + self.context(coarsest.mean((2, 3)))[:, :, None, None]]
        for lateral, maps in zip(reversed(self.lateral), reversed(finer), strict=True):
            above = F.interpolate(levels[0], maps.shape[2:], mode="nearest")
            levels.insert(0, lateral(maps) + above)
        return [smooth(maps) for smooth, maps in zip(self.smooth, levels, strict=True)]


class AttentionPyramid(nn.Module):
    """Bottom-up attention pathway: two gates a level, those of channels carried to coarser levels.

    Args:
        channels: of every level.
        levels: how many.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.spatial = nn.ModuleList(
            nn.ConvTranspose2d(channels, 1, 3, padding=1) for _ in range(levels)
        )
        self.channel = nn.ModuleList(
            nn.Sequential(
                nn.Linear(channels, channels // GATE_REDUCTION),
                nn.ReLU(),
                nn.Linear(channels // GATE_REDUCTION, channels),
                nn.Sigmoid(),
            )
            for _ in range(levels)
        )

    def forward(
        self, levels: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Gate the levels of a feature pyramid.

        Args:
            levels: float B x C x h x w, finest first.

        Returns:
            The gated levels, and the spatial gates, float32 B x 1 x h x w, 0..1.
        """
        gated, gates = [], []
        carried: torch.Tensor | None = None
        for maps, spatial, channel in zip(levels, self.spatial, self.channel, strict=True):
            with torch.autocast(maps.device.type, enabled=False):
                # Cells are ranked by the gate: in half precision, too many would be equal.
                gate = spatial(maps.float()).sigmoid()
            own = channel(maps.mean((2, 3)))
            carried = own if carried is None else (own + carried) / 2
            gated.append((gate + carried[:, :, None, None]) * maps)
            gates.append(gate)
        return gated, gates


def classifier(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """Two linear layers, each behind a batch norm: float B x inputs to float B x C."""
    return nn.Sequential(
        VectorNorm(inputs),
        nn.Linear(inputs, hidden),
        VectorNorm(hidden),
        nn.ELU(),
        nn.Linear(hidden, classes),
    )


class AttentionPyramidCnn(nn.Module):
    """AP-CNN on any backbone that runs in stages.

    VGG keeps the form it has in this project: without the last pooling, so that the coarsest level
    is as fine as the middle one, and with one more convolution.

    Args:
        backbone: a ResNet, Res2Net, EfficientNet, MobileNetV3 or VGG.
        classes: number of classes C.
        params: settings of the method.

    Raises:
        OpamError: the backbone does not run in stages.
    """

    def __init__(self, backbone: Backbone, classes: int, params: ApCnnParams) -> None:
        super().__init__()
        self.params = params
        self.backbone = backbone
        inputs = backbone.stage_channels()
        self.features = FeaturePyramid(inputs, params.channels)
        self.attention = AttentionPyramid(params.channels, len(inputs))
        widths = [params.channels] * len(inputs) + [params.channels * len(inputs)]
        self.classifiers = nn.ModuleList(
            classifier(width, params.hidden, classes) for width in widths
        )

    def forward(self, images: torch.Tensor) -> Prediction:
        """Classify photographs by the mean of the four classifiers over both passes.

        Args:
            images: uint8 B x 3 x H x W.

        Returns:
            Logits, float B x C. Boxes, float B x (1 + R) x 4: first the box around all regions,
            which is what the second pass sees and the method's notion of the object, then the
            regions level by level, finest first, best first in each. Scores of different levels
            come from different gates and are not compared. Where a level has fewer regions than
            its number, its best one is repeated.

        Raises:
            OpamError: the photographs are too small.
        """
        logits, regions = self._two_passes(images, drop=False)
        boxes = torch.cat([box_around(regions)[:, None], *(level.boxes for level in regions)], 1)
        height, width = images.shape[2:]
        sides = boxes.new_tensor([width, height, width, height])
        return Prediction(logits.mean(0), boxes / sides)

    def loss(
        self, images: torch.Tensor, labels: torch.Tensor, label_smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the cross-entropies of the four classifiers in both passes.

        In training mode, regions are dropped at random before the second pass.

        Args:
            images: uint8 B x 3 x H x W.
            labels: int64 B.
            label_smoothing: 0..1.

        Returns:
            The loss, and the mean logits, float B x C.

        Raises:
            OpamError: the photographs are too small.
        """
        logits, _ = self._two_passes(images, drop=self.training)
        losses = F.cross_entropy(
            logits.float().flatten(0, 1),
            labels.repeat(len(logits)),
            label_smoothing=label_smoothing,
        )
        return len(logits) * losses, logits.mean(0)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The pretrained parameters ("backbone") and all others ("head")."""
        return pretrained_and_new(self, self.backbone)

    def _two_passes(self, images: torch.Tensor, drop: bool) -> tuple[torch.Tensor, list[Regions]]:
        """Logits of all classifiers in both passes, float 8 x B x C, and the regions."""
        size = (images.shape[2], images.shape[3])
        if min(size) <= COARSEST_STRIDE:
            raise OpamError(
                f"input_size: of photographs of {size[1]} x {size[0]} pixels, ap_cnn's coarsest "
                f"level has a single cell; show larger ones, more than {COARSEST_STRIDE} pixels"
            )
        stages = self.backbone.stage_maps(images)
        first, gates = self._classify(stages)
        regions = self._regions(gates, size)

        maps = stages[0]
        cells = (maps.shape[2], maps.shape[3])
        shown = cells_of(box_around(regions), size, cells)
        if drop:
            box, chosen = choose_dropped(regions[0], regions[1], self.params.drop)
            dropped = inside(cells_of(box, size, cells), cells) & chosen[:, None, None]
            maps = dropblock(maps, dropped, inside(shown, cells))
        zoomed = zoom_in(maps, shown)
        second, _ = self._classify([zoomed, *self.backbone.run_stages(zoomed, first=1)])
        return torch.stack(first + second), regions

    def _classify(
        self, stages: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Maps of the stages to the logits of the four classifiers and the spatial gates."""
        levels = self.features(stages)
        gated, gates = self.attention(levels)
        vectors = [maps.mean((2, 3)) for maps in gated]
        vectors.append(torch.cat([maps.mean((2, 3)) for maps in levels], 1))
        logits = [head(vector) for head, vector in zip(self.classifiers, vectors, strict=True)]
        return logits, gates

    def _regions(self, gates: Sequence[torch.Tensor], size: tuple[int, int]) -> list[Regions]:
        """The regions of each level; size: height and width of the images in pixels."""
        unit = min(size) / PAPER_SIDE
        return [
            regions_of_interest(gate, unit * side, count, size, self.params)
            for gate, side, count in zip(
                gates, self.params.anchors, self.params.regions, strict=True
            )
        ]


_LEVELS = ("3", "4", "5")
_HEADS = (*(f"cls{level}" for level in _LEVELS), "cls_concate")

RELEASED = Release(
    names={
        "backbone.body.": "",
        **{f"features.lateral.{i}.": f"fpn.P{level}_1." for i, level in enumerate(_LEVELS[:-1])},
        "features.top.0.": "fpn.P5_1.conv_master.conv.",
        "features.top.1.": "fpn.P5_1.conv_master.bn.",
        "features.context.0.": "fpn.P5_1.conv_gpb.conv.",
        "features.context.1.": "fpn.P5_1.conv_gpb.bn.",
        **{f"features.smooth.{i}.": f"fpn.P{level}_2." for i, level in enumerate(_LEVELS)},
        **{f"attention.spatial.{i}.": f"apn.A{level}_1.conv." for i, level in enumerate(_LEVELS)},
        **{
            f"attention.channel.{i}.{layer}.": f"apn.A{level}_2.{there}."
            for i, level in enumerate(_LEVELS)
            for layer, there in ((0, "conv1"), (2, "conv2"))
        },
        # There what pools and flattens counts as layers of the classifiers, too.
        **{
            f"classifiers.{i}.{layer}.": f"{head}.{layer + (1 if head == 'cls_concate' else 2)}."
            for i, head in enumerate(_HEADS)
            for layer in (0, 1, 2, 4)
        },
    },
    class_layers=tuple(f"classifiers.{i}.4." for i in range(len(_HEADS))),
)
"""The authors' checkpoints of ResNet-50. What they released for VGG-19 is another network."""
