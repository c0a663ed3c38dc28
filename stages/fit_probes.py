"""Fit probes: a linear discriminant of the pretrained backbone's features for each kind of crop.

One for whole photographs, one for objects, one for each cluster of parts.

Run by itself: ``python stages/fit_probes.py``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from opam.engine.crops import CropBatches, Read
from opam.engine.forward import forward, whole_groups
from opam.method.probes import ProbeParams, fit_probe, random_views
from opam.networks.backbones.backbone import Backbone, BackboneParams, create_backbone
from opam.networks.backbones.weights import state_digest
from opam.networks.probe_network import ProbeNetwork, pooled, write_probes
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, read_json, read_table
from opam.pipeline.device import ExecutionParams, prepare_device
from opam.pipeline.params import read_params
from opam.pipeline.resume import Fingerprint, fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
OBJECTS = Path("data/objects.parquet")
ALIGNED_PARTS = Path("data/aligned_parts.parquet")
NEURON_CLUSTERS = Path("data/neuron_clusters.json")
PROBES = Path("data/models/probes.safetensors")
PART_PROBES = Path("data/models/part_probes.safetensors")


def features_of(
    backbone: Backbone,
    rows: pd.DataFrame,
    input_size: int,
    views: int,
    seed: int,
    execution: ExecutionParams,
    name: str,
    inputs: Fingerprint,
    read: Read,
) -> np.ndarray:
    """Features of all views of each row's box, float32 N x (2 + views) x D.

    ``inputs`` is the fingerprint of all that they depend on; ``read`` gives the photographs.
    """
    boxes = [
        random_views(box, views, np.random.default_rng([seed, row]))
        for row, box in enumerate(rows[BOX].to_numpy())
    ]
    each = 2 + views
    mirrored = [view % 2 == 1 for view in range(each)]
    size = whole_groups(each, execution)
    batches = CropBatches(rows["path"].tolist(), boxes, input_size, size, mirrored, read=read)
    image_ids = rows["image_id"].to_numpy()

    def pooled_features(crops: torch.Tensor) -> tuple[torch.Tensor]:
        return (pooled(backbone, crops),)

    def rows_from(first: int) -> Iterator[pd.DataFrame]:
        done = first * size // each
        description = f"features of {name}"
        for (found,) in forward(backbone, pooled_features, batches, execution, description, first):
            own = list(found.reshape(len(found) // each, -1))
            yield pd.DataFrame({"image_id": image_ids[done : done + len(own)], "features": own})
            done += len(own)

    shards = in_shards(work_on(name), inputs, "view_features", len(batches), rows_from, execution)
    features = pd.concat(shards)["features"].to_list()
    return np.stack(features).reshape(len(rows), each, -1)


def work_on(name: str) -> str:
    """What `opam.pipeline.resume` calls the features of a kind of crop."""
    return f"probe_features_{name.replace(' ', '_')}"


def fitted(
    backbone: Backbone,
    kinds: dict[str, pd.DataFrame],
    input_size: int,
    classes: int,
    views: int,
    seed: int,
    execution: ExecutionParams,
    inputs: Fingerprint,
    read: Read,
) -> ProbeNetwork:
    """The backbone with a probe for each kind of crop, by its labelled boxes.

    ``inputs`` and ``read`` as in `features_of`.
    """
    probes = []
    for name, rows in kinds.items():
        features = features_of(
            backbone, rows, input_size, views, seed, execution, name, inputs, read
        )
        probe = fit_probe(
            features, rows["label"].to_numpy(), classes, seed, rows["group"].to_numpy()
        )
        print(
            f"probe of {name}: shrinkage {probe.shrinkage}, right in {probe.accuracy:.1%} of "
            "the training photographs left out",
            file=sys.stderr,
            flush=True,
        )
        probes.append(probe)
    network = ProbeNetwork(backbone, probes[0].weights.shape[1], classes, len(probes))
    weights = np.concatenate([probe.weights for probe in probes])
    bias = np.concatenate([probe.bias for probe in probes])
    network.head.load_state_dict(
        {"weight": torch.from_numpy(weights).float(), "bias": torch.from_numpy(bias).float()}
    )
    return network


def main() -> None:
    """Write data/models/probes.safetensors and part_probes.safetensors."""
    seed = read_params("seed", int)
    params = read_params("probes", ProbeParams)
    backbone_params = read_params("backbone", BackboneParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    clusters = read_json(NEURON_CLUSTERS)["clusters"]
    classes = manifest["label"].nunique()

    training = manifest.loc[manifest["split"] == "train", ["image_id", "path", "label", "group"]]
    sizes = manifest[["image_id", "width", "height"]]
    whole = training.merge(sizes).rename(columns={"width": "x1", "height": "y1"})
    objects = training.merge(read_table(OBJECTS, "objects"))
    parts = training.merge(read_table(ALIGNED_PARTS, "aligned_parts"))
    of_parts = {}
    for cluster in range(clusters):
        own = parts[parts["cluster"] == cluster]
        # A cluster that no part went to is asked of none; its probe is that of all parts.
        of_parts[f"parts of cluster {cluster}"] = own if len(own) else parts

    prepare_device(execution)  # for the linear algebra; features may come from a cluster
    backbone = create_backbone(backbone_params).eval().to(memory_format=torch.channels_last)
    inputs = fingerprint(
        *(RAW, MANIFEST, OBJECTS, ALIGNED_PARTS, params, backbone_params),
        seed=seed,
        weights=state_digest(backbone.body),
        execution=execution.same_bits(),
    )
    read = Photographs(manifest, execution.decoded_gigabytes)
    of_objects = {"photographs": whole.assign(x0=0, y0=0), "objects": objects}
    for path, size, kinds in (
        (PROBES, params.input_size, of_objects),
        (PART_PROBES, params.part_size, of_parts),
    ):
        network = fitted(
            backbone, kinds, size, classes, params.views, seed, execution, inputs, read
        )
        settings = {"backbone": backbone_params.name, "input_size": size, "resize": size}
        write_probes(path, network, settings)
    for name in (*of_objects, *of_parts):
        finish(work_on(name))


if __name__ == "__main__":
    run(main)
