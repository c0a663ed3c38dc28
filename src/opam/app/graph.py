"""The pipeline of a bundle of discriminants as one graph: photograph in, fused answer and box out.

Discriminants stand on one backbone, the pretrained one; so a graph holds its weights once, and
every view of a photograph goes through them. What `opam.app.classifier` does by numpy, scipy and
OpenCV is done by tensors here, so that runtimes without them can do it:

- Crops are cut by two matrix products (`opam.engine.crops.on_device`), whatever the photograph's
  size.
- The largest connected region is found on a grid of `GRID` cells a side: each salient cell takes
  the greatest number in its neighbourhood until those of a region have the same, and numbers are
  counted. Its box is read from the map at the photograph's own size.
- Original and object are fused, with the weights of these two; parts are left out.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from opam.app.bundle import BUNDLE
from opam.app.classifier import Classifier
from opam.engine.crops.on_device import side_weights
from opam.method.colocalization import Direction
from opam.method.fusion import PROBE
from opam.method.objects import GRID as CELLS
from opam.method.saliency import CONSTANT
from opam.networks.backbones.backbone import Backbone, finer_module
from opam.networks.backbones.weights import state_digest
from opam.networks.cam_network import Pooled, pooled_features
from opam.pipeline.artifacts import read_json
from opam.pipeline.errors import OpamError

FUSED = "original+object"
"""What the graph fuses, by its name among the bundle's weights."""
GRID = 64
"""Cells a side of the grid on which regions are told apart."""
STEPS = 2 * GRID
"""Cells that a number travels: enough for a region that goes to and fro across the grid."""


class Graph(nn.Module):
    """One photograph to the probabilities of original and object together, and the object's box.

    Args:
        classifier: a bundle, on the CPU; its backbone is taken over and changed.

    Raises:
        OpamError: its networks are not discriminants of one backbone, or the object is not found
            by co-localization.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        steps = classifier.steps
        if steps["objects"].map != "colocalization":
            raise OpamError(
                f"{classifier.path}: objects.map is {steps['objects'].map}, and the graph finds "
                "the object on the co-localization map; `opam export-onnx` writes the networks"
            )
        if not classifier.direction.component.any():
            raise OpamError(
                f"{classifier.path}: its photographs have no one object in common, and the graph "
                "looks at one; `opam export-onnx` writes the networks"
            )
        self.rule = classifier.rule
        self.weights: dict[str, float] = read_json(classifier.path / BUNDLE)["fusion"]["weights"][
            FUSED
        ]
        self.mirrored: bool = steps["mirrored"]
        self.threshold: float = steps["objects"].threshold
        self.layer: str | None = steps["colocalization"].layer
        self.map_side: int = steps["colocalization"].input_size
        self.backbone: Backbone = classifier.networks["probes"].backbone
        body = state_digest(self.backbone.body)
        self.heads = nn.ModuleDict()
        self.how: dict[str, tuple[str, int, Pooled, int, float]] = {}
        for name in self.weights:
            branch = name.removesuffix(PROBE)
            network = "probes" if name.endswith(PROBE) else branch
            found, settings = classifier.networks[network], classifier.settings[network]
            if not found.rooted or state_digest(found.backbone.body) != body:
                raise OpamError(
                    f"{classifier.path}: its networks were trained, each on a backbone of its own, "
                    "and one graph takes discriminants (`by: discriminant`); `opam export-onnx` "
                    "writes the networks"
                )
            self.heads[network] = found.head
            head = ["original", "object"].index(branch) if name.endswith(PROBE) else 0
            size, resize = settings["input_size"], settings["resize"]
            self.how[name] = network, head, found.pooled, size, size / resize
        self.classes = len(classifier.classes)
        fold_for_good(self.backbone, self.layer)
        self.component, self.constant = linear(classifier.direction)

    def forward(self, photograph: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the bundle says of a photograph.

        Args:
            photograph: uint8 H x W x 3, RGB, upright.

        Returns:
            Probabilities, float32 C; the object's box x0, y0, x1, y1, half-open, pixels of the
            photograph, int64 4.
        """
        height, width = photograph.shape[:2]
        pixels = photograph.float()
        whole = whole_box(height, width)
        box = find_box(self.common_map(pixels, whole), height, width, self.threshold)
        found = []
        for name, (network, head, pooled, size, fraction) in self.how.items():
            seen = whole if name.startswith("original") else box
            crop = cut(pixels, centred(seen, fraction), size)
            crops = torch.cat([crop, crop.flip(3)]) if self.mirrored else crop
            logits = self.heads[network](pooled_features(self.backbone, crops, pooled))
            scores = logits.view(len(crops), -1, self.classes)[:, head].softmax(1)
            found.append(scores.mean(0))
        return self.fuse(found), box

    def fuse(self, scores: Sequence[torch.Tensor]) -> torch.Tensor:
        """As `opam.method.fusion.fuse`, float C each."""
        product = self.rule == "product"
        logs = [each.clamp(min=1e-12).log() if product else each for each in scores]
        weights = self.weights.values()
        total = torch.stack([w * each for w, each in zip(weights, logs, strict=True)]).sum(0)
        return total.softmax(0) if product else total

    def common_map(self, pixels: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """As `opam.method.colocalization.object_maps`, float h x w."""
        crop = cut(pixels, whole, self.map_side)
        maps = self.backbone.shared_maps(torch.cat([crop, crop.flip(3)]), self.layer)
        both = functional.conv2d(maps, self.component)[:, 0] + self.constant
        return (both[0] + both[1].flip(1)) / 2


def whole_box(height: int, width: int) -> torch.Tensor:
    """The box of the whole photograph, int64 4."""
    return torch.cat([torch.zeros(2, dtype=torch.int64), count(width), count(height)])


def count(number: int) -> torch.Tensor:
    """A number of the photograph's pixels, int64 1: an export takes it for any, as a tensor."""
    return torch.full((1,), number)


def linear(direction: Direction) -> tuple[torch.Tensor, float]:
    """`opam.method.colocalization.project` as a convolution: float32 1 x C x 1 x 1, constant."""
    constant = direction.intercept - float(direction.mean @ direction.component)
    return torch.from_numpy(direction.component).float().view(1, -1, 1, 1), constant


def centred(box: torch.Tensor, fraction: float) -> torch.Tensor:
    """As `opam.engine.crops.cutting.centre_boxes` and `whole_pixels`; the same where all is shown.

    Args:
        box: int64 4, inside the photograph.
        fraction: side of the shown part over side of the box, 0..1.
    """
    if fraction == 1:
        return box
    first, end = box[:2], box[2:]
    inset = (end - first) * ((1 - fraction) / 2)
    first = (first + inset + 0.5).floor().long()
    return torch.cat([first, torch.maximum((end - inset + 0.5).floor().long(), first + 1)])


def cut(pixels: torch.Tensor, box: torch.Tensor, size: int) -> torch.Tensor:
    """As `opam.engine.crops.on_device`, of one photograph.

    Args:
        pixels: float H x W x 3, 0..255.
        box: int64 4.
        size: side of the crop in pixels, S.

    Returns:
        float 1 x 3 x S x S, whole levels.
    """
    rows, columns = (weights(box[at], box[at + 2], size, pixels.shape[1 - at]) for at in (1, 0))
    strips = (rows @ pixels.flatten(1)).view(size, -1, 3)
    crop = torch.einsum("swc,tw->cst", strips, columns)
    return crop.round().clamp(0, 255)[None]


def weights(first: torch.Tensor, end: torch.Tensor, size: int, side: int) -> torch.Tensor:
    """What each of ``side`` pixels weighs in each of ``size`` made of those from first to end."""
    own = side_weights((end - first)[None], size, side)[0]
    places = torch.arange(side) - first  # behind the end weights are 0, and stand for those before
    return own[:, torch.where(places < 0, places + side, places)]


def bilinear(cells: int, pixels: int) -> torch.Tensor:
    """What each cell weighs in each pixel, as OpenCV scales: float pixels x cells."""
    place = (torch.arange(pixels) + 0.5) * cells / count(pixels) - 0.5
    apart = place.clamp(0, cells - 1)[:, None] - torch.arange(cells)
    return (1 - apart.abs()).clamp(min=0)


def find_box(common: torch.Tensor, height: int, width: int, threshold: float) -> torch.Tensor:
    """As `opam.method.saliency.to_image` and `opam.method.objects.find_object`, int64 4.

    Args:
        common: float h x w, a photograph's co-localization map.
        height: of the photograph, pixels.
        width: of the photograph, pixels.
        threshold: salient is at least so much of the map's range.
    """
    rows, columns = common.shape
    values = common.clamp(min=0)
    scaled = bilinear(rows, height) @ values @ bilinear(columns, width).T
    low, high = scaled.min(), scaled.max()
    level = low + threshold * (high - low)
    salient = bilinear(rows, GRID) @ values @ bilinear(columns, GRID).T >= level
    region = largest_region(salient)
    # The grid says which region, the map at its full size where that ends.
    around = functional.max_pool2d(region, 3, 1, 1)[0, 0]
    down, across = (torch.arange(side) * GRID // count(side) for side in (height, width))
    inside = (scaled >= level) & (around[down][:, across] > 0)
    box = torch.cat([extent(inside.any(0)), extent(inside.any(1))])[[0, 2, 1, 3]]
    tells = (high - low > CONSTANT * high) & inside.any()
    return torch.where(tells, on_grid(box, height, width), whole_box(height, width))


def on_grid(box: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """As `opam.method.objects.on_grid`, int64 4."""
    sides = whole_box(height, width)[2:].float()
    corners = torch.round(box.view(2, 2).float() * CELLS / sides)
    low = corners[0].clamp(max=CELLS - 1)
    high = torch.maximum(corners[1], low + 1)
    low, high = (torch.round(each * sides / CELLS).long() for each in (low, high))
    return torch.cat([low, torch.maximum(high, low + 1)])


def largest_region(salient: torch.Tensor) -> torch.Tensor:
    """The largest 8-connected region of bool rows x columns.

    Returns:
        float 1 x 1 x rows x columns, 1 inside and 0 outside.
    """
    inside = salient.float()[None, None]
    numbers = torch.arange(1, salient.numel() + 1).view(inside.shape).float()
    for _ in range(STEPS):
        numbers = functional.max_pool2d(numbers * inside, 3, 1, 1)
    numbers = (numbers * inside).long()
    sizes = torch.zeros(salient.numel() + 1).scatter_add(0, numbers.flatten(), inside.flatten())
    return inside * (numbers == sizes.argmax()).float()


def extent(inside: torch.Tensor) -> torch.Tensor:
    """First and, half-open, last place that is inside: int64 2, of bool N."""
    places = torch.arange(inside.shape[0])
    first = torch.where(inside, places, inside.shape[0]).min()
    end = torch.where(inside, places + 1, 0).max()
    return torch.stack([first, end])


def fold_for_good(backbone: Backbone, layer: str | None) -> None:
    """Put batch norms that `fold_batch_norm` found into the weights of their convolutions.

    A runtime does so by itself, but for each view of a photograph anew, and then holds the weights
    as often.

    Args:
        backbone: which was folded; parameters change, what it gives stays but for rounding.
        layer: module whose own output is asked for, beside that of `finer_module`.
    """
    body = backbone.body
    names = {module: name for name, module in body.named_modules()}
    pairs = {module.__dict__["pair"] for module in names if "pair" in module.__dict__}
    for pair in pairs:
        convolution, norm = pair.convolution, pair.norm
        for module in (convolution, norm):
            del module.__dict__["pair"], module.__dict__["forward"]
        places = names[convolution], names[norm]
        together = len({name.rpartition(".")[0] for name in places}) == 1
        if not together or {layer, finer_module(body)} & {*places}:
            continue
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * scale
        if convolution.bias is not None:
            bias = bias + convolution.bias * scale
        convolution.weight = nn.Parameter(convolution.weight * scale.view(-1, 1, 1, 1))
        convolution.bias = nn.Parameter(bias)
        body.set_submodule(names[norm], getattr(norm, "act", nn.Identity()))
