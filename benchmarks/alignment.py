"""Do a photograph's two parts differ in meaning? Layers, similarities and assignments compared.

Run: ``python benchmarks/alignment.py SPLIT CONVOLUTION...`` after a run with two parts a photograph
on photographs with named locations, such as ``python benchmarks/alignment.py val conv_head``.

Of the named locations that a part holds, some share are of the head. A clustering tells the parts
of a photograph apart where the part of the head's cluster has the greater share of them; it cannot
where both parts have the same. Locations are looked at here and nowhere in training.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from opam.engine.crops.batches import CropBatches
from opam.engine.forward import forward
from opam.evaluation.metrics import visible_locations
from opam.method.alignment import assign_parts, cluster_neurons, contrast, group_activations
from opam.networks.cam_network import read_network
from opam.pipeline.artifacts import BOX, read_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params

DATA = Path("data")
HEAD = ["beak", "crown", "forehead", "left eye", "nape", "right eye", "throat"]


def head_shares(parts: pd.DataFrame, keypoints: pd.DataFrame) -> np.ndarray:
    """Float N x 2: share of a part's named locations that are of the head; NaN without any."""
    both = visible_locations(parts[["image_id", *BOX]].reset_index(names="row"), keypoints)
    held = both[both["holds"]]
    shares = held["location"].isin(HEAD).groupby(held["row"]).mean()
    return shares.reindex(range(len(parts))).to_numpy(dtype=np.float64).reshape(-1, 2)


def told_apart(shares: np.ndarray, clusters: np.ndarray) -> float:
    """Share of photographs in which the part of the head's cluster has more of the head.

    Args:
        shares: as `head_shares` gives.
        clusters: int N x 2, cluster of each part; the same twice where none was told.
    """
    lead = np.where(clusters[:, 0] < clusters[:, 1], 1, -1) * (shares[:, 0] - shares[:, 1])
    lead[clusters[:, 0] == clusters[:, 1]] = np.nan
    return float(max((lead > 0).mean(), (lead < 0).mean()))


def each_takes_its_best(responses: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """The paper's rule: each cluster takes a part; int 2, both 0 where it is the same."""
    taken = group_activations(responses, clusters).argmax(0)
    return taken.argsort() if taken[0] != taken[1] else np.zeros(2, dtype=np.int64)


def main() -> None:
    """Print a row per convolution, similarity and assignment."""
    split, *named = sys.argv[1:] or ["val"]
    convolutions: list[str | None] = [*named] or [None]
    seed = read_params("seed", int)
    manifest = read_table(DATA / "manifest.parquet", "manifest").set_index("image_id")
    parts = read_table(DATA / "parts.parquet", "parts")
    network, settings = read_network(DATA / "models/classnet.safetensors")
    boxes = {image_id: table.to_numpy() for image_id, table in parts.groupby("image_id")[BOX]}
    images = manifest.loc[list(boxes)]
    batches = CropBatches(images["path"].tolist(), list(boxes.values()), settings["input_size"], 64)

    neurons = {name: network.neuron_weights(name) for name in convolutions}

    def every(crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(network.neuron_responses(crops, module) for _, module in neurons.values())

    found = list(forward(network, every, batches, ExecutionParams.model_validate({}), "responses"))
    borders = np.cumsum(batches.counts)[:-1]
    responses = {
        name: np.split(np.concatenate(each), borders)
        for name, each in zip(neurons, zip(*found, strict=True), strict=True)
    }

    shares = head_shares(parts, read_table(DATA / "keypoints.parquet", "keypoints"))
    looked_at = (images["split"] == split).to_numpy()
    differ = np.abs(shares[:, 0] - shares[:, 1])[looked_at] > 0
    print(f"{looked_at.sum()} photographs of {split}; parts differ in {differ.mean():.1%}")
    for name, (weights, _) in neurons.items():
        of_training = np.stack(responses[name])[(images["split"] == "train").to_numpy()]
        for similarity, rows in (("weights", weights.numpy()), ("contrast", contrast(of_training))):
            clusters = cluster_neurons(rows, 2, seed)
            for rule in (each_takes_its_best, assign_parts):
                assigned = np.stack([rule(each, clusters) for each in responses[name]])
                share = told_apart(shares[looked_at], assigned[looked_at])
                print(f"{name or 'penultimate':20} {similarity:9} {rule.__name__:20} {share:.1%}")


if __name__ == "__main__":
    main()
