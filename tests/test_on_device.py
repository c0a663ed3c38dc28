"""Crops cut in a device's memory are those cut on the CPU: the device is a CPU here, too."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from opam.engine import forward
from opam.engine.crops import on_device
from opam.engine.crops.batches import CropBatches, TrainingCrops
from opam.engine.crops.cutting import cut
from opam.engine.crops.on_device import OnDevice, side_weights
from opam.engine.scoring import score_crops
from opam.engine.training import loop
from opam.engine.training.samples import whole_images
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.cam_network import CamNetwork
from opam.photographs.decoding.images import Photographs
from opam.pipeline.device import ExecutionParams

CPU = torch.device("cpu")
SIZES = [(80, 60), (37, 111), (200, 150), (1, 5)]


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Photographs of `SIZES`, smooth with noise on it, as photographs are."""
    monkeypatch.setenv("OPAM_CACHE", str(tmp_path / "kept"))
    generator = np.random.default_rng(0)
    rows = []
    for number, (width, height) in enumerate(SIZES):
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), dtype=np.int64)
        noisy = (smooth + generator.integers(-9, 10, smooth.shape)).clip(0, 255)
        path = tmp_path / f"{number}.png"
        Image.fromarray(noisy.astype(np.uint8)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append((f"{number}", str(path), digest, number % 2, "train", width, height))
    columns = ["image_id", "path", "sha256", "label", "split", "width", "height"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def read(manifest: pd.DataFrame) -> Photographs:
    return Photographs(manifest, 1.0)


@pytest.fixture
def there(read: Photographs, monkeypatch: pytest.MonkeyPatch) -> OnDevice:
    """What a GPU would hold; networks and training find it in a GPU's place."""
    held = OnDevice(read, CPU)
    for module in (forward, loop):
        monkeypatch.setattr(module, "on_device", lambda *_: held)
    return held


def drawn_boxes(width: int, height: int, count: int) -> np.ndarray:
    """Whole, small, narrow, of fractions of pixels, over the borders and beyond them."""
    generator = np.random.default_rng(width)
    corners = generator.uniform(-0.2, 1.2, (count, 4)) * np.array([width, height] * 2)
    ordered = np.hstack([corners[:, :2], corners[:, 2:]]).reshape(-1, 2, 2)
    ordered.sort(axis=1)
    return np.vstack([[[0, 0, width, height], [2, 2, 3, 3]], ordered.reshape(-1, 4)])


@pytest.mark.parametrize("size", [1, 7, 32, 96])
def test_pixels_are_those_of_the_other_cut(
    manifest: pd.DataFrame, read: Photographs, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = OnDevice(read, CPU)
    cuts, expected = [], []
    for path, (width, height) in held.sizes.items():
        boxes = drawn_boxes(width, height, 20)
        mirrored = np.arange(len(boxes)) % 2 == 1
        cuts.append((path, boxes, mirrored))
        expected.append(cut(read(path), boxes, size, mirrored))
    found = held.cut(cuts, size)
    assert found.dtype == torch.uint8
    assert found.is_contiguous(memory_format=torch.channels_last)
    apart = (found.int() - torch.cat(expected).int()).abs()
    assert apart.float().mean() < 0.5
    assert apart.max() <= 2
    monkeypatch.setattr(on_device, "AT_ONCE", 5_000)  # a few crops at a time
    assert (held.cut(cuts, size).int() - found.int()).abs().max() <= 1  # ties are rounded


def test_weights_of_a_side_are_areas_where_it_shrinks_and_bilinear_where_it_grows() -> None:
    areas, bilinear = side_weights(torch.tensor([5, 2]), 4, 6)
    third = [0, 0, 0.4, 0.6, 0, 0]
    np.testing.assert_allclose(areas[2], np.array([0, 0, 0.5, 0.75, 0, 0]) / 1.25, atol=1e-6)
    np.testing.assert_allclose(areas[2], third, atol=1e-6)
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(bilinear[:, :2], expected, atol=1e-6)
    np.testing.assert_allclose(bilinear[:, 2:], 0)


def test_scores_of_both_cuts_agree(read: Photographs, there: OnDevice) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(BackboneParams(name="mobilenetv3_small_050", weights="none"))
    network = CamNetwork(backbone, classes=3).eval()
    torch.nn.init.normal_(network.head.weight, std=10)
    boxes = [drawn_boxes(*size, 6) / np.tile(size, 2) for size in SIZES]
    batches = CropBatches([*there.sizes], boxes, 32, 5, unit=True, fraction=0.9, read=read)
    execution = ExecutionParams(device="cpu")
    found = np.concatenate(list(score_crops(network, batches, execution, "there")))
    with torch.inference_mode():
        plain = [network(batches[number]).softmax(2) for number in range(len(batches))]
    expected = torch.cat(plain).numpy()
    assert there.here == set(there.sizes)
    assert expected.std(0).max() > 0.01  # the network does tell them apart
    assert np.abs(found - expected).mean() < 1e-3


def test_training_is_shown_the_same_crops(
    manifest: pd.DataFrame, read: Photographs, there: OnDevice
) -> None:
    crops = TrainingCrops(whole_images(manifest), 24, 32, (0, 0), 0.3, read)
    [(images, labels, heads)] = loop._batches(crops, 8, ExecutionParams(device="cpu"), CPU)
    expected = torch.stack([crops[row] for row in range(len(crops))])
    assert (images.int() - expected.int()).abs().float().mean() < 0.5
    assert labels.tolist() == manifest["label"].tolist()
    assert heads.tolist() == [-1] * len(manifest)


def test_a_full_gpu_has_crops_cut_on_the_cpu(
    manifest: pd.DataFrame, read: Photographs, there: OnDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(there, "cut", full)
    boxes = [drawn_boxes(*size, 2) for size in SIZES]
    batches = CropBatches([*there.sizes], boxes, 16, 4, read=read)
    assert torch.equal(forward.ready_crops(batches, CPU, there, 1), batches[1])
    crops = TrainingCrops(whole_images(manifest), 24, 32, (0, 0), 0.3, read)
    [(images, *_)] = loop._batches(crops, 8, ExecutionParams(device="cpu"), CPU)
    assert torch.equal(images[2], crops[2])


def test_photographs_lie_in_a_gpus_memory_where_they_fit_alone(
    read: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 3 * sum(width * height for width, height in SIZES)
    gpu: Any = torch.device("cuda")
    made = []
    monkeypatch.setattr(on_device, "OnDevice", lambda *given: made.append(given) or given)
    for free, gigabytes, fits in [
        (2 * needed, 1, True),
        (2 * needed - 2, 1, False),
        (10 * needed, needed / 1e9, True),
        (10 * needed, 0.99 * needed / 1e9, False),
        (10 * needed, 0, False),
    ]:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, free))
        on_device._held.cache_clear()
        assert (on_device.on_device(read, gpu, gigabytes) is not None) == fits
    assert made == [(read, gpu)] * 2
    on_device._held.cache_clear()
    assert on_device.on_device(read, CPU, 16.0) is None
