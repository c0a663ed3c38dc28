import math
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
from opam.systems.nts_net import (
    AnchorLevel,
    NavigatorTeacherScrutinizer,
    NtsNetParams,
    anchor_boxes,
    best_apart,
    cut_parts,
    ranking_loss,
)

PAPER = NtsNetParams()
CELLS_448 = [(14, 14), (7, 7), (4, 4)]
Box = tuple[int, int, int, int]


def photographs(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 6, 6), generator=generator).float()
    return F.interpolate(coarse, size=(height, width), mode="bilinear").to(torch.uint8)


def system(
    params: NtsNetParams = PAPER, classes: int = 3, backbone: str = "resnet10t", seed: int = 0
) -> NavigatorTeacherScrutinizer:
    torch.manual_seed(seed)
    return NavigatorTeacherScrutinizer(Backbone(backbone), classes, params)


# The method once more, written out element by element.


def literal_anchors(height: int, width: int, cells: list[tuple[int, int]]) -> list[Box]:
    third, two_thirds = 2 ** (1 / 3), 2 ** (2 / 3)
    levels = [
        (1, 48, [third, two_thirds]),
        (2, 96, [third, two_thirds]),
        (4, 192, [1, third, two_thirds]),
    ]
    boxes = []
    for (cell, side, scales), (rows, columns) in zip(levels, cells, strict=True):
        for scale in scales:
            for ratio in (0.667, 1, 1.5):
                w = side * scale * ratio**0.5 * min(height, width) / 448
                h = side * scale / ratio**0.5 * min(height, width) / 448
                for row in range(rows):
                    for column in range(columns):
                        x = min((column + 0.5) * cell * width / cells[0][1], width)
                        y = min((row + 0.5) * cell * height / cells[0][0], height)
                        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                        boxes.append(tuple(math.floor(corner) for corner in corners))
    return boxes


def literal_overlap(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def literal_best_apart(
    scores: list[float], boxes: list[Box], count: int, limit: float
) -> list[int]:
    ranked = sorted(range(len(boxes)), key=lambda index: -scores[index])
    kept: list[int] = []
    for index in ranked:
        if all(literal_overlap(boxes[index], boxes[other]) < limit for other in kept):
            kept.append(index)
    rest = [index for index in ranked if index not in kept]
    return (kept + rest)[:count]


def literal_part(normalised: torch.Tensor, box: Box, size: tuple[int, int]) -> torch.Tensor:
    """3 x H x W to 1 x 3 x h x w: as in the release, from an image padded with zeros."""
    pad = max(normalised.shape)
    padded = F.pad(normalised[None], (pad, pad, pad, pad))
    x0, y0, x1, y1 = (corner + pad for corner in box)
    return F.interpolate(padded[..., y0:y1, x0:x1], size, mode="bilinear", align_corners=True)


def literal_cross_entropy(logits: torch.Tensor, label: int, smoothing: float) -> float:
    values = logits.tolist()
    total = math.log(sum(math.exp(value) for value in values))
    losses = [total - value for value in values]
    return (1 - smoothing) * losses[label] + smoothing * sum(losses) / len(losses)


def literal_ranking(scores: list[list[float]], losses: list[list[float]]) -> float:
    total = 0.0
    for image_scores, image_losses in zip(scores, losses, strict=True):
        for i, lower in enumerate(image_losses):
            for s, higher in enumerate(image_losses):
                if lower < higher:
                    total += max(0.0, 1 - (image_scores[i] - image_scores[s]))
    return total / len(scores)


# Anchors


def test_anchors_at_448_are_the_papers() -> None:
    boxes = anchor_boxes(PAPER, 448, 448, CELLS_448)
    assert boxes.shape == (1614, 4)
    assert [tuple(box) for box in boxes.tolist()] == literal_anchors(448, 448, CELLS_448)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for first, count, stride in ((0, 14, 32), (14 * 14 * 6, 7, 64), (1614 - 16, 4, 128)):
        level = centres[first : first + count * count].view(count, count, 2)
        for index in range(count):  # x grows along a row, y along a column
            middle = torch.full((count,), stride / 2 + index * stride)
            torch.testing.assert_close(level[:, index, 0], middle, atol=1, rtol=0)
            torch.testing.assert_close(level[index, :, 1], middle, atol=1, rtol=0)
    w, h = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    torch.testing.assert_close(
        (w / h)[-48:], torch.tensor([0.667] * 16 + [1] * 16 + [1.5] * 16), atol=0.01, rtol=0
    )
    assert (w * h).sqrt().min() == pytest.approx(48 * 2 ** (1 / 3), abs=1)
    assert (w * h).sqrt().max() == pytest.approx(192 * 2 ** (2 / 3), abs=1)


@pytest.mark.parametrize(
    ("height", "width", "cells"),
    [
        (224, 224, [(7, 7), (4, 4), (2, 2)]),
        (160, 160, [(5, 5), (3, 3), (2, 2)]),  # centres of the coarsest map lie beyond the border
        (64, 64, [(2, 2), (1, 1), (1, 1)]),
        (224, 320, [(7, 10), (4, 5), (2, 3)]),
    ],
)
def test_anchors_scale_with_the_image_and_show_some_of_it(
    height: int, width: int, cells: list[tuple[int, int]]
) -> None:
    boxes = anchor_boxes(PAPER, height, width, cells)
    assert [tuple(box) for box in boxes.tolist()] == literal_anchors(height, width, cells)
    assert (boxes[:, :2] < torch.tensor([width, height])).all()
    assert (boxes[:, 2:] > 0).all()
    # Within the release's padding: half a side all around.
    assert (boxes[:, :2] >= -torch.tensor([width, height]) / 2).all()
    assert (boxes[:, 2:] <= 1.5 * torch.tensor([width, height])).all()


def test_the_smallest_anchor_is_a_pixel() -> None:
    params = NtsNetParams(anchors=[AnchorLevel(side=0.5, scales=[1])], ratios=[1])
    boxes = anchor_boxes(params, 66, 66, [(2, 2)])
    assert (boxes[:, 2:] - boxes[:, :2] == 1).all()


# Choice of parts


@pytest.mark.parametrize("limit", [0.1, 0.25, 0.7, 1.0])
def test_parts_are_those_of_literal_suppression(limit: float) -> None:
    rng = np.random.default_rng(1)
    low = rng.integers(0, 40, (60, 2))
    boxes = np.concatenate([low, low + rng.integers(4, 30, (60, 2))], 1)
    boxes[30:34] = boxes[0]
    scores = rng.normal(size=(8, 60)).round(1)  # some are equal
    chosen = best_apart(torch.tensor(scores), torch.tensor(boxes), 12, limit)
    for image in range(8):
        expected = literal_best_apart(scores[image].tolist(), boxes.tolist(), 12, limit)
        assert chosen[image].tolist() == expected


def test_an_overlap_equal_to_the_limit_suppresses() -> None:
    boxes = torch.tensor([[0, 0, 8, 5], [6, 0, 8, 5], [0, 0, 3, 3]])  # 10 of 40; 9 of 40
    assert best_apart(torch.tensor([[3.0, 2.0, 1.0]]), boxes, 2, 0.25).tolist() == [[0, 2]]


def test_suppressed_boxes_fill_up_by_score() -> None:
    same = torch.tensor([[0, 0, 8, 8]] * 4 + [[20, 20, 28, 28]])
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.0], [-5.0, -4.0, -3.0, -2.0, -1.0]])
    chosen = best_apart(scores, same, 5, 0.25)
    assert chosen.tolist() == [[1, 4, 3, 2, 0], [4, 3, 2, 1, 0]]


# Parts


@pytest.mark.parametrize(
    "box",
    [
        (10, 20, 43, 71),  # inside
        (-17, 60, 30, 110),  # over the left and lower border
        (70, -20, 141, 15),  # over the right and upper border
        (-30, -25, 130, 120),  # over all of them
        (5, 7, 6, 30),  # a pixel wide
    ],
)
@pytest.mark.parametrize("size", [(48, 56), (20, 13)])
def test_parts_are_cut_as_from_the_normalised_image_padded_with_zeros(
    box: Box, size: tuple[int, int]
) -> None:
    backbone = Backbone("resnet10t")
    images = photographs(2, 96, 112)
    boxes = torch.tensor([[box, (0, 0, 112, 96)], [(3, 3, 9, 9), box]])
    parts = cut_parts(images, boxes, 255 * backbone.mean, size)
    assert parts.shape == (4, 3, *size)
    normalised = (images / 255 - backbone.mean) / backbone.std
    for index, part in enumerate((parts / 255 - backbone.mean) / backbone.std):
        image, rank = divmod(index, 2)
        literal = literal_part(normalised[image], tuple(boxes[image, rank].tolist()), size)
        torch.testing.assert_close(part[None], literal, atol=1e-3, rtol=0)
    assert parts[0].std() > 1  # not all padding


# Ranking loss


@pytest.mark.parametrize("batch", [1, 5])
def test_ranking_loss_is_the_sum_over_ordered_pairs(batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    scores = torch.randn(batch, 6, generator=generator, dtype=torch.float64)
    losses = torch.randint(0, 4, (batch, 6), generator=generator).double()  # many are equal
    value = ranking_loss(scores, losses).item()
    assert value == pytest.approx(literal_ranking(scores.tolist(), losses.tolist()))
    assert value > 0


def test_ranking_loss_wants_a_lead_of_one_for_the_part_with_the_lower_loss() -> None:
    losses = torch.tensor([[0.1, 2.0]])
    for lead, expected in ((-1.0, 2.0), (0.0, 1.0), (0.25, 0.75), (1.0, 0.0), (3.0, 0.0)):
        assert ranking_loss(torch.tensor([[lead, 0.0]]), losses).item() == expected
    assert ranking_loss(torch.randn(2, 6), torch.ones(2, 6)).item() == 0


# The system


def literal_system(
    network: NavigatorTeacherScrutinizer,
    images: torch.Tensor,
    labels: list[int],
    smoothing: float,
) -> tuple[dict[str, float], torch.Tensor, list[list[Box]]]:
    """The four losses, the logits and the parts, an image and a part at a time."""
    params, backbone = network.params, network.backbone
    height, width = images.shape[2:]
    size = (height // 2, width // 2)
    losses = {"image": 0.0, "parts": 0.0, "scrutinizer": 0.0}
    logits, all_parts, all_scores, all_doubts = [], [], [], []
    for image, label in zip(images, labels, strict=True):
        maps = backbone(image[None])
        levels = network.navigator(maps)
        cells = [tuple(level.shape[2:]) for level in levels]
        anchors = literal_anchors(height, width, cells)
        scores = [value for level in levels for value in level[0].flatten().tolist()]
        best = literal_best_apart(scores, anchors, params.proposals, params.max_overlap)
        parts = [anchors[index] for index in best]
        normalised = ((image / 255 - backbone.mean) / backbone.std)[0]
        features = [
            backbone.body.forward_features(literal_part(normalised, part, size)).mean((2, 3))
            for part in parts
        ]
        whole = maps.mean((2, 3))
        logits.append(network.scrutinizer(torch.cat([whole, *features[: params.parts]], 1))[0])
        losses["image"] += literal_cross_entropy(network.image_teacher(whole)[0], label, smoothing)
        losses["scrutinizer"] += literal_cross_entropy(logits[-1], label, smoothing)
        part_logits = [network.part_teacher(feature)[0] for feature in features]
        for one in part_logits:
            losses["parts"] += literal_cross_entropy(one, label, smoothing) / len(parts)
        all_doubts.append([literal_cross_entropy(one, label, 0) for one in part_logits])
        all_scores.append([scores[index] for index in best])
        all_parts.append(parts)
    means = {name: loss / len(images) for name, loss in losses.items()}
    means["ranking"] = literal_ranking(all_scores, all_doubts)
    return means, torch.stack(logits), all_parts


@pytest.mark.parametrize(("proposals", "parts"), [(6, 4), (3, 3), (5, 1)])
@torch.no_grad()
def test_losses_logits_and_parts_are_the_literal_ones(proposals: int, parts: int) -> None:
    network = system(NtsNetParams(proposals=proposals, parts=parts), seed=proposals).eval()
    network.navigator.score[1].bias += 5  # middle-sized parts first, which reach over the border
    network.part_teacher.weight *= 30  # decided enough that smoothing would change the ranking
    images, labels = photographs(2, 96, 128), [2, 0]
    expected, logits, all_parts = literal_system(network, images, labels, smoothing=0.7)
    losses, given = network.losses(images, torch.tensor(labels), 0.7)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-3)
    total, again = network.loss(images, torch.tensor(labels), 0.7)
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-3)
    torch.testing.assert_close(given, logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(again, given)

    prediction = network(images)
    torch.testing.assert_close(prediction.logits, logits, atol=1e-3, rtol=1e-3)
    clipped = [
        [
            [max(x0, 0) / 128, max(y0, 0) / 96, min(x1, 128) / 128, min(y1, 96) / 96]
            for x0, y0, x1, y1 in boxes[:parts]
        ]
        for boxes in all_parts
    ]
    torch.testing.assert_close(prediction.boxes, torch.tensor(clipped))


@torch.no_grad()
def test_parts_over_the_border_are_clipped_to_the_image() -> None:
    network = system(NtsNetParams(max_overlap=1.0, parts=6)).eval()
    network.navigator.score[2].bias.copy_(10.0 * torch.arange(9))  # the last shape wins: 1.5 wide
    boxes = network(photographs(1, 160, 160)).boxes
    assert boxes is not None
    # 160 / 448 of 192 * 2 ** (2 / 3), around cells at 64 and, put on the border, at 160.
    w, h = (192 * 160 / 448 * 2 ** (2 / 3) * factor for factor in (1.5**0.5, 1.5**-0.5))
    left, right = (0, math.floor(64 + w / 2)), (math.floor(160 - w / 2), 160)
    upper, lower = (math.floor(64 - h / 2), math.floor(64 + h / 2)), (math.floor(160 - h / 2), 160)
    expected = {(x0, y0, x1, y1) for x0, x1 in (left, right) for y0, y1 in (upper, lower)}
    found = (160 * boxes[0, :4]).round().int().tolist()
    assert {tuple(box) for box in found} == expected


def test_the_navigators_loss_has_its_weight_in_the_sum() -> None:
    images, labels = photographs(2, 64, 64), torch.tensor([0, 1])
    paper, light = system().eval(), system(NtsNetParams(ranking_weight=0.25)).eval()
    of_paper, of_light = paper.losses(images, labels, 0.0)[0], light.losses(images, labels, 0.0)[0]
    assert of_paper["ranking"] > 0
    torch.testing.assert_close(of_light["ranking"], 0.25 * of_paper["ranking"])
    difference = paper.loss(images, labels, 0.0)[0] - light.loss(images, labels, 0.0)[0]
    torch.testing.assert_close(difference, 0.75 * of_paper["ranking"])


@pytest.mark.parametrize(
    ("loss", "reached"),
    [
        ("image", {"backbone", "image_teacher"}),
        ("parts", {"backbone", "part_teacher"}),
        ("scrutinizer", {"backbone", "scrutinizer"}),
        ("ranking", {"navigator"}),
    ],
)
def test_each_loss_reaches_what_it_trains_and_nothing_else(loss: str, reached: set[str]) -> None:
    network = system().train()
    losses, _ = network.losses(photographs(2, 64, 64), torch.tensor([0, 1]), 0.0)
    names = [name for name, _ in network.named_parameters()]
    gradients = torch.autograd.grad(losses[loss], list(network.parameters()), allow_unused=True)
    found = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    assert {name.split(".")[0] for name in found} == reached
    # All of the part of the system, not one layer of it.
    assert found == {name for name in names if name.split(".")[0] in reached}
    assert any(gradient.abs().sum() > 0 for gradient in gradients if gradient is not None)


def test_no_gradient_comes_back_from_parts_to_the_map_that_chose_them() -> None:
    network = system().eval()
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = network.backbone.register_forward_hook(keep)
    losses, _ = network.losses(photographs(2, 64, 64), torch.tensor([0, 1]), 0.0)
    handle.remove()
    assert [len(maps) for maps in seen] == [2, 2 * PAPER.proposals]
    (losses["parts"] + losses["ranking"]).backward()
    assert seen[0].grad is None
    assert seen[1].grad is not None


@torch.no_grad()
def test_batch_norm_sees_the_photographs_and_then_all_parts_at_once() -> None:
    network = system().train()
    network.loss(photographs(3, 64, 64), torch.tensor([0, 1, 2]), 0.0)
    norms = [m for m in network.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}


@pytest.mark.parametrize(
    ("anchors", "ratios", "widths"),
    [
        (PAPER.anchors, PAPER.ratios, [6, 6, 9]),
        ([AnchorLevel(side=64, scales=[1, 1.5, 2])], [0.5, 2], [6]),
        ([AnchorLevel(side=s, scales=[1] * n) for s, n in ((32, 1), (64, 4))], [1], [1, 4]),
    ],
)
def test_the_navigators_heads_follow_the_anchors(
    anchors: list[AnchorLevel], ratios: list[float], widths: list[int]
) -> None:
    network = system(NtsNetParams(anchors=anchors, ratios=ratios, proposals=3, parts=2)).eval()
    with torch.no_grad():
        levels = network.navigator(network.backbone(photographs(1, 128, 128)))
        prediction = network(photographs(1, 128, 128))
    assert [level.shape[1] for level in levels] == widths
    sides = [(4, 4), (2, 2), (1, 1)][: len(widths)]
    assert [tuple(level.shape[2:]) for level in levels] == sides
    boxes = anchor_boxes(network.params, 128, 128, sides)
    assert len(boxes) == sum(level[0].numel() for level in levels)
    assert prediction.boxes is not None
    assert prediction.boxes.shape == (1, 2, 4)


def test_two_evaluation_passes_agree_whatever_the_seed_and_the_batch() -> None:
    network = system().eval()
    images = photographs(3, 64, 64)
    with torch.no_grad():
        torch.manual_seed(1)
        first = network(images)
        torch.manual_seed(2)
        second = network(images)
        alone = network(images[1:2])
    assert first.boxes is not None
    assert second.boxes is not None
    assert alone.boxes is not None
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.boxes, second.boxes)
    torch.testing.assert_close(alone.logits[0], first.logits[1], atol=1e-4, rtol=1e-4)
    assert torch.equal(alone.boxes[0], first.boxes[1])


@pytest.mark.parametrize(("dropout", "same"), [(0.5, False), (0.0, True)])
@torch.no_grad()
def test_features_are_dropped_in_training_alone(dropout: float, same: bool) -> None:
    network = system(NtsNetParams(dropout=dropout)).train()
    images, labels = photographs(2, 64, 64), torch.tensor([0, 1])
    first, second = (network.losses(images, labels, 0.0)[0] for _ in range(2))
    for name in ("image", "parts", "scrutinizer"):
        assert torch.equal(first[name], second[name]) == same


@pytest.mark.parametrize(
    ("backbone", "height", "width"),
    [
        ("resnet10t", 224, 224),
        ("resnet10t", 70, 101),
        ("tf_efficientnet_lite0", 96, 96),
        ("mobilenetv3_small_050", 64, 64),
        ("res2net50_26w_4s", 64, 64),
        ("vgg11_bn", 64, 96),
    ],
)
def test_any_backbone_and_size_serves_one_photograph_of_two_classes(
    backbone: str, height: int, width: int
) -> None:
    network = system(classes=2, backbone=backbone)
    images = photographs(1, height, width)
    cells: list[tuple[int, ...]] = []
    network.navigator.register_forward_hook(
        lambda _m, _i, levels: cells.extend(tuple(level.shape[2:]) for level in levels)
    )
    loss, logits = network.train().loss(images, torch.tensor([1]), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert logits.shape == (1, 2)
    assert cells == [
        (math.ceil(height / stride), math.ceil(width / stride)) for stride in (32, 64, 128)
    ]
    with torch.no_grad():
        prediction = network.eval()(images)
    assert prediction.logits.shape == (1, 2)
    assert prediction.logits.isfinite().all()
    boxes = prediction.boxes
    assert boxes is not None
    assert boxes.shape == (1, 4, 4)
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert (boxes[..., :2] < boxes[..., 2:]).all()


@pytest.mark.parametrize("backbone", ["resnet10t", "vgg11_bn"])
def test_parameter_groups_hold_every_parameter_once(backbone: str) -> None:
    network = system(backbone=backbone)
    groups = network.parameter_groups()
    assert list(groups) == ["backbone", "head"]
    together = [id(parameter) for group in groups.values() for parameter in group]
    assert len(together) == len(set(together))
    assert set(together) == {id(parameter) for parameter in network.parameters()}
    # The convolution that VGG gets on top is not pretrained.
    pretrained = {id(parameter) for parameter in network.backbone.body.parameters()}
    assert {id(parameter) for parameter in groups["backbone"]} == pretrained


def test_what_cannot_be_is_refused() -> None:
    network = system().eval()
    with pytest.raises(OpamError, match=r"nts_net\.part_scale: 0\.5 of .* 60 x 64 pixels"):
        network(photographs(1, 64, 60))
    greedy = system(NtsNetParams(proposals=40)).eval()
    with pytest.raises(OpamError, match=r"nts_net\.proposals: .* 64 x 64 pixels have 39 anchors"):
        greedy.loss(photographs(1, 64, 64), torch.tensor([0]), 0.0)
    greedy(photographs(1, 64, 64))  # four parts there are


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": 7}, "parts must be at most proposals"),
        ({"ratios": []}, r"nts_net\.ratios"),
        ({"ratios": [1.0, 0.0]}, r"nts_net\.ratios\.1"),
        ({"anchors": [{"side": 48, "scales": [-1]}]}, r"nts_net\.anchors\.0\.scales\.0"),
        ({"anchors": [{"side": 48, "scale": [1]}]}, r"nts_net\.anchors\.0\.scale'"),
        ({"max_overlap": 0.0}, r"nts_net\.max_overlap"),
        ({"proposals": 6.0}, r"nts_net\.proposals"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(OpamError, match=message):
        section_of({"nts_net": settings}, "nts_net", NtsNetParams, Path("params.yaml"))


def test_settings_come_from_a_parameter_file() -> None:
    content = {"nts_net": {"parts": 2, "anchors": [{"side": 48, "scales": [1, 1.5]}]}}
    params = section_of(content, "nts_net", NtsNetParams, Path("params.yaml"))
    assert params == NtsNetParams(parts=2, anchors=[AnchorLevel(side=48, scales=[1, 1.5])])


@pytest.mark.slow
def test_learns_a_few_photographs_by_heart() -> None:
    network = system(classes=4, backbone="test_efficientnet")
    losses_while_it_learns(network, 20)
    assert_known_by_heart(network)
