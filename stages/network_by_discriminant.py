"""Compute a network of the paper: FilterNet, ClassNet, ObjectNet or PartNet, trained by nothing.

Its linear layers are discriminants of features: FilterNet's and ClassNet's of the pretrained
backbone's, the others' of ClassNet's. Run by itself: ``python stages/network_by_discriminant.py
NAME``; NAME is filternet, classnet, objectnet or partnet.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from opam.engine.discriminant.features import features_of, work_on
from opam.engine.discriminant.fitting import (
    NAMED,
    by_cluster,
    fit_network,
    held_out,
    whole_photographs,
)
from opam.engine.training.params import network_params
from opam.networks.backbones.backbone import Backbone, BackboneParams, create_backbone
from opam.networks.backbones.weights import state_digest
from opam.networks.cam_network import Pooled, read_network, write_network
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, read_json, read_table, write_json, write_table
from opam.pipeline.curves import CURVES, TIME
from opam.pipeline.device import ExecutionParams, prepare_device
from opam.pipeline.params import read_params
from opam.pipeline.resume import finish
from opam.pipeline.stage import run

DATA = Path("data")
CLASSNET = DATA / "models/classnet.safetensors"


def begun_with(name: str) -> tuple[Backbone, str]:
    """The backbone whose features are read, and its name."""
    if name in ("filternet", "classnet"):
        params = read_params("backbone", BackboneParams)
        return create_backbone(params).eval(), params.name
    network, settings = read_network(CLASSNET)
    return network.backbone, settings["backbone"]


def boxes_of(name: str, training: pd.DataFrame, params: Any) -> dict[str, pd.DataFrame]:
    """The boxes of each linear layer, with what the manifest says of their photographs."""
    named = training[NAMED]
    whole = whole_photographs(training)
    if name == "filternet":
        return {"photographs": whole}
    if name == "classnet":
        kept = read_table(DATA / "kept_patches.parquet", "kept_patches")
        surest = kept.sort_values("confidence", ascending=False, kind="stable")
        if params.patches_per_image:
            surest = surest.groupby("image_id").head(params.patches_per_image)
        patches = named.merge(surest[["image_id", *BOX]])
        both = whole.assign(asked=True), patches.assign(asked=False)
        return {"photographs and patches": pd.concat(both, ignore_index=True)}
    if name == "objectnet":
        objects = named.merge(read_table(DATA / "object_crops.parquet", "object_crops"))
        both = objects.assign(asked=True), whole.assign(asked=False)
        return {"objects and photographs": pd.concat(both, ignore_index=True)}
    parts = named.merge(read_table(DATA / "aligned_parts.parquet", "aligned_parts"))
    return by_cluster(parts, read_json(DATA / "neuron_clusters.json")["clusters"])


def main() -> None:
    """Write data/models/NAME.safetensors, data/out_of_fold/NAME.parquet, data/curves/NAME/."""
    started = time.monotonic()
    name, params = network_params(sys.argv)
    seed = read_params("seed", int)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(DATA / "manifest.parquet", "manifest")
    training = manifest[manifest["split"] == "train"]
    device = prepare_device(execution)
    pooled: Pooled = getattr(params, "pooled", "mean")  # class maps are read from the others
    backbone, called = begun_with(name)
    weights = state_digest(backbone.body)
    kinds = boxes_of(name, training, params)
    read = Photographs(manifest, execution.decoded_gigabytes)

    def features(rows: pd.DataFrame, kind: str) -> Iterator[np.ndarray]:
        how = params.input_size, pooled, params.views, seed, execution
        return features_of(backbone, weights, rows, *how, f"{name} {kind}", read)

    classes = manifest["label"].nunique()
    network, discriminants = fit_network(backbone, kinds, features, classes, seed, device, pooled)
    settings = {"backbone": called, "input_size": params.input_size, "resize": params.input_size}
    rows = held_out(kinds, discriminants)
    if name in ("classnet", "objectnet"):  # others are fitted on beside what it will be asked
        rows = rows[rows["asked"]]
    if name != "filternet":
        write_table(DATA / f"out_of_fold/{name}.parquet", "out_of_fold", rows)
    write_network(DATA / f"models/{name}.safetensors", network, settings)
    write_json(CURVES / name / TIME, {"training_seconds": time.monotonic() - started})
    for kind in kinds:
        finish(work_on(f"{name} {kind}"))


if __name__ == "__main__":
    run(main)
