from itertools import pairwise

import numpy as np
import pytest
import torch
from system_checks import (
    IMAGES,
    assert_green_then_red,
    assert_known_by_heart,
    losses_while_it_learns,
    predict,
    two_squares,
)
from torch import nn

from opam.networks.backbones.backbone import Backbone
from opam.systems.finetune import Finetune, FinetuneParams
from opam.systems.mc_loss import (
    McLossParams,
    MutualChannelNetwork,
    allot_channels,
    by_class,
    channel_mask,
    discriminality,
    diversity,
)

LABELS = torch.tensor([2, 0])


def channels_of(channels: int, classes: int) -> list[range]:
    """The channels of each class, counted out one class after another."""
    each, more = divmod(channels, classes)
    widths = [each] * (classes - more) + [each + 1] * more
    ends = np.cumsum([0, *widths])
    return [range(start, end) for start, end in pairwise(ends)]


@pytest.mark.parametrize(
    ("channels", "classes", "allotment"),
    [
        (600, 200, [(200, 3)]),  # the paper's networks from scratch
        (2048, 200, [(152, 10), (48, 11)]),  # the released ResNet-50
        (512, 200, [(88, 2), (112, 3)]),  # the paper's pretrained VGG-16
        (7, 2, [(1, 3), (1, 4)]),
    ],
)
def test_allotment_is_the_published_one(
    channels: int, classes: int, allotment: list[tuple[int, int]]
) -> None:
    assert allot_channels(channels, classes) == allotment


def test_allotment_uses_every_channel_and_differs_by_one_at_most() -> None:
    for channels in (64, 288, 512, 1280, 2048):
        for classes in range(1, 33):
            allotment = allot_channels(channels, classes)
            assert sum(count for count, _ in allotment) == classes
            assert sum(count * each for count, each in allotment) == channels
            widths = [each for _, each in allotment]
            assert max(widths) - min(widths) <= 1
            values = torch.arange(channels)[None]
            blocks = by_class(values, allotment)
            rows = [row for block in blocks for row in block[0].tolist()]
            assert rows == [list(each) for each in channels_of(channels, classes)]


@pytest.mark.parametrize(("each", "share", "dropped"), [(2, 0.4, 1), (3, 0.4, 1), (10, 0.4, 4)])
def test_the_mask_drops_so_many_of_every_class(each: int, share: float, dropped: int) -> None:
    allotment = allot_channels(each * 5 + 2, 5)  # two classes have one channel more
    torch.manual_seed(0)
    often = torch.zeros(each * 5 + 2)
    for _ in range(200):
        mask = channel_mask(allotment, share)
        often += 1 - mask
        for channels in channels_of(each * 5 + 2, 5):
            more = len(channels) > each
            expected = max(1, int(share * len(channels))) if more else dropped
            assert [mask[c].item() for c in channels].count(0.0) == expected
            assert [mask[c].item() for c in channels].count(1.0) == len(channels) - expected
    # Any channel may be the one: each as often as every other, within chance.
    assert often.min() > 0.5 * 200 * 0.25
    assert often.max() < 1.5 * 200 * 0.5


def test_the_mask_of_the_release_drops_four_of_eleven() -> None:
    mask = channel_mask([(48, 11)], McLossParams().dropped)
    assert (mask.view(48, 11).sum(1) == 7).all()


def test_the_mask_comes_from_the_global_generator() -> None:
    masks = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        masks.append(channel_mask([(20, 3)], 0.4))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize(("channels", "classes"), [(6, 2), (8, 3), (11, 4)])
def test_both_parts_against_loops(channels: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, channels, 2, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([1, 0, classes - 1])
    allotment = allot_channels(channels, classes)
    torch.manual_seed(1)
    mask = channel_mask(allotment, 0.4)
    groups = channels_of(channels, classes)
    places = [(y, x) for y in range(2) for x in range(5)]

    loss, spread = 0.0, 0.0
    for image, label in zip(maps.numpy(), labels.tolist(), strict=True):
        scores = []
        for group in groups:
            best = [max(mask[c].item() * image[c, y, x] for c in group) for y, x in places]
            scores.append(sum(best) / len(places))
        loss -= np.log(np.exp(scores[label]) / sum(np.exp(score) for score in scores))
        for group in groups:
            shares = {c: np.exp(image[c]) / np.exp(image[c]).sum() for c in group}
            spread += sum(max(shares[c][p] for c in group) for p in places) / len(group)

    found = discriminality(maps, labels, mask, allotment)
    assert found.item() == pytest.approx(loss / 3, rel=1e-6)
    assert diversity(maps, allotment).item() == pytest.approx(spread / 3 / classes, rel=1e-6)


def test_a_tensor_by_hand() -> None:
    """Two classes of two channels on two cells; the mask drops the second and the third."""
    maps = torch.tensor([[[4.0, 0.0], [9.0, 9.0], [9.0, 9.0], [1.0, 2.0]]]).view(1, 4, 1, 2)
    mask = torch.tensor([1.0, 0.0, 0.0, 1.0])
    # Class scores (4 + 0) / 2 = 2 and (1 + 2) / 2 = 1.5.
    expected = np.log(1 + np.exp(1.5 - 2.0))
    found = discriminality(maps, torch.tensor([0]), mask, [(2, 2)])
    assert found.item() == pytest.approx(expected, rel=1e-6)
    far = torch.tensor([[[50.0, 0.0], [0.0, 50.0], [3.0, 3.0], [7.0, 7.0]]]).view(1, 4, 1, 2)
    # The first class's channels share nothing: 2 / 2; the second's are alike: 1 / 2.
    assert diversity(far, [(2, 2)]).item() == pytest.approx((1 + 0.5) / 2)


def test_diversity_counts_every_class_alike() -> None:
    """One class of two channels, one of three, each with a place for every channel."""
    peaks = 60 * torch.eye(5)[:, :5].view(1, 5, 1, 5)
    assert diversity(peaks, [(1, 2), (1, 3)]).item() == pytest.approx(1.0)
    alike = torch.zeros(1, 5, 1, 5)
    expected = (1 / 2 + 1 / 3) / 2
    assert diversity(alike, [(1, 2), (1, 3)]).item() == pytest.approx(expected)


def test_a_dropped_channel_learns_nothing_from_the_discriminality() -> None:
    maps = torch.rand(2, 6, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.tensor([1.0, 0, 1, 0, 1, 1])
    discriminality(maps, torch.tensor([0, 1]), mask, [(2, 3)]).backward()
    assert maps.grad is not None
    reached = maps.grad.abs().sum((0, 2, 3)) > 0
    assert reached.tolist() == mask.bool().tolist()


def test_descent_on_the_loss_spreads_the_channels_of_a_class() -> None:
    torch.manual_seed(0)
    maps = (0.01 * torch.randn(1, 6, 4, 4)).requires_grad_()
    before = diversity(maps, [(2, 3)]).item()
    optimizer = torch.optim.SGD([maps], lr=50.0)
    for _ in range(200):
        optimizer.zero_grad()
        (1 - diversity(maps, [(2, 3)])).backward()
        optimizer.step()
    assert before < 0.4
    assert diversity(maps, [(2, 3)]).item() > 0.95


def test_the_loss_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    params = McLossParams(mu=0.7, diversity=3.0)
    network = MutualChannelNetwork(Backbone("resnet18"), 3, params).eval()
    with torch.no_grad():
        torch.manual_seed(4)
        loss, logits = network.loss(IMAGES, LABELS, 0.2)
        torch.manual_seed(4)
        mask = channel_mask(network.allotment, 0.4)
        maps = network.backbone(IMAGES)
        part = discriminality(maps, LABELS, mask, network.allotment)
        apart = diversity(maps, network.allotment)
        plain = nn.functional.cross_entropy(logits, LABELS, label_smoothing=0.2)
    assert loss.item() == pytest.approx((plain + 0.7 * (part + 3 * (1 - apart))).item(), rel=1e-5)


def test_without_weight_it_is_plain_fine_tuning() -> None:
    torch.manual_seed(0)
    control = Finetune(Backbone("resnet18"), 3, FinetuneParams())
    network = MutualChannelNetwork(Backbone("resnet18"), 3, McLossParams(mu=0.0))
    network.load_state_dict(control.state_dict())
    found, expected = predict(network, IMAGES), predict(control, IMAGES)
    assert torch.equal(found.logits, expected.logits)
    assert found.boxes is not None
    assert expected.boxes is not None
    assert torch.equal(found.boxes, expected.boxes)
    loss, _ = network.train().loss(IMAGES, LABELS, 0.1)
    wanted, _ = control.train().loss(IMAGES, LABELS, 0.1)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


class Cells(nn.Module):
    """Six channels: mean red, green and blue of cells of 8 pixels, twice."""

    channels = 6

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images.float() / 255, 8).repeat(1, 2, 1, 1)


def test_the_box_lies_around_what_speaks_for_the_predicted_class() -> None:
    network = MutualChannelNetwork(Cells(), 2, McLossParams())  # type: ignore[arg-type]
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, 0, 0, 1, 0, 0], [0, 1.0, 0, 0, 1, 0]]))
        network.head.bias.zero_()
    assert_green_then_red(predict(network, two_squares()))


@pytest.mark.parametrize(
    ("classes", "setting", "channels"),
    [(200, None, 512), (256, None, 512), (257, None, 771), (5, 3, 15), (300, 2, 600)],
)
def test_channels_are_made_where_there_are_too_few(
    classes: int, setting: int | None, channels: int
) -> None:
    params = McLossParams(channels_per_class=setting)
    network = MutualChannelNetwork(Backbone("resnet18"), classes, params)
    assert network.head.in_features == channels
    assert sum(count * each for count, each in network.allotment) == channels
    loss, logits = network.loss(IMAGES, LABELS, 0.0)
    assert loss.isfinite()
    assert logits.shape == (2, classes)
    assert predict(network, IMAGES).logits.shape == (2, classes)


@pytest.mark.parametrize("setting", [None, 3])
def test_every_layer_learns_and_the_groups_hold_all_parameters(setting: int | None) -> None:
    torch.manual_seed(0)
    params = McLossParams(mu=1.0, channels_per_class=setting)
    network = MutualChannelNetwork(Backbone("resnet18"), 4, params)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm closes residual branches at first, with 0
    loss, _ = network.loss(IMAGES, LABELS, 0.0)
    loss.backward()
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    still = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    groups = network.parameter_groups()
    assert all(names[id(p)].startswith("backbone.body.") for p in groups["backbone"])
    assert all(names[id(p)].startswith(("head.", "expansion.")) for p in groups["head"])
    assert sorted(names[id(p)] for group in groups.values() for p in group) == sorted(
        names.values()
    )


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "res2net50_26w_4s", "vgg11_bn"])
def test_any_backbone(name: str) -> None:
    network = MutualChannelNetwork(Backbone(name), 5, McLossParams())
    assert sum(count * each for count, each in network.allotment) == network.backbone.channels
    loss, _ = network.loss(IMAGES, LABELS, 0.0)
    assert loss.isfinite()
    boxes = predict(network, IMAGES).boxes
    assert boxes is not None
    assert boxes.shape == (2, 1, 4)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[..., :2] < boxes[..., 2:]).all()


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 97, 160), (3, 224, 32)])
def test_other_sizes_and_batches(shape: tuple[int, int, int]) -> None:
    batch, height, width = shape
    network = MutualChannelNetwork(Backbone("mobilenetv3_small_050"), 2, McLossParams())
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    assert predict(network, images).logits.shape == (batch, 2)
    loss, logits = network.train().loss(images, torch.zeros(batch, dtype=torch.int64), 0.1)
    assert loss.isfinite()
    assert logits.shape == (batch, 2)


def test_nothing_is_drawn_in_evaluation() -> None:
    network = MutualChannelNetwork(Backbone("mobilenetv3_small_050"), 3, McLossParams())
    state = torch.get_rng_state()
    first = predict(network, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.logits, predict(network, IMAGES).logits)


def test_bf16_gives_float_logits_and_loss() -> None:
    network = MutualChannelNetwork(Backbone("resnet18"), 3, McLossParams())
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = network.loss(IMAGES, LABELS, 0.0)
        assert predict(network, IMAGES).logits.dtype == torch.float32
    assert loss.dtype == logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mu", -0.1),
        ("diversity", -1.0),
        ("dropped", 0.0),
        ("dropped", 1.0),
        ("channels_per_class", 1),
    ],
)
def test_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        McLossParams.model_validate({key: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [McLossParams(), McLossParams(mu=1.5, diversity=13.3, channels_per_class=3)],
    ids=["pretrained", "scratch"],
)
def test_it_learns_a_few_photographs_by_heart(params: McLossParams) -> None:
    torch.manual_seed(0)
    network = MutualChannelNetwork(Backbone("test_efficientnet"), 4, params)
    losses_while_it_learns(network, 35)
    assert_known_by_heart(network)
