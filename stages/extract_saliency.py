"""Extract saliency: the class activation map of the class that ClassNet predicts.

Run by itself: ``python stages/extract_saliency.py``.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from opam.engine.crops.batches import CropBatches
from opam.engine.forward import forward_by_maps, kept_where_untrained, whole_groups
from opam.method.saliency import SaliencyParams, merge_views, predicted_class_maps, views_of
from opam.networks.cam_network import read_network
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import map_rows, read_table, write_table_in_pieces
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.resume import fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
CLASSNET = Path("data/models/classnet.safetensors")
SALIENCY = Path("data/saliency.parquet")


def main() -> None:
    """Write data/saliency.parquet."""
    params = read_params("saliency", SaliencyParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    network, _ = read_network(CLASSNET)
    boxes, mirrored = views_of(params.crops)
    batches = CropBatches(
        manifest["path"].tolist(),
        [boxes] * len(manifest),
        params.input_size,
        whole_groups(len(boxes), execution),
        mirrored,
        unit=True,
        read=Photographs(manifest, execution.decoded_gigabytes),
    )
    image_ids = manifest["image_id"].to_numpy()

    kept = kept_where_untrained(network, "maps", execution)

    def class_maps_of(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, logits = network.maps_and_logits(maps)
        return predicted_class_maps(features, logits, network.head.weight.double(), len(boxes))

    def rows_from(first: int) -> Iterator[pd.DataFrame]:
        done = first * batches.batch_size // len(boxes)
        how = batches, kept, execution, "saliency", first, len(boxes)
        views = forward_by_maps(network, network.maps, class_maps_of, *how)
        for labels, maps in views:
            ids = image_ids[done : done + len(labels)]
            done += len(labels)
            merged = [merge_views(each, boxes, mirrored, params.map_size) for each in maps]
            yield map_rows(ids, merged, "cam").assign(predicted_label=labels)

    inputs = fingerprint(RAW, MANIFEST, CLASSNET, params, execution=execution.same_bits())
    shards = in_shards("saliency", inputs, "saliency", len(batches), rows_from, execution)
    write_table_in_pieces(SALIENCY, "saliency", shards)
    finish("saliency")


if __name__ == "__main__":
    run(main)
