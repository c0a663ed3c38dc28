import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from opam.crops import (
    PhotographCrops,
    TrainingCrops,
    centre_boxes,
    cut,
    load_photographs,
    shown_box,
)
from opam.device import ExecutionParams
from opam.errors import OpamError
from opam.models.backbones import Backbone
from opam.models.cam_network import CamNetwork
from opam.scoring import _batches, batch_rows, score_crops
from opam.training import whole_images


def test_shown_box_slides_over_the_box() -> None:
    assert shown_box((10, 20, 110, 220), 0.5, 0, 0) == (10, 20, 60, 120)
    assert shown_box((10, 20, 110, 220), 0.5, 1, 1) == (60, 120, 110, 220)
    np.testing.assert_allclose(centre_boxes(np.array([[0, 0, 8, 4]]), 0.5), [[2, 1, 6, 3]])
    assert centre_boxes(np.zeros((0, 4)), 0.5).shape == (0, 4)


def test_cut_takes_the_box_and_mirrors() -> None:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(cut(image, (2, 1, 6, 5), 4), pixels[1:5, 2:6].transpose(2, 0, 1))
    mirrored = cut(image, (2, 1, 6, 5), 4, mirror=True)
    np.testing.assert_array_equal(mirrored, pixels[1:5, 2:6][:, ::-1].transpose(2, 0, 1))
    assert cut(image, (-3, -3, 12, 12), 4).shape == (3, 4, 4)


def test_random_crops_depend_on_seed_epoch_and_row_alone(photographs: pd.DataFrame) -> None:
    table = whole_images(photographs)
    first = TrainingCrops(table, 32, 48, (0, 0))
    assert torch.equal(first[3][0], TrainingCrops(table, 32, 48, (0, 0))[3][0])
    assert not torch.equal(first[3][0], TrainingCrops(table, 32, 48, (0, 1))[3][0])
    assert not torch.equal(first[3][0], TrainingCrops(table, 32, 48, (1, 0))[3][0])
    centred = TrainingCrops(table, 32, 48, None)
    assert torch.equal(centred[3][0], centred[3][0])
    assert centred[3][1:] == (1, -1)


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_of_a_photograph_come_in_order(photographs: pd.DataFrame, workers: int) -> None:
    boxes = [np.array([[0, 0, 40, 30], [10, 10, 30, 30]])] * 12
    boxes[5] = np.zeros((0, 4))
    dataset = PhotographCrops(photographs["path"].tolist(), boxes, 16)
    items = list(load_photographs(dataset, workers))
    assert [len(item) for item in items] == [2] * 5 + [0] + [2] * 6
    assert torch.equal(items[7], dataset[7])


def test_unit_boxes_scale_with_the_photograph(photographs: pd.DataFrame) -> None:
    path = photographs["path"].tolist()[:1]
    unit = PhotographCrops(path, [np.array([[0, 0, 0.5, 0.5]])], 16, [True], unit=True)
    pixels = PhotographCrops(path, [np.array([[0, 0, 40, 30]])], 16, [True])
    assert torch.equal(unit[0], pixels[0])


def test_batches_join_and_cut() -> None:
    items = [torch.arange(3), torch.arange(0), torch.arange(5), torch.arange(2)]
    assert [len(batch) for batch in _batches(items, 4)] == [4, 4, 2]
    assert torch.equal(torch.cat(list(_batches(items, 4))), torch.cat(items))
    assert [len(batch) for batch in _batches([torch.arange(4)] * 2, 4)] == [4, 4]
    assert list(_batches([], 4)) == []


def test_scores_do_not_depend_on_how_crops_are_batched(photographs: pd.DataFrame) -> None:
    torch.manual_seed(0)
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3, heads=2).eval()
    rng = np.random.default_rng(0)
    boxes = []
    for count in (3, 0, 7, 1, 2, 0, 4, 1, 1, 1, 9, 0):
        corner = rng.integers(0, 30, (count, 2))
        boxes.append(np.concatenate([corner, corner + rng.integers(8, 30, (count, 2))], axis=1))
    paths = photographs["path"].tolist()
    by_size = []
    for batch_size in (1, 4, 64):
        execution = ExecutionParams(device="cpu", workers=0, batch_size=batch_size)
        scores = list(score_crops(network, paths, boxes, 32, 1.0, execution, "test"))
        assert [len(score) for score in scores[:-1]] == [batch_size] * (len(scores) - 1)
        by_size.append(np.concatenate(scores))
    np.testing.assert_allclose(by_size[0], by_size[1], atol=1e-5)
    np.testing.assert_allclose(by_size[0], by_size[2], atol=1e-5)
    literal = PhotographCrops([paths[2]], [boxes[2]], 32)[0]
    with torch.inference_mode():
        expected = network(literal).softmax(2).numpy()
    np.testing.assert_allclose(by_size[0][3:10], expected, atol=1e-5)


def test_scoring_begins_at_any_batch_and_gives_the_same_bits(photographs: pd.DataFrame) -> None:
    torch.manual_seed(0)
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3).eval()
    counts = np.array([3, 0, 7, 1, 2, 0, 4, 1, 1, 1, 9, 0])
    boxes = [np.tile([0, 0, 40, 30], (count, 1)) + np.arange(count)[:, None] for count in counts]
    paths = photographs["path"].tolist()
    execution = ExecutionParams(device="cpu", workers=0, batch_size=4)
    every = list(score_crops(network, paths, boxes, 32, 1.0, execution, "all"))
    assert len(every) == 8
    for first in (1, 3, 7, 8):
        rest = list(score_crops(network, paths, boxes, 32, 1.0, execution, "rest", first))
        assert len(rest) == 8 - first
        for one, other in zip(rest, every[first:], strict=True):
            np.testing.assert_array_equal(one, other)


def test_rows_of_batches_are_those_of_the_photographs() -> None:
    counts = np.array([3, 0, 7, 1])
    rows = [batch_rows(batch, counts, 4) for batch in range(3)]
    photographs = np.concatenate([photograph for photograph, _ in rows])
    crops = np.concatenate([crop for _, crop in rows])
    assert photographs.tolist() == [0] * 3 + [2] * 7 + [3]
    assert crops.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 0]


class SmallMemory(torch.nn.Module):
    """A network on a device that holds ``limit`` crops."""

    heads, classes = 1, 2

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.limit:
            raise torch.cuda.OutOfMemoryError("full")
        self.batches.append(len(images))
        return images.float().mean((2, 3))[:, None, :2]


def test_a_batch_that_the_memory_does_not_hold_is_halved(
    photographs: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = [np.tile([0, 0, 40, 30], (5, 1)) + np.arange(5)[:, None]] * 12
    paths = photographs["path"].tolist()
    execution = ExecutionParams(device="cpu", workers=0, batch_size=16)
    plenty, little = SmallMemory(16), SmallMemory(5)
    expected = list(score_crops(plenty, paths, boxes, 32, 1.0, execution, "plenty"))  # type: ignore[arg-type]
    found = list(score_crops(little, paths, boxes, 32, 1.0, execution, "little"))  # type: ignore[arg-type]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=1e-6)
    assert little.batches == [4] * 15
    assert "on with 4 crops a batch" in capsys.readouterr().err
    with pytest.raises(OpamError, match="does not fit the GPU's memory"):
        list(score_crops(SmallMemory(0), paths, boxes, 32, 1.0, execution, "none"))  # type: ignore[arg-type]


def test_photographs_without_any_crop(photographs: pd.DataFrame) -> None:
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3).eval()
    execution = ExecutionParams(device="cpu", workers=0)
    empty = [np.zeros((0, 4))] * 2
    scores = score_crops(network, photographs["path"].tolist()[:2], empty, 32, 1.0, execution, "x")
    assert list(scores) == []
