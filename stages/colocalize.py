"""Co-localize: a map of what all photographs have in common, by the pretrained backbone.

Run by itself: ``python stages/colocalize.py``.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from opam.engine.crops import PhotographCrops, load_ahead
from opam.method.colocalization import ColocalizationParams, object_map, principal_component
from opam.networks.backbones.backbone import Backbone, BackboneParams, create_backbone
from opam.networks.backbones.weights import state_digest
from opam.pipeline.artifacts import read_table, write_json, write_table_in_pieces
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.params import read_params
from opam.pipeline.progress import progress
from opam.pipeline.resume import fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
OBJECT_MAPS = Path("data/object_maps.parquet")
COMPONENT = Path("data/common_component.json")
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])


def feature_maps(
    backbone: Backbone,
    paths: list[str],
    mirrored: list[bool],
    params: ColocalizationParams,
    execution: ExecutionParams,
    description: str,
) -> Iterator[np.ndarray]:
    """Yield float32 V x C x h x w a photograph: its views as they are or mirrored."""
    device = prepare_device(execution)
    backbone.to(device)
    boxes = [np.repeat(WHOLE, len(mirrored), axis=0)] * len(paths)
    dataset = PhotographCrops(paths, boxes, params.input_size, mirrored, unit=True)
    for crops in progress(load_ahead(dataset, execution.workers), len(dataset), description):
        with torch.inference_mode(), autocast(device):
            maps = backbone.feature_maps(crops.to(device), params.layer)
        yield maps.float().cpu().numpy()


def main() -> None:
    """Write data/object_maps.parquet and data/common_component.json."""
    params = read_params("colocalization", ColocalizationParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    backbone_params = read_params("backbone", BackboneParams)
    backbone = create_backbone(backbone_params).eval()
    backbone.to(memory_format=torch.channels_last)

    train = manifest.loc[manifest["split"] == "train", "path"].tolist()
    features = feature_maps(backbone, train, [False], params, execution, "principal component")
    mean, component = principal_component(maps[0] for maps in features)

    def rows_from(first: int) -> Iterator[pd.DataFrame]:
        rest = manifest[first:]
        paths = rest["path"].tolist()
        views = feature_maps(backbone, paths, [False, True], params, execution, "object maps")
        for image_id, both in zip(rest["image_id"], views, strict=True):
            found = object_map(both, mean, component)
            height, width = found.shape
            row = {"image_id": image_id, "rows": height, "columns": width, "map": found.ravel()}
            yield pd.DataFrame([row])

    weights, bits = state_digest(backbone.body), execution.same_bits()
    inputs = fingerprint(RAW, MANIFEST, backbone_params, params, weights=weights, execution=bits)
    shards = in_shards("object_maps", inputs, "object_maps", len(manifest), rows_from, execution)
    write_table_in_pieces(OBJECT_MAPS, "object_maps", shards)
    write_json(COMPONENT, {"mean": mean.tolist(), "component": component.tolist()})
    finish("object_maps")


if __name__ == "__main__":
    run(main)
