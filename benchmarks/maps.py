"""Maps and scores: each stage's way through its network, over the network alone on ready batches.

Measured on the run in ``data/``, each pair in turns, so that a slow moment hits both.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from project import seconds

from opam.engine.crops.batches import CropBatches
from opam.engine.discriminant.features import random_views
from opam.engine.discriminant.fitting import ProbeParams
from opam.engine.forward import forward, whole_groups
from opam.engine.scoring import probabilities
from opam.method.colocalization import ColocalizationParams, Direction, object_maps
from opam.method.saliency import SaliencyParams, predicted_class_maps, views_of
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.cam_network import read_network, roots
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, read_json, read_table
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.params import read_params

DATA = Path("data")
PHOTOGRAPHS = 16
ROUNDS = 3
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])

Function = Callable[[torch.Tensor], Any]


def measured(
    network: Any,
    bare: Function,
    function: Function,
    batches: CropBatches,
    execution: ExecutionParams,
    group: int = 1,
) -> tuple[float, float]:
    """Crops a second: through `forward` with all that the stage does, and the network alone."""
    device = prepare_device(execution)
    network.to(device)
    ready = [batches[number].to(device) for number in range(len(batches))]

    def alone() -> None:
        with torch.inference_mode(), autocast(device):
            for batch in ready:
                bare(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def whole() -> None:
        for _ in forward(network, function, batches, execution, "", group=group, shown=False):
            pass

    alone()
    whole()
    pairs = [(seconds(whole), seconds(alone)) for _ in range(ROUNDS)]
    count = int(batches.counts.sum())
    return tuple(count / min(each) for each in zip(*pairs, strict=True))


def measure() -> list[dict[str, object]]:
    """A row a stage."""
    needed = ("models/filternet", "models/classnet", "models/objectnet")
    if not all((DATA / f"{name}.safetensors").exists() for name in needed):
        return [{"what": "maps", "value": "not measured: wants `make repro`", "ratio": ""}]
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(DATA / "manifest.parquet", "manifest")
    read = Photographs(manifest, execution.decoded_gigabytes)
    chosen = manifest[manifest["split"] == "train"].sample(PHOTOGRAPHS, random_state=0)
    paths, ids = chosen["path"].tolist(), chosen["image_id"].tolist()
    filternet, filter_settings = read_network(DATA / "models/filternet.safetensors")
    classnet, class_settings = read_network(DATA / "models/classnet.safetensors")
    objectnet, object_settings = read_network(DATA / "models/objectnet.safetensors")
    backbone = create_backbone(read_params("backbone", BackboneParams)).eval()
    backbone.to(memory_format=torch.channels_last)

    def own(file: str, name: str) -> list[np.ndarray]:
        table = read_table(DATA / f"{file}.parquet", name).set_index("image_id")
        return [table.loc[[each], BOX].to_numpy() for each in ids]

    def batches(
        boxes: list[np.ndarray], size: int, mirrored: list[bool] | None = None, unit: bool = False
    ) -> CropBatches:
        group = whole_groups(len(mirrored or "1"), execution)
        return CropBatches(paths, boxes, size, group, mirrored, unit=unit, read=read)

    saliency = read_params("saliency", SaliencyParams)
    common = read_params("colocalization", ColocalizationParams)
    probes = read_params("probes", ProbeParams)
    component = read_json(DATA / "common_component.json")
    direction = Direction(
        np.array(component["mean"]), np.array(component["component"]), component["intercept"]
    )
    response = read_json(DATA / "neuron_clusters.json")["response"]
    ten, turned = views_of(saliency.crops)
    views = 2 + probes.views
    objects = own("objects", "objects")
    generator = np.random.default_rng(0)

    def cams(crops: torch.Tensor) -> Any:
        maps, logits = classnet.maps_and_logits(classnet.maps(crops))
        return predicted_class_maps(maps, logits, classnet.head.weight.double(), len(ten))

    def common_maps(crops: torch.Tensor) -> Any:
        return (object_maps(backbone.shared_maps(crops, common.layer), direction),)

    cases: dict[str, tuple[Any, Function, Function, CropBatches, int]] = {
        "score_patches": (
            filternet,
            filternet,
            lambda crops: (probabilities(filternet, crops, False),),
            batches(own("proposals", "proposals"), filter_settings["input_size"]),
            1,
        ),
        "extract_saliency": (
            classnet,
            classnet,
            cams,
            batches([ten] * len(paths), saliency.input_size, turned, unit=True),
            len(ten),
        ),
        "colocalize": (
            backbone,
            lambda crops: backbone.shared_maps(crops, common.layer),
            common_maps,
            batches([np.repeat(WHOLE, 2, 0)] * len(paths), common.input_size, [False, True], True),
            2,
        ),
        "align_parts": (
            classnet,
            lambda crops: classnet.neuron_responses(crops, response),
            lambda crops: (classnet.neuron_responses(crops, response),),
            batches(own("aligned_parts", "aligned_parts"), class_settings["input_size"]),
            1,
        ),
        "fit_probes": (
            backbone,
            backbone,
            lambda crops: (roots(backbone.feature_maps(crops, None).mean((2, 3))),),
            batches(
                [random_views(box[0], probes.views, generator) for box in objects],
                probes.input_size,
                [view % 2 == 1 for view in range(views)],
            ),
            1,
        ),
        "score_images": (
            objectnet,
            objectnet,
            lambda crops: (probabilities(objectnet, crops, False),),
            batches(objects, object_settings["input_size"]),
            1,
        ),
    }
    rows: list[dict[str, object]] = []
    for name, (network, bare, function, of, group) in cases.items():
        rate, alone = measured(network, bare, function, of, execution, group)
        rows.append(
            {
                "what": f"{name}, {of.size} pixels: with reading, cutting, reductions; the network "
                "alone on ready batches",
                "value": f"{rate:.0f}; {alone:.0f} crops a second",
                "ratio": round(rate / alone, 3),
                "goal": 0.9,
            }
        )
    return rows


if __name__ == "__main__":
    for row in measure():
        print(row)
