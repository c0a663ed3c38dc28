"""Train one of the other systems, and score val and test with it.

Run by itself: ``python stages/train_baseline.py NAME``, a name under ``baselines``.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from opam.engine.crops.batches import CropBatches
from opam.engine.crops.cutting import Read, centre_boxes
from opam.engine.scoring import predict
from opam.engine.training.loop import network_settings, train
from opam.engine.training.params import TrainingParams
from opam.engine.training.samples import whole_images
from opam.evaluation.cost import gflops
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, read_table, write_json, write_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.outside import weights_file
from opam.pipeline.params import params_path, read_params
from opam.pipeline.ranks import rank
from opam.pipeline.resume import finish
from opam.pipeline.stage import run
from opam.systems.baselines import SYSTEM_OBJECTIVE, BaselineParams
from opam.systems.released import released_state
from opam.systems.systems import create_system, read_method, release_of, write_system

MANIFEST = Path("data/manifest.parquet")
BASELINES = Path("data/baselines")


def score(
    network: Any,
    images: pd.DataFrame,
    params: TrainingParams,
    mirrored: bool,
    execution: ExecutionParams,
    read: Read,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probabilities, and the regions in pixels of the photographs, best first."""
    whole = images[["width", "height"]].to_numpy(np.float64)
    boxes = np.concatenate([np.zeros_like(whole), whole], axis=1)
    shown = centre_boxes(boxes, params.input_size / params.resize)
    size = params.input_size, execution.batch_size
    batches = CropBatches(images["path"].tolist(), list(shown[:, None]), *size, read=read)
    found = predict(network, batches, execution, "score", mirrored)
    probabilities, regions = zip(*found, strict=True)
    scores = images[["image_id", "split", "label"]].assign(
        probabilities=list(np.concatenate(probabilities))
    )
    unit = np.concatenate(regions)
    corner, side = shown[:, None, :2], shown[:, None, 2:] - shown[:, None, :2]
    pixels = np.concatenate([corner + unit[..., :2] * side, corner + unit[..., 2:] * side], axis=2)
    count = unit.shape[1]
    table = pd.DataFrame(np.rint(pixels).astype(np.int32).reshape(-1, 4), columns=BOX)
    ids = images["image_id"].repeat(count).to_numpy()
    return scores, table.assign(image_id=ids, rank=np.tile(np.arange(count), len(images)))


def begin_as_released(network: Any, name: str, params: BaselineParams, classes: int) -> None:
    """Give ``network`` what ``params.weights`` holds.

    Raises:
        OpamError: as `opam.systems.released.released_state`; or the file has other classes, and
            nothing is trained.
    """
    at = f"baselines.{name}"
    path = weights_file(params.weights or "")
    state, theirs = released_state(network, release_of(params.system), path, f"{at}.weights")
    if theirs != classes:
        what = f"{at}.weights: {path} has {theirs} classes, and the photographs have {classes}"
        if params.training.epochs == 0:
            raise OpamError(f"{what}; set {at}.training.epochs, which trains new linear layers")
        if rank() == 0:
            print(f"{what}: their linear layers begin anew", file=sys.stderr)
    network.load_state_dict({**network.state_dict(), **state})


def main() -> None:
    """Write data/baselines/NAME/: weights, scores, regions, figures of cost, curves."""
    if len(sys.argv) != 2:
        raise OpamError("python stages/train_baseline.py NAME: give a name under baselines")
    name = sys.argv[1]
    seed = read_params("seed", int)
    shared_backbone = read_params("backbone", BackboneParams)
    params = read_params(f"baselines.{name}", BaselineParams)
    method = read_method(name, params.system, params.method, params_path())
    mirrored = read_params("mirrored", bool)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    out = BASELINES / name

    photographs = Photographs(manifest, execution.decoded_gigabytes)
    torch.manual_seed(seed)
    backbone = params.backbone or shared_backbone
    classes = manifest["label"].nunique()
    network = create_system(params.system, create_backbone(backbone), classes, method)
    if params.weights is not None:
        begin_as_released(network, name, params, classes)
    whole = whole_images(manifest[manifest["split"] == "train"])
    val = whole_images(manifest[manifest["split"] == "val"])
    steps: dict[str, TrainingParams] = {"training": params.training}
    if params.classifier_training is not None:
        steps = {"classifier_training": params.classifier_training, **steps}
    training_seconds = 0.0
    for step, training in steps.items():
        if step == "classifier_training":
            network.freeze_backbone()
        elif len(steps) > 1:
            network.unfreeze_backbone()
        trained = train(
            f"baselines.{name}.{step}",
            network,
            lambda _epoch: whole,
            val,
            training,
            execution,
            seed,
            SYSTEM_OBJECTIVE,
            out / "curves" / step,
            photographs,
        )
        training_seconds += trained.seconds

    if rank() > 0:  # it helped to train; one scores and writes
        return
    network.eval()
    images = manifest[manifest["split"] != "train"]
    started = time.monotonic()
    scores, regions = score(network, images, params.training, mirrored, execution, photographs)
    images_a_second = len(images) / (time.monotonic() - started)
    write_table(out / "scores.parquet", "scores", scores)
    write_table(out / "regions.parquet", "regions", regions)
    settings = {
        "system": params.system,
        "classes": classes,
        "method": params.method,
        **network_settings(backbone.name, params.training),
    }
    write_system(out / "weights.safetensors", network, settings)
    size = params.training.input_size
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    network.cpu()
    cost = {
        "parameters": sum(value.numel() for value in network.parameters()),
        "gflops": gflops(lambda: network(image)) * (1 + mirrored),
    }
    write_json(out / "cost.json", cost)
    write_json(
        out / "time.json",
        {"training_seconds": training_seconds, "images_a_second": images_a_second},
    )
    for step in steps:
        finish(f"baselines.{name}.{step}")


if __name__ == "__main__":
    run(main)
