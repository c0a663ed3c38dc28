"""Train a network of the paper: FilterNet, ClassNet, ObjectNet or PartNet.

Run by itself: ``python stages/network_by_training.py NAME``; NAME is filternet, classnet, objectnet
or partnet. FilterNet and ClassNet begin with the pretrained backbone, the others with ClassNet.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from opam.engine.training.loop import network_settings, train
from opam.engine.training.params import network_params
from opam.engine.training.samples import draw_patches, samples, whole_images
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.cam_network import CamNetwork, read_network, with_heads, write_network
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import SCHEMAS, read_json, read_photographs, read_table, write_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.resume import finish
from opam.pipeline.stage import run

DATA = Path("data")
MODELS = DATA / "models"
SPLITS = ("train", "val")


def whole_and_patches(manifest: pd.DataFrame, params: Any, seed: int, epoch: int) -> pd.DataFrame:
    """ClassNet's samples: training photographs, and kept patches of each, drawn anew."""
    kept = read_photographs(DATA / "kept_patches.parquet", "kept_patches")
    patches = draw_patches(kept, params.patches_per_image, (seed, epoch))
    whole = whole_images(manifest[manifest["split"] == "train"])
    return pd.concat([whole, samples(patches, manifest)], ignore_index=True)


def boxes_of(table: pd.DataFrame, manifest: pd.DataFrame) -> list[pd.DataFrame]:
    """Samples of the boxes of ``table`` in photographs of train, and of val."""
    split = table["image_id"].map(manifest.set_index("image_id")["split"])
    return [samples(table[split == each], manifest) for each in SPLITS]


def pretrained(seed: int, classes: int) -> tuple[CamNetwork, str]:
    """A pretrained backbone with a new linear layer, and the backbone's name."""
    backbone = read_params("backbone", BackboneParams)
    torch.manual_seed(seed)
    return CamNetwork(create_backbone(backbone), classes), backbone.name


def main() -> None:
    """Write data/models/NAME.safetensors, data/out_of_fold/NAME.parquet, data/curves/NAME/."""
    name, params = network_params(sys.argv)
    seed = read_params("seed", int)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(DATA / "manifest.parquet", "manifest")
    whole, val = (whole_images(manifest[manifest["split"] == each]) for each in SPLITS)

    if name in ("filternet", "classnet"):
        network, backbone = pretrained(seed, manifest["label"].nunique())
        training = whole
    else:
        network, settings = read_network(MODELS / "classnet.safetensors")
        backbone = settings["backbone"]
        crops = read_table(DATA / "object_crops.parquet", "object_crops")
        objects, val = boxes_of(crops.drop_duplicates("image_id"), manifest)
        training = pd.concat([whole, objects], ignore_index=True)
    if name == "partnet":  # a linear layer for each cluster of parts, on shared features
        network = with_heads(network, read_json(DATA / "neuron_clusters.json")["clusters"])
        table = read_table(DATA / "aligned_parts.parquet", "aligned_parts")
        parts, val = (each.assign(head=table["cluster"]) for each in boxes_of(table, manifest))
        training = pd.concat([training, parts], ignore_index=True)

    def epoch_samples(epoch: int) -> pd.DataFrame:
        return whole_and_patches(manifest, params, seed, epoch) if name == "classnet" else training

    photographs = Photographs(manifest, execution.decoded_gigabytes)
    train(name, network, epoch_samples, val, params, execution, seed, read=photographs)
    write_network(MODELS / f"{name}.safetensors", network, network_settings(backbone, params))
    if name != "filternet":  # it has seen all photographs
        nothing = SCHEMAS["out_of_fold"].empty_table().to_pandas()
        write_table(DATA / f"out_of_fold/{name}.parquet", "out_of_fold", nothing)
    finish(name)


if __name__ == "__main__":
    run(main)
