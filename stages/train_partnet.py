"""Train PartNet: ClassNet fine-tuned on photographs, objects and aligned parts.

Each cluster of parts has a linear layer of its own on the shared features; whole photographs
and objects train all of them.

Run by itself: ``python stages/train_partnet.py``.
"""

from pathlib import Path

import pandas as pd

from opam.artifacts import read_json, read_table
from opam.config import read_params
from opam.device import ExecutionParams
from opam.models.cam_network import read_network, with_heads, write_network
from opam.resume import finish
from opam.stage import run
from opam.training import TrainingParams, network_settings, samples, train, whole_images

MANIFEST = Path("data/manifest.parquet")
OBJECTS = Path("data/objects.parquet")
ALIGNED_PARTS = Path("data/aligned_parts.parquet")
NEURON_CLUSTERS = Path("data/neuron_clusters.json")
CLASSNET = Path("data/models/classnet.safetensors")
PARTNET = Path("data/models/partnet.safetensors")


def main() -> None:
    """Write data/models/partnet.safetensors and data/curves/partnet/."""
    seed = read_params("seed", int)
    params = read_params("partnet", TrainingParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    splits = manifest[["image_id", "split"]]
    objects = read_table(OBJECTS, "objects").merge(splits)
    parts = read_table(ALIGNED_PARTS, "aligned_parts").merge(splits)

    classnet, settings = read_network(CLASSNET)
    network = with_heads(classnet, read_json(NEURON_CLUSTERS)["clusters"])
    part_samples = samples(parts, manifest).assign(head=parts["cluster"])
    training = pd.concat(
        [
            whole_images(manifest[manifest["split"] == "train"]),
            samples(objects[objects["split"] == "train"], manifest),
            part_samples[parts["split"] == "train"],
        ],
        ignore_index=True,
    )
    val = part_samples[parts["split"] == "val"]
    train("partnet", network, lambda _epoch: training, val, params, execution, seed)
    write_network(PARTNET, network, network_settings(settings["backbone"], params))
    finish("partnet")


if __name__ == "__main__":
    run(main)
