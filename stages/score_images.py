"""Score images: probabilities of every val and test photograph by the networks and the probes.

Run by itself: ``python stages/score_images.py``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from opam.engine.crops.batches import CropBatches
from opam.engine.discriminant.features import features_of, work_on
from opam.engine.scoring import by_cluster, score_crops
from opam.networks.backbones.weights import state_digest
from opam.networks.cam_network import CamNetwork, read_network
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, SCHEMAS, read_table, write_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.resume import Fingerprint, fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
OBJECT_CROPS = Path("data/object_crops.parquet")
ALIGNED_PARTS = Path("data/aligned_parts.parquet")
MODELS = Path("data/models")
OUT_OF_FOLD = Path("data/out_of_fold")
SCORES = Path("data/scores")


@dataclass(frozen=True)
class Scored:
    """What is scored, and how.

    Attributes:
        images: of the manifest.
        inputs: fingerprint of all that the scores depend on beside the network.
        mirrored: scores are the mean with those of mirror images.
        execution: device, threads, workers.
        read: gives the photographs.
    """

    images: pd.DataFrame
    inputs: Fingerprint
    mirrored: bool
    execution: ExecutionParams
    read: Photographs


@dataclass(frozen=True)
class Asked:
    """A network by its name, and of each photograph the crops it is asked, and by which head."""

    name: str
    boxes: list[np.ndarray]
    heads: list[np.ndarray]


def score(asked: Asked, of: Scored) -> np.ndarray:
    """Probabilities by a network, float heads x N x C: by the crops of each head, their mean."""
    network, settings = read_network(MODELS / f"{asked.name}.safetensors")
    if not network.heads:
        return np.empty((0, len(asked.boxes), network.classes))
    by = by_features if network.rooted else by_crops
    return by_cluster(by(asked, network, settings, of), asked.heads, network.heads)


def by_crops(asked: Asked, network: CamNetwork, settings: dict[str, Any], of: Scored) -> np.ndarray:
    """Probabilities of each crop by its head, float32 crops x C."""
    batches = CropBatches(
        of.images["path"].tolist(),
        asked.boxes,
        settings["input_size"],
        of.execution.batch_size,
        fraction=settings["input_size"] / settings["resize"],
        read=of.read,
    )
    image_ids = of.images["image_id"].to_numpy()

    def rows_from(first: int) -> Iterator[pd.DataFrame]:
        how = of.execution, f"scoring by {asked.name}", first, of.mirrored
        scores = score_crops(network, batches, *how)
        for batch, probabilities in enumerate(scores, start=first):
            photograph, crop = batches.rows(batch)
            head = [asked.heads[i][k] for i, k in zip(photograph, crop, strict=True)]
            own = probabilities[np.arange(len(head)), head]
            yield pd.DataFrame({"image_id": image_ids[photograph], "probabilities": list(own)})

    inputs = fingerprint(of.inputs, MODELS / f"{asked.name}.safetensors")
    how = len(batches), rows_from, of.execution
    crops = pd.concat(in_shards(f"scores_{asked.name}", inputs, "crop_scores", *how))
    return np.stack(crops["probabilities"].to_list())


def by_features(
    asked: Asked, network: CamNetwork, settings: dict[str, Any], of: Scored
) -> np.ndarray:
    """As `by_crops`, from features that are kept: of what was seen before nothing is computed."""
    rows = of.images.loc[of.images.index.repeat([*map(len, asked.boxes)])]
    rows = rows[["image_id", "path", "sha256", "width", "height"]].reset_index(drop=True)
    rows[BOX] = np.vstack(asked.boxes)
    views = 0 if of.mirrored else None
    size, weights = settings["input_size"], state_digest(network.backbone.body)
    how = size, network.pooled, views, 0, of.execution, f"scores {asked.name}", of.read
    features = features_of(network.backbone, weights, rows, *how)
    by_head = []
    with torch.inference_mode():
        for block in features:
            logits = network.head(torch.from_numpy(block))
            logits = logits.view(*block.shape[:2], network.heads, network.classes)
            by_head.append(logits.softmax(3).mean(1).numpy())
    return np.concatenate(by_head)[np.arange(len(rows)), np.concatenate(asked.heads)]


def out_of_fold(name: str, heads: int, training: pd.DataFrame) -> list[pd.DataFrame]:
    """What a discriminant's layers say of training photographs that they were not fitted on."""
    table = read_table(OUT_OF_FOLD / f"{name}.parquet", "out_of_fold")
    if table.empty:
        return [SCHEMAS["scores"].empty_table().to_pandas()] * heads
    crops = dict(iter(table.groupby("image_id")["head"]))
    own = [each.to_numpy() for each in crops.values()]
    found = by_cluster(np.stack(table["probabilities"].to_list()), own, heads)
    named = training.set_index("image_id").loc[[*crops]].reset_index()
    return [named.assign(probabilities=list(each.astype(np.float32))) for each in found]


def main() -> None:
    """Write data/scores/original.parquet, object.parquet, clusters.parquet, probes.parquet."""
    mirrored = read_params("mirrored", bool)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    images = manifest[manifest["split"] != "train"]
    objects = dict(iter(read_table(OBJECT_CROPS, "object_crops").groupby("image_id")))
    parts = dict(iter(read_table(ALIGNED_PARTS, "aligned_parts").groupby("image_id")))

    ids = images["image_id"].tolist()
    only_head = [np.zeros(1, dtype=np.int64)] * len(ids)
    whole = [np.array([[0, 0, w, h]]) for w, h in images[["width", "height"]].to_numpy()]
    object_boxes = [objects[image_id][BOX].to_numpy() for image_id in ids]
    part_boxes = [parts[image_id][BOX].to_numpy() for image_id in ids]
    clusters = [parts[image_id]["cluster"].to_numpy() for image_id in ids]
    inputs = fingerprint(
        RAW,
        MANIFEST,
        OBJECT_CROPS,
        ALIGNED_PARTS,
        mirrored=mirrored,
        execution=execution.same_bits(),
    )
    read = Photographs(manifest, execution.decoded_gigabytes)
    of = Scored(images, inputs, mirrored, execution, read)
    named = manifest[["image_id", "split", "label"]]
    unseen, training = named[named["split"] != "train"], named[named["split"] == "train"]

    def tables_of(
        name: str, boxes: list[np.ndarray], heads: list[np.ndarray]
    ) -> list[pd.DataFrame]:
        own = score(Asked(name, boxes, heads), of)
        held_out = out_of_fold(name, len(own), training)
        tables = [unseen.assign(probabilities=list(each.astype(np.float32))) for each in own]
        return [pd.concat(both) for both in zip(held_out, tables, strict=True)]

    [original] = tables_of("classnet", whole, only_head)
    write_table(SCORES / "original.parquet", "scores", original)
    [by_object] = tables_of("objectnet", object_boxes, [0 * each[:, 0] for each in object_boxes])
    write_table(SCORES / "object.parquet", "scores", by_object)
    by_parts = tables_of("partnet", part_boxes, clusters)
    tables = [own.assign(cluster=cluster) for cluster, own in enumerate(by_parts)]
    table = pd.concat(tables).sort_values(["image_id", "cluster"])
    write_table(SCORES / "clusters.parquet", "cluster_scores", table)

    both = [np.vstack(boxes) for boxes in zip(whole, object_boxes, strict=True)]
    heads = [np.arange(len(boxes)).clip(max=1) for boxes in both]
    by_probes = tables_of("probes", both, heads)
    by_probes += tables_of("part_probes", part_boxes, clusters)
    names = ["original", "object", *(f"cluster {each}" for each in range(len(by_parts)))]
    tables = [SCHEMAS["probe_scores"].empty_table().to_pandas()]
    # Without probes there is no table but this.
    for name, own in zip(names, by_probes, strict=False):
        tables.append(own.assign(name=name))
    table = pd.concat(tables).sort_values(["image_id", "name"])
    write_table(SCORES / "probes.parquet", "probe_scores", table)
    for network in ("classnet", "objectnet", "partnet", "probes", "part_probes"):
        finish(f"scores_{network}")
        finish(work_on(f"scores {network}"))


if __name__ == "__main__":
    run(main)
