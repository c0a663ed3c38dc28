"""Patch scoring: how near the bare network, and shared against exact, on the run in ``data/``."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

from opam.engine.crops.batches import CropBatches
from opam.engine.crops.cutting import cut
from opam.engine.scoring import score_crops, score_crops_shared
from opam.networks.cam_network import CamNetwork, read_network
from opam.photographs.decoding.images import read_image
from opam.pipeline.artifacts import BOX, read_table
from opam.pipeline.device import ExecutionParams

DATA = Path("data")
PHOTOGRAPHS = 32
SHARE = 0.15
"""Of the patches, kept by either mode, where kept sets are compared."""


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long ``work`` takes, and what it gives."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def plain_cut(image: np.ndarray, boxes: np.ndarray, size: int) -> torch.Tensor:
    """Crop, resize, stack, one box after the other."""
    picture = Image.fromarray(image)
    crops = []
    for box in boxes.tolist():
        crop = picture.crop(tuple(box)).resize((size, size), Image.Resampling.BILINEAR)
        crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    return torch.stack(crops)


def confidence(network: CamNetwork, crops: torch.Tensor) -> np.ndarray:
    """Probabilities of ready crops, in batches of 64."""
    with torch.inference_mode():
        return np.concatenate(
            [network(each)[:, 0].softmax(1).numpy() for each in torch.split(crops, 64)]
        )


def measure() -> list[dict[str, object]]:
    """Rows of the benchmark table."""
    if not (DATA / "models/filternet.safetensors").exists():
        needed = "not measured: wants `dvc repro train_filternet propose_patches`"
        return [{"what": "patch scoring", "value": needed, "ratio": ""}]
    network, settings = read_network(DATA / "models/filternet.safetensors")
    size = settings["input_size"]
    manifest = read_table(DATA / "manifest.parquet", "manifest")
    training = manifest[manifest["split"] == "train"]
    chosen = training.sample(min(PHOTOGRAPHS, len(training)), random_state=0)
    proposals = dict(iter(read_table(DATA / "proposals.parquet", "proposals").groupby("image_id")))
    boxes = [proposals[each][BOX].to_numpy() for each in chosen["image_id"]]
    paths, labels = chosen["path"].tolist(), chosen["label"].to_numpy()
    count = sum(map(len, boxes))
    execution = ExecutionParams.model_validate({"device": "cpu", "batch_size": 64})

    def exact(of: list[np.ndarray]) -> np.ndarray:
        batches = CropBatches(paths, of, size, execution.batch_size)
        scores = score_crops(network, batches, execution, "exact")
        return np.concatenate(list(scores))[:, 0]

    def shared(of: list[np.ndarray]) -> np.ndarray:
        scores = score_crops_shared(network, paths, of, size, execution, "shared")
        return np.concatenate(list(scores))[:, 0]

    exact(boxes[:1] + [each[:0] for each in boxes[1:]])  # warm
    batch = torch.randint(0, 255, (64, 3, size, size), dtype=torch.uint8)
    ready = batch.contiguous(memory_format=torch.channels_last).repeat(count // 64 + 1, 1, 1, 1)
    bare_seconds, _ = seconds(lambda: confidence(network, ready[:count]))
    exact_seconds, by_exact = seconds(lambda: exact(boxes))
    shared_seconds, by_shared = seconds(lambda: shared(boxes))
    images = [read_image(path) for path in paths]
    torch.set_num_threads(1)
    plain_seconds, plain = seconds(
        lambda: [plain_cut(image, of, size) for image, of in zip(images, boxes, strict=True)]
    )
    cut_seconds, _ = seconds(
        lambda: [cut(image, of, size) for image, of in zip(images, boxes, strict=True)]
    )
    torch.set_num_threads(execution.threads)
    by_plain = confidence(network, torch.cat(plain))
    difference = float(np.abs(by_exact - by_plain).mean())

    rows: list[dict[str, object]] = [
        {
            "what": f"{count} patches of {len(paths)} photographs, {size} pixels: with the network "
            "alone on ready batches",
            "value": f"{count / exact_seconds:.0f} against {count / bare_seconds:.0f} a second",
            "ratio": round(bare_seconds / exact_seconds, 3),
            "goal": 0.9,
        },
        {
            "what": "cutting and resizing patches, against a plain loop, one thread",
            "value": f"{count / cut_seconds:.0f} against {count / plain_seconds:.0f} a second",
            "ratio": round(plain_seconds / cut_seconds, 2),
            "goal": 5,
        },
        {
            "what": "scores of both cuts: mean absolute difference",
            "value": f"{difference:.2g}",
            "ratio": "",
            "goal": 0.001,
        },
        {
            "what": f"scoring: shared against exact, {count / len(paths):.0f} patches a photograph",
            "value": f"{count / shared_seconds:.0f} against {count / exact_seconds:.0f} a second",
            "ratio": round(exact_seconds / shared_seconds, 1),
        },
    ]
    own = np.repeat(labels, [len(each) for each in boxes])
    one, other = (scores[np.arange(count), own] for scores in (by_exact, by_shared))
    kept = max(1, round(SHARE * count))
    best = [set(np.argsort(-scores, kind="stable")[:kept].tolist()) for scores in (one, other)]
    rows.append(
        {
            "what": f"shared against exact: rank correlation; of the {SHARE:.0%} that exact keeps, "
            "shared keeps",
            "value": f"{spearmanr(one, other)[0]:.2f}; {len(best[0] & best[1]) / kept:.0%}",
            "ratio": "",
        }
    )
    for many in (200, 1000):
        more = [np.resize(each, (many, 4)) for each in boxes]
        shared_seconds, _ = seconds(lambda more=more: shared(more))  # type: ignore[misc]
        rows.append(
            {
                "what": f"the same with {many} patches a photograph, exact at the rate above",
                "value": f"{many * len(paths) / shared_seconds:.0f} a second",
                "ratio": round(many * len(paths) / count * exact_seconds / shared_seconds, 1),
                "goal": 20,
            }
        )
    return rows
