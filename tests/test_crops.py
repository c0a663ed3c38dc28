import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from opam.engine.crops.ahead import AHEAD, load_ahead
from opam.engine.crops.batches import CropBatches, TrainingCrops
from opam.engine.crops.cutting import centre_boxes, cut, shown_box
from opam.engine.scoring import (
    by_cluster,
    chosen,
    pooled_probabilities,
    score_crops,
    score_crops_shared,
    shared_maps,
)
from opam.engine.training.samples import whole_images
from opam.networks.backbones.backbone import Backbone
from opam.networks.cam_network import CamNetwork
from opam.photographs.decoding.images import read_image
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError


def test_shown_box_slides_over_the_box() -> None:
    assert shown_box((10, 20, 110, 220), 0.5, 0, 0) == (10, 20, 60, 120)
    assert shown_box((10, 20, 110, 220), 0.5, 1, 1) == (60, 120, 110, 220)
    np.testing.assert_allclose(centre_boxes(np.array([[0, 0, 8, 4]]), 0.5), [[2, 1, 6, 3]])
    assert centre_boxes(np.zeros((0, 4)), 0.5).shape == (0, 4)


def test_cut_takes_the_box_and_mirrors() -> None:
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    inside = image[1:5, 2:6].transpose(2, 0, 1)
    crops = cut(image, np.array([[2, 1, 6, 5], [2.4, 0.6, 6.4, 4.6]]), 4, [False, True])
    np.testing.assert_array_equal(crops[0], inside)
    np.testing.assert_array_equal(crops[1], inside[:, :, ::-1])
    assert crops.is_contiguous(memory_format=torch.channels_last)


def test_a_crop_has_a_pixel_at_least_and_none_from_outside() -> None:
    image = np.full((8, 8, 3), 7, dtype=np.uint8)
    outside = np.array([[-3, -3, 12, 12], [8, 8, 9, 9], [3.2, 3.2, 3.3, 3.3], [-5, -5, -1, -1]])
    assert (cut(image, outside, 4) == 7).all()
    assert cut(image, np.zeros((0, 4)), 4).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("size", [96, 224])
def test_a_crop_is_nearly_the_one_of_a_plain_loop(size: int) -> None:
    """Against Pillow's bilinear filter, on noise that is smooth over a few pixels."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    photograph = noise.resize((400, 300), Image.Resampling.BICUBIC)
    corners = rng.integers(0, 150, (40, 2))
    boxes = np.concatenate([corners, corners + rng.integers(20, 150, (40, 2))], axis=1)
    crops = cut(np.asarray(photograph), boxes, size).numpy().astype(int)
    for crop, box in zip(crops, boxes.tolist(), strict=True):
        plain = photograph.crop(tuple(box)).resize((size, size), Image.Resampling.BILINEAR)
        assert abs(crop - np.asarray(plain, dtype=int).transpose(2, 0, 1)).mean() < 1


def test_random_crops_depend_on_seed_epoch_and_row_alone(photographs: pd.DataFrame) -> None:
    table = whole_images(photographs)
    first = TrainingCrops(table, 32, 48, (0, 0))
    assert torch.equal(first[3], TrainingCrops(table, 32, 48, (0, 0))[3])
    assert not torch.equal(first[3], TrainingCrops(table, 32, 48, (0, 1))[3])
    assert not torch.equal(first[3], TrainingCrops(table, 32, 48, (1, 0))[3])
    centred = TrainingCrops(table, 32, 48, None)
    assert torch.equal(centred[3], centred[3])
    assert (centred.labels[3], centred.heads[3]) == (1, -1)


def test_areas_of_random_crops_vary_as_much_as_asked_for(tmp_path: Path) -> None:
    across, down = np.meshgrid(np.arange(200, dtype=np.uint8), np.arange(100, dtype=np.uint8))
    Image.fromarray(np.dstack([across, down, down])).save(tmp_path / "places.png")
    table = pd.DataFrame(
        [(str(tmp_path / "places.png"), 20, 10, 180, 90, 0, -1)] * 300,
        columns=["path", "x0", "y0", "x1", "y1", "label", "head"],
    )

    def areas(min_area: float) -> np.ndarray:
        crops = TrainingCrops(table, 36, 40, (0, 0), min_area)
        shown = []
        for row in range(len(table)):
            columns, rows, _ = crops[row].numpy().astype(int)
            assert columns.min() >= 20
            assert columns.max() <= 180
            assert rows.min() >= 10
            assert rows.max() <= 90
            shown.append(np.ptp(columns) * np.ptp(rows) / (160 * 80 * 0.9**2))
        return np.array(shown)

    assert np.ptp(areas(1.0)) < 0.1
    np.testing.assert_allclose(np.quantile(areas(0.25), [0, 0.5, 1]), [0.25, 0.62, 1], atol=0.07)
    fixed, plain = TrainingCrops(table, 36, 40, None, 0.25), TrainingCrops(table, 36, 40, None)
    assert torch.equal(fixed[0], plain[0])


BOXES = [np.array([[0, 0, 40, 30], [10, 10, 30, 30], [5, 5, 60, 50]])[:n] for n in (2, 0, 3, 1)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_run_over_the_borders_of_photographs(
    photographs: pd.DataFrame, workers: int
) -> None:
    paths = photographs["path"].tolist()[:4]
    batches = CropBatches(paths, BOXES, 16, 4, mirrored=[False, True, False], fraction=0.5)
    made = list(load_ahead(batches.__getitem__, range(len(batches)), workers))
    assert [len(batch) for batch in made] == [4, 2]
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in made)
    rows = [(p, c) for number in range(2) for p, c in zip(*batches.rows(number), strict=True)]
    assert rows == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2), (3, 0)]
    for (photograph, crop), found in zip(rows, torch.cat(made), strict=True):
        box = centre_boxes(BOXES[photograph][[crop]], 0.5)
        [expected] = cut(read_image(paths[photograph]), box, 16, [crop == 1])
        assert torch.equal(found, expected)


def test_a_photograph_of_several_batches_is_read_once(photographs: pd.DataFrame) -> None:
    read: list[str] = []

    def counted(path: str) -> np.ndarray:
        read.append(path)
        return read_image(path)

    paths = photographs["path"].tolist()[:4]
    batches = CropBatches(paths, BOXES, 16, 1, read=counted)
    assert len([batches[number] for number in range(len(batches))]) == 6
    assert read == [paths[0], paths[2], paths[3]]


def test_batches_go_to_another_process(photographs: pd.DataFrame) -> None:
    batches = CropBatches(photographs["path"].tolist()[:4], BOXES, 16, 4)
    first = batches[0]
    assert torch.equal(pickle.loads(pickle.dumps(batches))[0], first)


@pytest.mark.parametrize(("size", "most"), [(0, 8), (AHEAD // 3, 3), (2 * AHEAD, 1)])
def test_what_waits_ahead_is_bounded(size: int, most: int) -> None:
    begun: list[int] = []

    def make(number: int) -> int:
        begun.append(number)
        return number

    for number in load_ahead(make, range(20), 4, size):
        assert len(begun) <= number + 1 + most
    assert sorted(begun) == list(range(20))


def test_unit_boxes_scale_with_the_photograph(photographs: pd.DataFrame) -> None:
    path = photographs["path"].tolist()[:1]
    unit = CropBatches(path, [np.array([[0, 0, 0.5, 0.5]])], 16, 1, [True], unit=True)
    pixels = CropBatches(path, [np.array([[0, 0, 40, 30]])], 16, 1, [True])
    assert torch.equal(unit[0], pixels[0])


def scores_of(
    network: torch.nn.Module,
    paths: list[str],
    boxes: list[np.ndarray],
    execution: ExecutionParams,
    first: int = 0,
    mirrored: bool = False,
) -> list[np.ndarray]:
    """By `score_crops`, of crops of 32 pixels."""
    batches = CropBatches(paths, boxes, 32, execution.batch_size)
    return list(score_crops(network, batches, execution, "test", first, mirrored))  # type: ignore[arg-type]


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
        scores = scores_of(network, paths, boxes, execution)
        assert [len(score) for score in scores[:-1]] == [batch_size] * (len(scores) - 1)
        by_size.append(np.concatenate(scores))
    np.testing.assert_allclose(by_size[0], by_size[1], atol=1e-5)
    np.testing.assert_allclose(by_size[0], by_size[2], atol=1e-5)
    literal = CropBatches([paths[2]], [boxes[2]], 32, 99)[0]
    with torch.inference_mode():
        expected = network(literal).softmax(2).numpy()
    np.testing.assert_allclose(by_size[0][3:10], expected, atol=1e-5)


def test_mirrored_scores_are_the_mean_with_those_of_the_mirror_image(
    photographs: pd.DataFrame,
) -> None:
    torch.manual_seed(0)
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3, heads=2).eval()
    path, boxes = photographs["path"].iloc[0], np.array([[0, 0, 40, 30], [5, 5, 30, 30]])
    execution = ExecutionParams(device="cpu", workers=0)
    found = scores_of(network, [path], [boxes], execution, mirrored=True)
    views = [CropBatches([path], [boxes], 32, 2, [side] * 2)[0] for side in (False, True)]
    with torch.inference_mode():
        one, other = (network(view).softmax(2).numpy() for view in views)
    assert abs(one - other).max() > 1e-4
    np.testing.assert_allclose(found[0], (one + other) / 2, atol=1e-5)


def test_scoring_begins_at_any_batch_and_gives_the_same_bits(photographs: pd.DataFrame) -> None:
    torch.manual_seed(0)
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3).eval()
    counts = np.array([3, 0, 7, 1, 2, 0, 4, 1, 1, 1, 9, 0])
    boxes = [np.tile([0, 0, 40, 30], (count, 1)) + np.arange(count)[:, None] for count in counts]
    paths = photographs["path"].tolist()
    execution = ExecutionParams(device="cpu", workers=0, batch_size=4)
    every = scores_of(network, paths, boxes, execution)
    assert len(every) == 8
    for first in (1, 3, 7, 8):
        rest = scores_of(network, paths, boxes, execution, first)
        assert len(rest) == 8 - first
        for one, other in zip(rest, every[first:], strict=True):
            np.testing.assert_array_equal(one, other)


def test_scores_of_parts_are_their_means_by_cluster() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.6, 0.4]])
    found = by_cluster(scores, [np.array([1, 0, 1]), np.array([2, 2])], 3)
    assert found.shape == (3, 2, 2)
    np.testing.assert_allclose(found[0, 0], [0.8, 0.2])
    np.testing.assert_allclose(found[1, 0], [0.5, 0.5])
    np.testing.assert_allclose(found[2, 0], [0.6, 0.4])  # none of its parts: the mean of all
    for each in found[:, 1]:
        np.testing.assert_allclose(each, [0.45, 0.55])


def test_rows_of_batches_are_those_of_the_photographs() -> None:
    counts = np.array([3, 0, 7, 1])
    batches = CropBatches(["x"] * 4, [np.zeros((n, 4)) for n in counts], 8, 4)
    assert len(batches) == 3
    rows = [batches.rows(batch) for batch in range(3)]
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
    expected = scores_of(plenty, paths, boxes, execution)
    found = scores_of(little, paths, boxes, execution)
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=1e-6)
    assert little.batches == [4] * 15
    assert "on with 4 crops a batch" in capsys.readouterr().err
    with pytest.raises(OpamError, match="does not fit the GPU's memory"):
        scores_of(SmallMemory(0), paths, boxes, execution)


def test_photographs_without_any_crop(photographs: pd.DataFrame) -> None:
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3).eval()
    execution = ExecutionParams(device="cpu", workers=0)
    empty = [np.zeros((0, 4))] * 2
    assert scores_of(network, photographs["path"].tolist()[:2], empty, execution) == []


def test_shared_scores_are_pooled_from_the_photograph(photographs: pd.DataFrame) -> None:
    torch.manual_seed(0)
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3, heads=2).eval()
    image = torch.from_numpy(read_image(photographs["path"].iloc[0]).copy()).permute(2, 0, 1)
    image = torch.nn.functional.interpolate(image[None], (96, 160))[0]
    boxes = torch.tensor([[0.0, 0, 160, 96], [40, 16, 104, 80], [100, 50, 130, 70]])
    found = pooled_probabilities(network, shared_maps(network, image), boxes / 32)
    with torch.inference_mode():
        maps = network.backbone(image[None])
        assert maps.shape[2:] == (3, 5)
        for probabilities, (x0, y0, x1, y1) in zip(found, boxes.tolist(), strict=True):
            # 8 x 8 points, bilinear between the centres of cells, constant beyond the outer ones
            steps = (np.arange(8) + 0.5) / 8
            total = torch.zeros(maps.shape[1])
            for y in (y0 + (y1 - y0) * steps) / 32 - 0.5:
                for x in (x0 + (x1 - x0) * steps) / 32 - 0.5:
                    x, y = np.clip(x, 0, 4), np.clip(y, 0, 2)
                    left, top = min(int(x), 3), min(int(y), 1)
                    across, down = x - left, y - top
                    for i, j, share in (
                        (top, left, (1 - down) * (1 - across)),
                        (top, left + 1, (1 - down) * across),
                        (top + 1, left, down * (1 - across)),
                        (top + 1, left + 1, down * across),
                    ):
                        total += share * maps[0, :, i, j]
            expected = network.head(total / 64).view(2, 3).softmax(1)
            np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_shared_scores_come_in_order_and_from_any_photograph(photographs: pd.DataFrame) -> None:
    torch.manual_seed(0)
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3).eval()
    boxes = [np.tile([0, 0, 40, 30], (n, 1)) + np.arange(n)[:, None] for n in (3, 0, 7, 1)]
    paths = photographs["path"].tolist()[:4]
    every = {}
    for workers in (0, 2):
        execution = ExecutionParams(device="cpu", workers=workers)
        every[workers] = list(score_crops_shared(network, paths, boxes, 64, execution, "all"))
        rest = list(score_crops_shared(network, paths, boxes, 64, execution, "rest", 2))
        for one, other in zip(rest, every[workers][2:], strict=True):
            np.testing.assert_array_equal(one, other)
    assert [each.shape for each in every[0]] == [(3, 1, 3), (0, 1, 3), (7, 1, 3), (1, 1, 3)]
    for one, other in zip(every[0], every[2], strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one.sum(2), 1, atol=1e-5)


def test_a_shared_crop_is_taken_from_the_size_at_which_it_is_seen_exactly(
    photographs: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 x 60 photographs are seen 64 and 192 wide: the whole in the one, a third in the other."""
    seen: list[tuple[int, int]] = []

    def record(network: CamNetwork, maps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        seen.extend((maps.shape[3] * 32, round(box[2].item() * 32)) for box in boxes)
        return torch.zeros(len(boxes), network.heads, network.classes)

    monkeypatch.setattr("opam.engine.scoring.pooled_probabilities", record)
    network = CamNetwork(Backbone("mobilenetv3_small_050"), classes=3).eval()
    boxes = [np.array([[0, 0, 80, 60], [0, 0, 20, 20]])]
    execution = ExecutionParams(device="cpu", workers=0)
    list(score_crops_shared(network, photographs["path"].tolist()[:1], boxes, 64, execution, "x"))
    assert seen == [(64, 64), (192, 48)]


def test_auto_scores_each_patch_by_itself_where_a_gpu_does() -> None:
    found = {device: chosen("auto", torch.device(device)) for device in ("cpu", "cuda")}
    assert found == {"cpu": "shared", "cuda": "exact"}
    assert [chosen(each, torch.device("cuda")) for each in ("exact", "shared")] == [
        "exact",
        "shared",
    ]
