"""Extract saliency: the class activation map of the class that ClassNet predicts.

Run by itself: ``python stages/extract_saliency.py``.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from opam.engine.crops import PhotographCrops, load_ahead
from opam.method.saliency import SaliencyParams, merged_cam, ten_crops
from opam.networks.cam_network import CamNetwork, read_network
from opam.pipeline.artifacts import read_table, write_table_in_pieces
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.params import read_params
from opam.pipeline.progress import progress
from opam.pipeline.resume import fingerprint, finish, in_shards
from opam.pipeline.stage import run

RAW = Path("data/raw.zip")
MANIFEST = Path("data/manifest.parquet")
CLASSNET = Path("data/models/classnet.safetensors")
SALIENCY = Path("data/saliency.parquet")


def saliency_rows(
    network: CamNetwork, manifest: pd.DataFrame, params: SaliencyParams, execution: ExecutionParams
) -> Iterator[pd.DataFrame]:
    """One row a photograph: the predicted label and the map merged over all views."""
    device = prepare_device(execution)
    network.to(device)
    weights = network.head.weight.detach().float().cpu().numpy()
    boxes, mirrored = ten_crops()
    paths = manifest["path"].tolist()
    dataset = PhotographCrops(paths, [boxes] * len(paths), params.input_size, mirrored, unit=True)
    photographs = progress(load_ahead(dataset, execution.workers), len(dataset), "saliency")
    for image_id, crops in zip(manifest["image_id"], photographs, strict=True):
        with torch.inference_mode(), autocast(device):
            features = network.backbone(crops.to(device)).float()
            logits = network.head(features.mean((2, 3))).float()
        label, merged = merged_cam(
            features.cpu().numpy(), logits.cpu().numpy(), weights, params.map_size
        )
        row = {
            "image_id": image_id,
            "predicted_label": label,
            "rows": merged.shape[0],
            "columns": merged.shape[1],
            "cam": merged.ravel(),
        }
        yield pd.DataFrame([row])


def main() -> None:
    """Write data/saliency.parquet."""
    params = read_params("saliency", SaliencyParams)
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    network, _ = read_network(CLASSNET)

    def rows_from(first: int) -> Iterator[pd.DataFrame]:
        return saliency_rows(network, manifest[first:], params, execution)

    inputs = fingerprint(RAW, MANIFEST, CLASSNET, params, execution=execution.same_bits())
    shards = in_shards("saliency", inputs, "saliency", len(manifest), rows_from, execution)
    write_table_in_pieces(SALIENCY, "saliency", shards)
    finish("saliency")


if __name__ == "__main__":
    run(main)
