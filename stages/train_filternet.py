"""Train FilterNet: a pretrained backbone fine-tuned on whole training photographs.

Run by itself: ``python stages/train_filternet.py``.
"""

from pathlib import Path

import torch

from opam.artifacts import read_table
from opam.config import read_params
from opam.device import ExecutionParams
from opam.models.backbones import BackboneParams, create_backbone
from opam.models.cam_network import CamNetwork, write_network
from opam.resume import finish
from opam.stage import run
from opam.training import TrainingParams, network_settings, train, whole_images

MANIFEST = Path("data/manifest.parquet")
FILTERNET = Path("data/models/filternet.safetensors")


def main() -> None:
    """Write data/models/filternet.safetensors and data/curves/filternet/."""
    seed = read_params("seed", int)
    backbone = read_params("backbone", BackboneParams)
    params = read_params("filternet", TrainingParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")

    torch.manual_seed(seed)
    network = CamNetwork(create_backbone(backbone), classes=manifest["label"].nunique())
    training = whole_images(manifest[manifest["split"] == "train"])
    val = whole_images(manifest[manifest["split"] == "val"])
    train("filternet", network, lambda _epoch: training, val, params, execution, seed)
    write_network(FILTERNET, network, network_settings(backbone.name, params))
    finish("filternet")


if __name__ == "__main__":
    run(main)
