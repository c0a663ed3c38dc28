"""Train ObjectNet: ClassNet fine-tuned on whole photographs and their object crops.

Run by itself: ``python stages/train_objectnet.py``.
"""

from pathlib import Path

import pandas as pd

from opam.artifacts import read_table
from opam.config import read_params
from opam.device import ExecutionParams
from opam.models.cam_network import read_network, write_network
from opam.resume import finish
from opam.stage import run
from opam.training import TrainingParams, network_settings, samples, train, whole_images

MANIFEST = Path("data/manifest.parquet")
OBJECTS = Path("data/objects.parquet")
CLASSNET = Path("data/models/classnet.safetensors")
OBJECTNET = Path("data/models/objectnet.safetensors")


def main() -> None:
    """Write data/models/objectnet.safetensors and data/curves/objectnet/."""
    seed = read_params("seed", int)
    params = read_params("objectnet", TrainingParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    objects = read_table(OBJECTS, "objects").merge(manifest[["image_id", "split"]])

    network, settings = read_network(CLASSNET)
    crops = samples(objects[objects["split"] == "train"], manifest)
    whole = whole_images(manifest[manifest["split"] == "train"])
    training = pd.concat([whole, crops], ignore_index=True)
    val = samples(objects[objects["split"] == "val"], manifest)
    train("objectnet", network, lambda _epoch: training, val, params, execution, seed)
    write_network(OBJECTNET, network, network_settings(settings["backbone"], params))
    finish("objectnet")


if __name__ == "__main__":
    run(main)
