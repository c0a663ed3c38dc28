"""Train ClassNet on whole training photographs and the kept patches of each.

Run by itself: ``python stages/train_classnet.py``.
"""

from pathlib import Path

import pandas as pd
import torch

from opam.artifacts import read_photographs, read_table
from opam.config import read_params
from opam.device import ExecutionParams
from opam.filtering import draw_patches
from opam.models.backbones import BackboneParams, create_backbone
from opam.models.cam_network import CamNetwork, write_network
from opam.resume import finish
from opam.stage import run
from opam.training import (
    PatchTrainingParams,
    network_settings,
    samples,
    train,
    whole_images,
)

MANIFEST = Path("data/manifest.parquet")
KEPT_PATCHES = Path("data/kept_patches.parquet")
CLASSNET = Path("data/models/classnet.safetensors")


def main() -> None:
    """Write data/models/classnet.safetensors and data/curves/classnet/."""
    seed = read_params("seed", int)
    backbone = read_params("backbone", BackboneParams)
    params = read_params("classnet", PatchTrainingParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")

    torch.manual_seed(seed)
    network = CamNetwork(create_backbone(backbone), classes=manifest["label"].nunique())
    whole = whole_images(manifest[manifest["split"] == "train"])
    val = whole_images(manifest[manifest["split"] == "val"])

    def epoch_samples(epoch: int) -> pd.DataFrame:
        kept = read_photographs(KEPT_PATCHES, "kept_patches")
        patches = draw_patches(kept, params.patches_per_image, (seed, epoch))
        return pd.concat([whole, samples(patches, manifest)], ignore_index=True)

    train("classnet", network, epoch_samples, val, params, execution, seed)
    write_network(CLASSNET, network, network_settings(backbone.name, params))
    finish("classnet")


if __name__ == "__main__":
    run(main)
