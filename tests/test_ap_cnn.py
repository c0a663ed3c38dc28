"""AP-CNN against literal computation."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from system_checks import assert_known_by_heart, losses_while_it_learns
from torch import nn

from opam.networks.backbones.backbone import Backbone
from opam.pipeline.errors import OpamError
from opam.pipeline.params import section_of
from opam.systems.ap_cnn import (
    ApCnnParams,
    AttentionPyramid,
    AttentionPyramidCnn,
    FeaturePyramid,
    Regions,
    VectorNorm,
    anchor_boxes,
    best_apart,
    box_around,
    cells_of,
    choose_dropped,
    dropblock,
    inside,
    regions_of_interest,
    without_border,
    zoom_in,
)

SMALL = ApCnnParams(channels=32, hidden=16)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(batch: int, height: int = 96, width: int = 96, seed: int = 0) -> torch.Tensor:
    size = (batch, 3, height, width)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=rng(seed))


def small_network(
    classes: int = 3, params: ApCnnParams = SMALL, name: str = "mobilenetv3_small_050"
) -> AttentionPyramidCnn:
    torch.manual_seed(0)
    network = AttentionPyramidCnn(Backbone(name), classes, params)
    for module in network.modules():
        # timm starts residual branches at zero, which stops their gradients in the first step.
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)
    return network


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# ---- pyramids ----


def test_the_feature_pyramid_adds_coarse_maps_to_fine_ones() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid([4, 6, 8], 5).eval()
    sizes = [(4, 7, 6), (6, 4, 3), (8, 2, 2)]
    stages = [torch.randn(2, *size, generator=rng(1)) for size in sizes]
    norms = (pyramid.top[1], pyramid.context[1])
    for norm in norms:
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    with torch.no_grad():
        levels = pyramid(stages)

        def normed(values: torch.Tensor, norm: nn.BatchNorm2d | nn.BatchNorm1d) -> torch.Tensor:
            return ((values - norm.running_mean) / (norm.running_var + norm.eps).sqrt()).relu()

        top = torch.zeros(2, 2, 2, 5)
        for y in range(2):
            for x in range(2):
                top[:, y, x] = normed(
                    stages[2][:, :, y, x] @ pyramid.top[0].weight[:, :, 0, 0].T, norms[0]
                )
        pooled = stages[2].sum((2, 3)) / 4
        top += normed(pooled @ pyramid.context[0].weight.T, norms[1])[:, None, None]
        literal = [top]
        for level in (1, 0):
            above, lateral = literal[0], pyramid.lateral[level]
            _, rows, columns = sizes[level]
            summed = torch.zeros(2, rows, columns, 5)
            for y in range(rows):
                for x in range(columns):
                    nearest = above[:, y * above.shape[1] // rows, x * above.shape[2] // columns]
                    own = stages[level][:, :, y, x] @ lateral.weight[:, :, 0, 0].T + lateral.bias
                    summed[:, y, x] = own + nearest
            literal.insert(0, summed)
        for level, smooth, maps in zip(levels, pyramid.smooth, literal, strict=True):
            expected = F.conv2d(maps.permute(0, 3, 1, 2), smooth.weight, smooth.bias, padding=1)
            assert torch.allclose(level, expected, atol=1e-5)


def test_gates_are_the_literal_ones() -> None:
    torch.manual_seed(0)
    attention = AttentionPyramid(32, 3)
    levels = [torch.randn(1, 32, *size, generator=rng(2)) for size in [(6, 5), (3, 3), (2, 2)]]
    with torch.no_grad():
        gated, gates = attention(levels)
    carried = None
    for maps, spatial, channel, out, gate in zip(
        levels, attention.spatial, attention.channel, gated, gates, strict=True
    ):
        features = maps[0].double().numpy()
        _, rows, columns = features.shape
        kernel = spatial.weight.detach()[:, 0].double().numpy()
        score = np.full((rows + 2, columns + 2), spatial.bias.item())
        for y in range(rows):  # a transposed convolution: every cell spreads its kernel
            for x in range(columns):
                score[y : y + 3, x : x + 3] += np.tensordot(features[:, y, x], kernel, 1)
        opening = np.vectorize(sigmoid)(score[1:-1, 1:-1])
        assert gate.shape == (1, 1, rows, columns)
        assert np.allclose(gate[0, 0].numpy(), opening, atol=1e-5)

        first, second = channel[0], channel[2]
        pooled = features.mean((1, 2))
        hidden = np.maximum(first.weight.detach().numpy() @ pooled + first.bias.detach().numpy(), 0)
        assert len(hidden) == 2  # a sixteenth
        own = second.weight.detach().numpy() @ hidden + second.bias.detach().numpy()
        own = np.vectorize(sigmoid)(own)
        carried = own if carried is None else (carried + own) / 2
        literal = opening[None] * features + carried[:, None, None] * features
        assert np.allclose(out[0].numpy(), literal, atol=1e-5)


def test_channel_attention_is_carried_to_coarser_levels_only() -> None:
    attention = AttentionPyramid(16, 3)
    levels = [torch.randn(2, 16, 4, 4, generator=rng(seed)) for seed in range(3)]
    gated, _ = attention(levels)
    gated[1].sum().backward()
    reached = [
        any(p.grad is not None and p.grad.any() for p in gate.parameters())
        for gate in attention.channel
    ]
    assert reached == [True, True, False]
    assert [gate.weight.grad is not None for gate in attention.spatial] == [False, True, False]


def test_gates_keep_their_precision_under_autocast() -> None:
    attention = AttentionPyramid(32, 1)
    maps = torch.randn(1, 32, 40, 40, generator=rng()).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, (gate,) = attention([maps])
    assert gate.dtype == torch.float32
    assert len(gate.unique()) > 1500  # of 1600 cells; bfloat16 has 128 values in 0.5..1


# ---- regions ----


@pytest.mark.parametrize(("stride", "side"), [(8, 64), (16, 128), (32, 256)])
def test_anchors_are_the_papers_at_448_pixels(stride: int, side: int) -> None:
    cells = 448 // stride
    boxes = anchor_boxes(side, (cells, cells), (448, 448))
    literal = [
        [
            stride * x + stride / 2 - side / 2,
            stride * y + stride / 2 - side / 2,
            stride * x + stride / 2 + side / 2,
            stride * y + stride / 2 + side / 2,
        ]
        for y in range(cells)
        for x in range(cells)
    ]
    assert boxes.tolist() == literal


def test_anchors_scale_with_the_shorter_side() -> None:
    gate = torch.rand(2, 1, 6, 4, generator=rng())
    params = ApCnnParams(max_overlap=0.9, border=0.0)
    regions = small_network()._regions([gate] * 3, (192, 128))
    for level, side in zip(regions, (64, 128, 256), strict=True):
        best = level.boxes[:, 0]
        for image in range(2):
            cell = int(without_border(gate[:, 0], 0.1)[image].argmax())
            y, x = (cell // 4 + 0.5) * 32, (cell % 4 + 0.5) * 32
            half = side * 128 / 448 / 2
            box = [max(0, x - half), max(0, y - half), min(128, x + half), min(192, y + half)]
            assert best[image].tolist() == pytest.approx(box, rel=1e-5)
    fitting = regions_of_interest(gate, 20.0, 3, (192, 128), params)
    assert fitting.boxes.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("size", "border", "margin"),
    [(56, 0.1, 5), (28, 0.1, 2), (14, 0.1, 1), (56, 0.2, 11), (14, 0.2, 2), (2, 0.2, 0)],
)
def test_the_border_has_no_score(size: int, border: float, margin: int) -> None:
    scores = torch.rand(2, size, size + 3, generator=rng()) + 0.1
    masked = without_border(scores, border)
    wide = int(border * (size + 3))
    for y in range(size):
        for x in range(size + 3):
            inner = margin <= y < size - margin and wide <= x < size + 3 - wide
            assert torch.equal(masked[:, y, x], scores[:, y, x] if inner else torch.zeros(2))


def literal_overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def literal_suppression(
    scores: list[float], boxes: list[list[float]], count: int, max_overlap: float
) -> list[int]:
    mean = math.fsum(scores) / len(scores)
    candidates = [index for index in range(len(scores)) if scores[index] > mean]
    candidates.sort(key=lambda index: -scores[index])
    kept: list[int] = []
    for index in candidates:
        if all(literal_overlap(boxes[index], boxes[other]) <= max_overlap for other in kept):
            kept.append(index)
    return kept[:count]


@pytest.mark.parametrize(("side", "count"), [(64, 5), (128, 3), (256, 1), (160, 40)])
@pytest.mark.parametrize("max_overlap", [0.05, 0.4])
def test_suppression_is_the_literal_one(side: float, count: int, max_overlap: float) -> None:
    boxes = anchor_boxes(side, (14, 14), (448, 448))
    scores = torch.rand(6, 196, generator=rng(side + count))
    chosen, found = best_apart(scores, boxes, count, max_overlap)
    for image in range(6):
        literal = literal_suppression(scores[image].tolist(), boxes.tolist(), count, max_overlap)
        assert found[image] == len(literal)
        repeated = literal + [literal[0]] * (count - len(literal))
        assert chosen[image].tolist() == repeated
    if count == 40:
        assert found.max() < 40  # so that repetition was seen


def test_a_constant_map_has_one_region() -> None:
    boxes = anchor_boxes(32, (5, 5), (160, 160))
    chosen, found = best_apart(torch.full((1, 25), 0.3), boxes, 3, 0.05)
    assert found.tolist() == [1]
    assert chosen.tolist() == [[0, 0, 0]]


def test_regions_are_candidates_inside_the_border_clipped_to_the_image() -> None:
    gate = torch.rand(4, 1, 14, 14, generator=rng(5))
    gate[:, :, 0] = 1.0  # the most open cells, all in the border
    params = ApCnnParams(border=0.2)
    regions = regions_of_interest(gate, 256, 3, (448, 448), params)
    boxes = anchor_boxes(256, (14, 14), (448, 448)).tolist()
    for image in range(4):
        scores = [
            gate[image, 0, y, x].item() if 2 <= y < 12 and 2 <= x < 12 else 0.0
            for y in range(14)
            for x in range(14)
        ]
        literal = literal_suppression(scores, boxes, 3, 0.05)
        count = len(literal)
        assert regions.counts[image] == count
        for index, box in zip(literal, regions.boxes[image].tolist()[:count], strict=True):
            assert box == [min(max(value, 0), 448) for value in boxes[index]]
        assert regions.boxes[image, count:].tolist() == [regions.boxes[image, 0].tolist()] * (
            3 - count
        )


def test_a_mirrored_photograph_has_mirrored_regions() -> None:
    gate = torch.rand(3, 1, 28, 28, generator=rng(6))
    params = ApCnnParams()
    regions = regions_of_interest(gate, 128, 3, (448, 448), params)
    mirrored = regions_of_interest(gate.flip(3), 128, 3, (448, 448), params)
    x0, y0, x1, y1 = mirrored.boxes.unbind(2)
    assert torch.equal(regions.boxes, torch.stack([448 - x1, y0, 448 - x0, y1], 2))


def test_the_box_around_all_regions() -> None:
    corners = torch.rand(3, 9, 4, generator=rng()) * 100
    boxes = torch.cat([corners[..., :2], corners[..., :2] + corners[..., 2:] + 1], 2)
    counts = torch.ones(3, dtype=torch.int64)
    levels = [Regions(boxes[:, :5], counts), Regions(boxes[:, 5:8], counts)]
    around = box_around([*levels, Regions(boxes[:, 8:], counts)])
    for image in range(3):
        x0, y0, x1, y1 = zip(*boxes[image].tolist(), strict=True)
        assert around[image].tolist() == [min(x0), min(y0), max(x1), max(y1)]


def test_boxes_cover_cells() -> None:
    boxes = torch.tensor([[0.0, 0.0, 448.0, 448.0], [20.0, 36.0, 84.0, 100.0], [8, 8, 9, 447.9]])
    cells = cells_of(boxes, (448, 448), (56, 56))
    assert cells.tolist() == [[0, 0, 56, 56], [2, 4, 10, 12], [1, 1, 2, 55]]
    narrow = cells_of(torch.tensor([[41.0, 0.0, 46.0, 100.0]]), (100, 100), (13, 7))
    assert narrow.tolist() == [[2, 0, 3, 13]]  # 41 and 46 of 100 pixels are in cell 2 (of 7)
    flags = inside(torch.tensor([[1, 0, 3, 2], [2, 3, 3, 4]]), (4, 5))
    for image, (x0, y0, x1, y1) in enumerate([(1, 0, 3, 2), (2, 3, 3, 4)]):
        for y in range(4):
            for x in range(5):
                assert flags[image, y, x] == (y0 <= y < y1 and x0 <= x < x1)


# ---- refinement ----


def numbered_regions(counts: list[int], slots: int, offset: float) -> Regions:
    batch = len(counts)
    boxes = torch.zeros(batch, slots, 4)
    for image, count in enumerate(counts):
        for slot in range(slots):
            boxes[image, slot] = offset + (slot if slot < count else 0)
    return Regions(boxes, torch.tensor(counts))


def test_regions_are_dropped_at_the_published_rates() -> None:
    batch = 20_000
    finest = numbered_regions([5, 2] * (batch // 2), 5, 100.0)
    middle = numbered_regions([3, 1] * (batch // 2), 3, 200.0)
    torch.manual_seed(0)
    boxes, dropped = choose_dropped(finest, middle, 0.3)
    which = boxes[:, 0]
    # Five standard deviations of these shares are at most 0.025.
    assert ((which < 200) & dropped).float().mean() == pytest.approx(0.3, abs=0.025)
    assert ((which >= 200) & dropped).float().mean() == pytest.approx(0.3, abs=0.025)
    assert dropped.float().mean() == pytest.approx(0.6, abs=0.025)
    for parity, finest_count, middle_count in [(0, 5, 3), (1, 2, 1)]:
        own = which[parity::2][dropped[parity::2]]
        for offset, count in [(100, finest_count), (200, middle_count)]:
            drawn = own[(own >= offset) & (own < offset + 100)] - offset
            shares = torch.bincount(drawn.long(), minlength=5) / len(drawn)
            assert shares[:count].tolist() == pytest.approx([1 / count] * count, abs=0.05)
            assert shares[count:].sum() == 0
    again, _ = choose_dropped(finest, middle, 0.3)
    assert not torch.equal(again, boxes)
    assert not choose_dropped(finest, middle, 0.0)[1].any()
    assert choose_dropped(finest, middle, 0.5)[1].all()


def test_dropblock_zeroes_exactly_the_region_and_keeps_the_mean_of_what_is_shown() -> None:
    maps = torch.rand(3, 2, 6, 7, generator=rng()) + 0.5
    region, shown = [(1, 2, 4, 5), (0, 0, 2, 2), (0, 0, 7, 6)], [(0, 1, 6, 6), (1, 1, 7, 5), None]
    flags = torch.zeros(3, 6, 7, dtype=torch.bool)
    views = torch.zeros(3, 6, 7, dtype=torch.bool)
    for image, (box, view) in enumerate(zip(region, shown, strict=True)):
        for y in range(6):
            for x in range(7):
                x0, y0, x1, y1 = box
                flags[image, y, x] = y0 <= y < y1 and x0 <= x < x1
                x0, y0, x1, y1 = view or (2, 2, 4, 4)
                views[image, y, x] = y0 <= y < y1 and x0 <= x < x1
    dropped = dropblock(maps, flags, views)
    for image in range(2):
        seen = int(views[image].sum())
        kept = sum(
            bool(views[image, y, x]) and not flags[image, y, x] for y in range(6) for x in range(7)
        )
        assert 0 < kept < seen
        for y in range(6):
            for x in range(7):
                expected = 0 * maps[image, :, y, x] if flags[image, y, x] else maps[image, :, y, x]
                assert torch.allclose(dropped[image, :, y, x], expected * seen / kept)
    assert not dropped[2].any()  # everything dropped: zeros, not infinities
    assert torch.equal(dropblock(maps, torch.zeros_like(flags), views), maps)


def test_zooming_in_is_cropping_and_bilinear_resizing() -> None:
    maps = torch.randn(5, 3, 9, 12, generator=rng())
    boxes = [(0, 0, 12, 9), (2, 1, 9, 5), (11, 8, 12, 9), (0, 3, 5, 9), (7, 0, 12, 2)]
    zoomed = zoom_in(maps, torch.tensor(boxes))
    assert zoomed.shape == maps.shape
    for image, (x0, y0, x1, y1) in enumerate(boxes):
        crop = maps[image : image + 1, :, y0:y1, x0:x1]
        resized = F.interpolate(crop, (9, 12), mode="bilinear", align_corners=False)
        assert torch.allclose(zoomed[image], resized[0], atol=1e-5)
    assert torch.allclose(zoomed[0], maps[0], atol=1e-6)


# ---- the network ----


class Recorded:
    """What goes into and comes out of modules of a network."""

    def __init__(self, **modules: nn.Module) -> None:
        self.inputs: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
        self.outputs: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
        for name, module in modules.items():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable:
        def record(_module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            self.inputs[name].append(inputs[0])
            self.outputs[name].append(output)

        return record


def test_loss_and_logits_are_those_of_eight_classifiers() -> None:
    network = small_network(classes=4).eval()
    heads = Recorded(**{str(number): head for number, head in enumerate(network.classifiers)})
    images, labels = photographs(3), torch.tensor([2, 0, 3])
    with torch.no_grad():
        prediction = network(images)
        loss, logits = network.loss(images, labels, label_smoothing=0.1)
    outputs = [heads.outputs[str(head)][run] for run in (2, 3) for head in range(4)]
    literal = 0.0
    for output in outputs:
        for row, label in zip(output.double().numpy(), labels.tolist(), strict=True):
            log_probabilities = row - np.log(np.exp(row).sum())
            target = [0.1 / 4 + (0.9 if c == label else 0.0) for c in range(4)]
            literal -= float(np.dot(target, log_probabilities)) / 3
    assert loss.item() == pytest.approx(literal, rel=1e-5)
    mean = sum(outputs) / 8
    assert torch.allclose(logits, mean, atol=1e-6)
    assert torch.allclose(prediction.logits, mean, atol=1e-6)


def test_the_second_pass_sees_the_box_around_the_regions() -> None:
    network = small_network(name="resnet18").eval()
    third = Recorded(layer3=network.backbone.body.layer3)
    second = Recorded(layer2=network.backbone.body.layer2)
    with torch.no_grad():
        prediction = network(photographs(3, 128, 160))
    assert prediction.boxes is not None
    low, zoomed = third.inputs["layer3"]
    assert len(second.outputs["layer2"]) == 1  # the low-level maps are shared
    assert torch.equal(low, second.outputs["layer2"][0])
    assert low.shape[2:] == (16, 20)
    for image, box in enumerate(prediction.boxes[:, 0].double()):
        x0, y0, x1, y1 = (box * torch.tensor([20, 16, 20, 16]) + 1e-4).floor().int().tolist()
        crop = low[image : image + 1, :, y0:y1, x0:x1]
        resized = F.interpolate(crop, (16, 20), mode="bilinear", align_corners=False)
        assert torch.allclose(zoomed[image], resized[0], atol=1e-4)


def test_boxes_are_the_union_and_the_regions_of_each_level() -> None:
    network = small_network().eval()
    with torch.no_grad():
        boxes = network(photographs(4, 224, 224)).boxes
    assert boxes is not None
    assert boxes.shape == (4, 10, 4)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert torch.allclose(boxes[:, 0, :2], boxes[:, 1:, :2].amin(1))
    assert torch.allclose(boxes[:, 0, 2:], boxes[:, 1:, 2:].amax(1))
    sides = (boxes[:, 1:, 2:] - boxes[:, 1:, :2]).amax((0, 2))
    expected = [1 / 7] * 5 + [2 / 7] * 3 + [4 / 7]
    assert (sides <= torch.tensor(expected) + 1e-5).all()
    assert sides[0] == pytest.approx(1 / 7, abs=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "vgg11_bn"])
def test_gradients_reach_everything_that_is_trained(name: str) -> None:
    network = small_network(name=name, params=ApCnnParams())
    images, labels = photographs(4, 64, 64), torch.tensor([0, 1, 2, 0])
    loss, logits = network.train().loss(images, labels, 0.0)
    assert logits.shape == (4, 3)
    loss.backward()
    assert not [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    groups = network.parameter_groups()
    assert set(groups) == {"backbone", "head"}
    ids = [id(p) for group in groups.values() for p in group]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    assert {id(p) for p in groups["backbone"]} == {
        id(p) for p in network.backbone.body.parameters()
    }


@pytest.mark.parametrize("head", range(8))
def test_each_classifier_of_each_pass_trains_what_stands_before_it(head: int) -> None:
    network = small_network(name="resnet18").eval()
    logits, _ = network._two_passes(photographs(2, 64, 64), drop=False)
    logits[head].square().sum().backward()
    body = network.backbone.body
    for weight in (body.conv1.weight, body.layer2[0].conv1.weight, body.layer4[1].conv2.weight):
        assert weight.grad is not None
        assert weight.grad.any()
    level = head % 4
    own = [any(bool(p.grad.any()) for p in c.parameters()) for c in network.classifiers]
    assert own == [number == level for number in range(4)]
    gates = [bool(gate.weight.grad.any()) for gate in network.attention.spatial]
    assert gates == [number == level for number in range(3)]  # none before the concatenation


def test_regions_carry_no_gradient() -> None:
    gate = torch.rand(1, 1, 14, 14, generator=rng(), requires_grad=True)
    regions = regions_of_interest(gate, 64, 5, (448, 448), ApCnnParams())
    assert not regions.boxes.requires_grad
    prediction = small_network().eval()(photographs(2))
    assert prediction.boxes is not None
    assert prediction.logits.requires_grad
    assert not prediction.boxes.requires_grad


def test_evaluation_is_repeatable_and_draws_no_random_number() -> None:
    network = small_network().eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = photographs(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second = network(images), network(images)
        losses = [network.loss(images, torch.tensor([0, 1, 2]), 0.0)[0] for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.logits, second.logits)
    assert first.boxes is not None
    assert second.boxes is not None
    assert torch.equal(first.boxes, second.boxes)
    assert losses[0] == losses[1]
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    network = small_network().eval()
    images = photographs(4)
    with torch.no_grad():
        together = network(images)
        alone = [network(image[None]) for image in images]
    assert together.boxes is not None
    assert torch.allclose(together.logits, torch.cat([p.logits for p in alone]), atol=1e-5)
    assert torch.allclose(together.boxes, torch.cat([p.boxes for p in alone]), atol=1e-6)


@pytest.mark.parametrize(("drop", "differs"), [(0.0, False), (0.5, True)])
def test_regions_are_dropped_in_training_only(drop: float, differs: bool) -> None:
    params = ApCnnParams(channels=32, hidden=16, drop=drop)
    network = small_network(params=params, name="resnet18")
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda _mode=True, module=module: module  # statistics stay
    third = Recorded(layer3=network.backbone.body.layer3)
    images, labels = photographs(3, 128, 128), torch.tensor([0, 1, 2])
    torch.manual_seed(1)
    with torch.no_grad():
        network.eval().loss(images, labels, 0.0)
        network.train().loss(images, labels, 0.0)
    _, evaluated, _, trained = third.inputs["layer3"]
    changed = (evaluated != trained).flatten(1).any(1)
    assert changed.tolist() == [differs] * 3


@pytest.mark.parametrize(
    ("batch", "height", "width", "classes"),
    [(1, 64, 64, 2), (1, 96, 160, 3), (3, 100, 75, 2), (2, 33, 50, 5)],
)
def test_any_batch_size_and_number_of_classes(
    batch: int, height: int, width: int, classes: int
) -> None:
    network = small_network(classes=classes)
    images = photographs(batch, height, width)
    for _ in range(3):
        loss, logits = network.loss(images, torch.arange(batch) % classes, 0.1)
        loss.backward()
        assert loss.isfinite()
        assert logits.shape == (batch, classes)
    prediction = network.eval()(images)
    assert prediction.logits.shape == (batch, classes)
    assert prediction.boxes is not None
    assert prediction.boxes.shape == (batch, 10, 4)
    assert ((prediction.boxes >= 0) & (prediction.boxes <= 1)).all()


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet50", "res2net50_26w_4s", "vgg16_bn"]
)
def test_other_backbones(name: str) -> None:
    network = small_network(classes=2, name=name).eval()
    with torch.no_grad():
        prediction = network(photographs(1, 64, 64))
    assert prediction.logits.shape == (1, 2)
    assert prediction.boxes is not None
    assert prediction.boxes.shape == (1, 10, 4)


def test_a_batch_of_one_is_normalised_by_running_statistics() -> None:
    torch.manual_seed(0)
    norm = VectorNorm(4)
    several = torch.randn(8, 4, generator=rng()) * 3 + 1
    assert torch.equal(norm(several), nn.BatchNorm1d(4)(several))
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    assert mean.any()
    expected = (several[:1] - mean) / (variance + norm.eps).sqrt()
    assert torch.allclose(norm(several[:1]), expected, atol=1e-6)
    assert torch.equal(norm.running_mean, mean)


def test_what_cannot_work_is_named() -> None:
    with pytest.raises(OpamError, match=r"backbone\.name: 'vit_tiny_.*take a network.*ResNet"):
        small_network(name="vit_tiny_patch16_224")
    with pytest.raises(OpamError, match=r"input_size: of photographs of 32 x 64 .*larger"):
        small_network()(photographs(1, 64, 32))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("channels", 8),
        ("hidden", 0),
        ("anchors", [64, 128]),
        ("anchors.0", [0, 128, 256]),
        ("regions.2", [5, 3, 0]),
        ("max_overlap", 1.0),
        ("border", 0.5),
        ("drop", 0.6),
        ("drop", "0.3"),
    ],
)
def test_wrong_settings_are_named(setting: str, value: object) -> None:
    content = {"ap_cnn": {setting.split(".")[0]: value}}
    with pytest.raises(OpamError, match=rf"'ap_cnn\.{setting}' is .*; correct it"):
        section_of(content, "ap_cnn", ApCnnParams, Path("params.yaml"))


@pytest.mark.slow
def test_the_network_learns_a_few_photographs_by_heart() -> None:
    torch.manual_seed(0)
    network = AttentionPyramidCnn(Backbone("test_efficientnet"), 4, ApCnnParams())
    losses_while_it_learns(network, 25)
    assert_known_by_heart(network)
