"""Align parts: cluster the neurons of ClassNet, and give each part the cluster it excites.

Run by itself: ``python stages/align_parts.py``.
"""

from pathlib import Path

import numpy as np
import torch

from opam.engine.crops.batches import CropBatches
from opam.engine.forward import forward_by_maps, kept_where_untrained
from opam.method.alignment import (
    AlignmentParams,
    assign_parts,
    cluster_neurons,
    contrast,
    group_activations,
)
from opam.networks.cam_network import read_network
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, read_table, write_json, write_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.stage import run

MANIFEST = Path("data/manifest.parquet")
PARTS = Path("data/parts.parquet")
CLASSNET = Path("data/models/classnet.safetensors")
ALIGNED_PARTS = Path("data/aligned_parts.parquet")
NEURON_CLUSTERS = Path("data/neuron_clusters.json")


def main() -> None:
    """Write data/aligned_parts.parquet and data/neuron_clusters.json."""
    seed = read_params("seed", int)
    params = read_params("alignment", AlignmentParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest").set_index("image_id")
    parts = read_table(PARTS, "parts")
    network, settings = read_network(CLASSNET)
    weights, module = network.neuron_weights(params.convolution)

    boxes = {image_id: table.to_numpy() for image_id, table in parts.groupby("image_id")[BOX]}
    images = manifest.loc[list(boxes)]
    batches = CropBatches(
        images["path"].tolist(),
        list(boxes.values()),
        settings["input_size"],
        execution.batch_size,
        read=Photographs(manifest, execution.decoded_gigabytes),
    )

    kept = kept_where_untrained(network, "responses", execution, module)

    def responses_of(crops: torch.Tensor) -> torch.Tensor:
        return network.neuron_responses(crops, module)[..., None, None]

    def flat(responses: torch.Tensor) -> tuple[torch.Tensor]:
        return (responses.flatten(1),)

    how = batches, kept, execution, "parts"
    found = np.concatenate([each for (each,) in forward_by_maps(network, responses_of, flat, *how)])
    responses = np.split(found, np.cumsum(batches.counts)[:-1])

    if params.similarity == "contrast" and params.clusters > 1:
        of_training = np.flatnonzero(images["split"] == "train")
        vectors = contrast(np.stack([responses[i] for i in of_training]))
    else:
        vectors = weights.numpy()
    clusters = cluster_neurons(vectors, params.clusters, seed)
    cluster = [assign_parts(activations, clusters) for activations in responses]
    excited = [
        group_activations(activations, clusters)[np.arange(len(assigned)), assigned]
        for activations, assigned in zip(responses, cluster, strict=True)
    ]
    parts = parts.assign(cluster=np.concatenate(cluster), activation=np.concatenate(excited))
    write_table(ALIGNED_PARTS, "aligned_parts", parts)
    write_json(
        NEURON_CLUSTERS,
        {
            "response": module,
            "clusters": params.clusters,
            "cluster_of_neuron": [int(cluster) for cluster in clusters],
        },
    )


if __name__ == "__main__":
    run(main)
