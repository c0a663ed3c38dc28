"""Score patches: FilterNet's confidence that a training photograph's patch shows its class.

Run by itself: ``python stages/score_patches.py``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from opam.engine.crops.batches import CropBatches
from opam.engine.forward import kept_where_untrained
from opam.engine.scoring import Scoring, chosen, score_crops, score_crops_shared
from opam.networks.cam_network import read_network
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, read_photographs, read_table, write_table_in_pieces
from opam.pipeline.device import ExecutionParams, prepare_device
from opam.pipeline.params import read_params
from opam.pipeline.resume import fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
PROPOSALS = Path("data/proposals.parquet")
FILTERNET = Path("data/models/filternet.safetensors")
PATCH_SCORES = Path("data/patch_scores.parquet")


def main() -> None:
    """Write data/patch_scores.parquet."""
    execution = read_params("execution", ExecutionParams)
    device = prepare_device(execution)
    scoring = chosen(read_params("scoring", cast(Any, Scoring)), device)
    manifest = read_table(MANIFEST, "manifest")
    training = manifest[manifest["split"] == "train"]
    found = read_photographs(PROPOSALS, "proposals")
    boxes_of = {image_id: rows[BOX].to_numpy() for image_id, rows in found}
    boxes = [boxes_of[image_id] for image_id in training["image_id"]]
    image_ids, labels = training["image_id"].to_numpy(), training["label"].to_numpy()
    network, settings = read_network(FILTERNET)
    paths, size = training["path"].tolist(), settings["input_size"]
    read = Photographs(manifest, execution.decoded_gigabytes)
    # A patch is shown whole: it has no margin to crop.
    batches = CropBatches(paths, boxes, size, execution.batch_size, read=read)

    kept = kept_where_untrained(network, "maps", execution)

    def exact_rows(first: int) -> Iterator[pd.DataFrame]:
        scores = score_crops(network, batches, execution, "patch scoring", first)
        for batch, probabilities in enumerate(scores, start=first):
            photograph, rank = batches.rows(batch)
            crops = [boxes[i][k] for i, k in zip(photograph, rank, strict=True)]
            own = probabilities[np.arange(len(rank)), 0, labels[photograph]]
            yield pd.DataFrame(crops, columns=BOX).assign(
                image_id=image_ids[photograph], rank=rank, confidence=own
            )

    def shared_rows(first: int) -> Iterator[pd.DataFrame]:
        scores = score_crops_shared(
            network, paths, boxes, size, execution, "patch scoring, shared", first, read, kept
        )
        for item, probabilities in enumerate(scores, start=first):
            yield pd.DataFrame(boxes[item], columns=BOX).assign(
                image_id=image_ids[item],
                rank=np.arange(len(probabilities)),
                confidence=probabilities[:, 0, labels[item]],
            )

    if scoring == "shared":
        rows_from, pieces = shared_rows, len(training)
    else:
        rows_from, pieces = exact_rows, len(batches)
    inputs = fingerprint(
        *(RAW, MANIFEST, PROPOSALS, FILTERNET), scoring=scoring, execution=execution.same_bits()
    )
    shards = in_shards("patch_scores", inputs, "patch_scores", pieces, rows_from, execution)
    write_table_in_pieces(PATCH_SCORES, "patch_scores", shards)
    finish("patch_scores")


if __name__ == "__main__":
    run(main)
