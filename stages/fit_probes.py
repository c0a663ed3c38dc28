"""Fit probes: a linear discriminant of the pretrained backbone's features for each kind of crop.

One for whole photographs, one for objects, one for each cluster of parts: they stand beside
networks that are trained. And how near objects of known classes lie to what is known of them, which
the bundle holds new photographs against, and what it shows of those that it knows. Run by itself:
``python stages/fit_probes.py``.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from opam.engine.discriminant.features import features_of, work_on
from opam.engine.discriminant.fitting import (
    NAMED,
    ProbeParams,
    by_cluster,
    fit_network,
    held_out,
    whole_photographs,
)
from opam.engine.familiarity import fit_familiarity, known_photographs
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.backbones.weights import state_digest, write_weights
from opam.networks.cam_network import CamNetwork, write_network
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import (
    SCHEMAS,
    read_json,
    read_table,
    write_table,
    write_table_in_pieces,
)
from opam.pipeline.device import ExecutionParams, prepare_device
from opam.pipeline.params import read_params
from opam.pipeline.resume import finish
from opam.pipeline.stage import run

MANIFEST = Path("data/manifest.parquet")
OBJECT_CROPS = Path("data/object_crops.parquet")
ALIGNED_PARTS = Path("data/aligned_parts.parquet")
NEURON_CLUSTERS = Path("data/neuron_clusters.json")
MODELS = Path("data/models")
OUT_OF_FOLD = Path("data/out_of_fold")
KNOWN = Path("data/known.parquet")


def main() -> None:
    """Write probes, part_probes, familiarity to data/models/, data/out_of_fold/ and KNOWN."""
    seed = read_params("seed", int)
    params = read_params("probes", ProbeParams)
    backbone_params = read_params("backbone", BackboneParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    training = manifest[manifest["split"] == "train"]
    classes = manifest["label"].nunique()

    named = training[NAMED]
    whole = whole_photographs(training)
    objects = named.merge(read_table(OBJECT_CROPS, "object_crops"))
    parts = named.merge(read_table(ALIGNED_PARTS, "aligned_parts"))
    of_objects = {"photographs": whole, "objects": objects}
    of_parts = by_cluster(parts, read_json(NEURON_CLUSTERS)["clusters"])

    device = prepare_device(execution)
    backbone = create_backbone(backbone_params).eval()
    weights = state_digest(backbone.body)
    read = Photographs(manifest, execution.decoded_gigabytes)
    views = params.views if params.enabled else 0

    def features(size: int, rows: pd.DataFrame, kind: str) -> Iterator[np.ndarray]:
        how = size, params.pooled, views, seed, execution
        return features_of(backbone, weights, rows, *how, f"probe {kind}", read)

    for name, size, kinds in (
        ("probes", params.input_size, of_objects),
        ("part_probes", params.part_size, of_parts),
    ):
        network = CamNetwork(backbone, classes, heads=0, rooted=1)
        rows = SCHEMAS["out_of_fold"].empty_table().to_pandas()
        if params.enabled:
            how = backbone, kinds, partial(features, size), classes, seed, device
            network, discriminants = fit_network(*how, params.pooled)
            rows = held_out(kinds, discriminants)
        settings = {"backbone": backbone_params.name, "input_size": size, "resize": size}
        write_network(MODELS / f"{name}.safetensors", network, settings)
        write_table(OUT_OF_FOLD / f"{name}.parquet", "out_of_fold", rows)
    objects = objects.drop_duplicates("image_id", ignore_index=True)
    own = partial(features, params.input_size, objects, "objects")
    labels, groups = objects["label"].to_numpy(), objects["group"].to_numpy()
    known = fit_familiarity(own, labels, classes, seed, groups, device)
    settings = {"input_size": params.input_size, "pooled": params.pooled}
    write_weights(MODELS / "familiarity.safetensors", known, settings)
    write_table_in_pieces(KNOWN, "known", known_photographs(known, own, objects, read))
    for kind in (*of_objects, *of_parts):
        finish(work_on(f"probe {kind}"))


if __name__ == "__main__":
    run(main)
