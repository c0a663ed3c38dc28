"""Co-localize: a map of what all photographs have in common, by the pretrained backbone.

Run by itself: ``python stages/colocalize.py``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed

from opam.engine.crops.batches import CropBatches
from opam.engine.forward import forward_by_maps, kept_as, whole_groups
from opam.method.colocalization import (
    CLEAR,
    MOST,
    TIMES,
    ColocalizationParams,
    agreement,
    border_contrast,
    joined,
    moments,
    no_direction,
    object_maps,
    principal_component,
    project,
    segment,
    shared_direction,
)
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.backbones.weights import state_digest
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import map_rows, read_table, write_json, write_table_in_pieces
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.progress import progress
from opam.pipeline.resume import fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
OBJECT_MAPS = Path("data/object_maps.parquet")
COMPONENT = Path("data/common_component.json")
WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])


def main() -> None:
    """Write data/object_maps.parquet and data/common_component.json."""
    params = read_params("colocalization", ColocalizationParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    backbone_params = read_params("backbone", BackboneParams)
    backbone = create_backbone(backbone_params).eval()
    backbone.to(memory_format=torch.channels_last)
    photographs = Photographs(manifest, execution.decoded_gigabytes)

    def batches_of(rows: pd.DataFrame, mirrored: list[bool]) -> CropBatches:
        boxes = [np.repeat(WHOLE, len(mirrored), axis=0)] * len(rows)
        size = whole_groups(len(mirrored), execution)
        paths = rows["path"].tolist()
        return CropBatches(
            paths, boxes, params.input_size, size, mirrored, unit=True, read=photographs
        )

    weights = state_digest(backbone.body)
    kept = kept_as("maps", execution, weights, params.layer)

    def shared_maps(crops: torch.Tensor) -> torch.Tensor:
        return backbone.shared_maps(crops, params.layer)

    training = manifest[manifest["split"] == "train"]
    training = training.iloc[:: -(-len(training) // MOST)]
    batches = batches_of(training, [False])
    how = batches, kept, execution
    places = joined(forward_by_maps(backbone, shared_maps, moments, *how, "what all places show"))
    direction = principal_component(places)

    def projected(shared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return shared, project(shared, direction)

    def agreed() -> Iterator[tuple[np.ndarray, ...]]:
        workers = Parallel(n_jobs=max(1, execution.workers), prefer="threads")
        paths = iter(training["path"])
        found = forward_by_maps(backbone, shared_maps, projected, *how, "maps to segment by")
        for maps, projections in progress(found, len(batches), "segmentation", "batches"):
            shares = workers(
                delayed(lambda path, own: segment(photographs(path), own))(path, own)
                for own, path in zip(projections, paths)  # noqa: B905  goes on with the next batch
            )
            told = [i for i, share in enumerate(shares) if share is not None]
            if told:
                yield agreement(maps[told], np.stack([shares[i] for i in told]))

    if (contrast := border_contrast(places, direction)) < CLEAR:
        print(
            f"the photographs' borders look like the rest of them ({contrast:.2f} standard "
            "deviations apart): nothing is taken for the one object of each",
            file=sys.stderr,
        )
        direction = no_direction(places)
    else:
        for _ in range(TIMES):
            direction = shared_direction(places, agreed()) or direction
    views = batches_of(manifest, [False, True])
    image_ids = manifest["image_id"].to_numpy()

    def maps_of(shared: torch.Tensor) -> tuple[torch.Tensor]:
        return (object_maps(shared, direction),)

    def rows_from(first: int) -> Iterator[pd.DataFrame]:
        done = first * views.batch_size // 2
        every = views, kept, execution, "object maps", first, 2
        for (maps,) in forward_by_maps(backbone, shared_maps, maps_of, *every):
            ids = image_ids[done : done + len(maps)]
            done += len(maps)
            yield map_rows(ids, maps, "map")

    bits = execution.same_bits()
    inputs = fingerprint(RAW, MANIFEST, backbone_params, params, weights=weights, execution=bits)
    shards = in_shards("object_maps", inputs, "object_maps", len(views), rows_from, execution)
    write_table_in_pieces(OBJECT_MAPS, "object_maps", shards)
    write_json(
        COMPONENT,
        {
            "mean": direction.mean.tolist(),
            "component": direction.component.tolist(),
            "intercept": direction.intercept,
        },
    )
    finish("object_maps")


if __name__ == "__main__":
    run(main)
