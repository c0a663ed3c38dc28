"""Score patches: FilterNet's confidence that a training photograph's patch shows its class.

Run by itself: ``python stages/score_patches.py``.
"""

from pathlib import Path

import numpy as np

from opam.artifacts import BOX, read_table, write_table
from opam.config import read_params
from opam.device import ExecutionParams
from opam.errors import run
from opam.models.cam_network import read_network
from opam.scoring import score_crops

MANIFEST = Path("data/manifest.parquet")
PROPOSALS = Path("data/proposals.parquet")
FILTERNET = Path("data/models/filternet.safetensors")
PATCH_SCORES = Path("data/patch_scores.parquet")


def main() -> None:
    """Write data/patch_scores.parquet."""
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest")
    training = manifest[manifest["split"] == "train"]
    proposals = read_table(PROPOSALS, "proposals")
    proposals = proposals[proposals["image_id"].isin(training["image_id"])]
    boxes = dict(iter(proposals.groupby("image_id", sort=False)[BOX]))
    network, settings = read_network(FILTERNET)

    # A patch is shown whole: it has no margin to crop.
    scores = score_crops(
        network,
        training["path"].tolist(),
        [boxes[image_id].to_numpy() for image_id in training["image_id"]],
        settings["input_size"],
        1.0,
        execution,
        "patch scoring",
    )
    own = [score[:, 0, label] for score, label in zip(scores, training["label"], strict=True)]
    proposals = proposals.assign(confidence=np.concatenate(own))
    write_table(PATCH_SCORES, "patch_scores", proposals)


if __name__ == "__main__":
    run(main)
