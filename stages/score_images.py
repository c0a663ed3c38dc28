"""Score images: probabilities of every val and test photograph by the networks and the probes.

Run by itself: ``python stages/score_images.py``.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from opam.engine.crops import CropBatches, Read
from opam.engine.scoring import by_cluster, score_crops
from opam.networks.cam_network import read_network
from opam.networks.probe_network import read_probes
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, read_table, write_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.resume import Fingerprint, fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
OBJECTS = Path("data/objects.parquet")
ALIGNED_PARTS = Path("data/aligned_parts.parquet")
MODELS = Path("data/models")
SCORES = Path("data/scores")


def score(
    network_path: Path,
    read: Callable[[Path], tuple[Any, dict[str, Any]]],
    inputs: Fingerprint,
    images: pd.DataFrame,
    boxes: list[np.ndarray],
    heads: list[np.ndarray],
    mirrored: bool,
    execution: ExecutionParams,
    read_photograph: Read,
) -> np.ndarray:
    """Probabilities of photographs, float heads x N x C: by the crops of each head, their mean.

    ``inputs`` is the fingerprint of all that the scores depend on beside the network.
    """
    network, settings = read(network_path)
    batches = CropBatches(
        images["path"].tolist(),
        boxes,
        settings["input_size"],
        execution.batch_size,
        fraction=settings["input_size"] / settings["resize"],
        read=read_photograph,
    )
    image_ids, description = images["image_id"].to_numpy(), f"scoring by {network_path.stem}"

    def rows_from(first: int) -> Iterator[pd.DataFrame]:
        scores = score_crops(network, batches, execution, description, first, mirrored)
        for batch, probabilities in enumerate(scores, start=first):
            photograph, crop = batches.rows(batch)
            head = [heads[i][k] for i, k in zip(photograph, crop, strict=True)]
            own = probabilities[np.arange(len(head)), head]
            yield pd.DataFrame({"image_id": image_ids[photograph], "probabilities": list(own)})

    name = f"scores_{network_path.stem}"
    inputs = fingerprint(inputs, network_path)
    shards = in_shards(name, inputs, "crop_scores", len(batches), rows_from, execution)
    crops = pd.concat(shards)
    return by_cluster(np.stack(crops["probabilities"].to_list()), heads, network.heads)


def main() -> None:
    """Write data/scores/original.parquet, object.parquet, clusters.parquet, probes.parquet."""
    mirrored = read_params("mirrored", bool)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    images = manifest[manifest["split"] != "train"]
    objects = read_table(OBJECTS, "objects").set_index("image_id")
    parts = dict(iter(read_table(ALIGNED_PARTS, "aligned_parts").groupby("image_id")))

    ids = images["image_id"].tolist()
    only_head = [np.zeros(1, dtype=np.int64)] * len(ids)
    whole = [np.array([[0, 0, w, h]]) for w, h in images[["width", "height"]].to_numpy()]
    object_boxes = list(objects.loc[ids, BOX].to_numpy()[:, None])
    part_boxes = [parts[image_id][BOX].to_numpy() for image_id in ids]
    clusters = [parts[image_id]["cluster"].to_numpy() for image_id in ids]
    inputs = fingerprint(
        RAW, MANIFEST, OBJECTS, ALIGNED_PARTS, mirrored=mirrored, execution=execution.same_bits()
    )
    how = mirrored, execution, Photographs(manifest, execution.decoded_gigabytes)
    named = images[["image_id", "split", "label"]]
    for branch, network, boxes in (
        ("original", "classnet", whole),
        ("object", "objectnet", object_boxes),
    ):
        path = MODELS / f"{network}.safetensors"
        [own] = score(path, read_network, inputs, images, boxes, only_head, *how)
        table = named.assign(probabilities=list(own.astype(np.float32)))
        write_table(SCORES / f"{branch}.parquet", "scores", table)
    path = MODELS / "partnet.safetensors"
    by_parts = score(path, read_network, inputs, images, part_boxes, clusters, *how)
    tables = [
        named.assign(cluster=cluster, probabilities=list(own.astype(np.float32)))
        for cluster, own in enumerate(by_parts)
    ]
    table = pd.concat(tables).sort_values(["image_id", "cluster"])
    write_table(SCORES / "clusters.parquet", "cluster_scores", table)

    both = [np.vstack(boxes) for boxes in zip(whole, object_boxes, strict=True)]
    heads = [np.arange(2)] * len(ids)
    path = MODELS / "probes.safetensors"
    by_probes = score(path, read_probes, inputs, images, both, heads, *how)
    path = MODELS / "part_probes.safetensors"
    by_part_probes = score(path, read_probes, inputs, images, part_boxes, clusters, *how)
    names = ["original", "object", *(f"cluster {each}" for each in range(len(by_parts)))]
    tables = [
        named.assign(name=name, probabilities=list(own.astype(np.float32)))
        for name, own in zip(names, [*by_probes, *by_part_probes], strict=True)
    ]
    table = pd.concat(tables).sort_values(["image_id", "name"])
    write_table(SCORES / "probes.parquet", "probe_scores", table)
    for network in ("classnet", "objectnet", "partnet", "probes", "part_probes"):
        finish(f"scores_{network}")


if __name__ == "__main__":
    run(main)
