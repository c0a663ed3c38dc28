"""Doubt labels: photographs that look like another class to networks that were not shown them.

Of train where scores are out of fold (discriminants and probes are), and of val; of test none, for
whoever mends what a classifier gets wrong there measures nothing any more. Run by itself:
``python stages/doubt_labels.py``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from opam.evaluation.doubts import doubtful_labels
from opam.evaluation.scores import read_scores
from opam.method.fusion import FUSED, FusionParams, fuse, fuse_named
from opam.pipeline.artifacts import read_json, read_table, write_csv
from opam.pipeline.params import read_params
from opam.pipeline.stage import run

DATA = Path("data")


def held_out_answers(params: FusionParams) -> tuple[pd.DataFrame, np.ndarray]:
    """Photographs, and probabilities that were given without having seen them, float N x C.

    Fused where networks are discriminants; the probes', alike, where networks were trained on them.
    """
    images, scores = read_scores(DATA / "scores", params.scores)
    if not (images["split"] == "train").any():
        of_probes, by_probes = read_scores(DATA / "scores", "probes")
        if by_probes and (of_probes["split"] == "train").any():
            stacked = np.stack([*by_probes.values()])
            return of_probes, fuse(stacked, [1 / len(stacked)] * len(stacked), "product")
    fusion = read_json(DATA / "fusion.json")
    return images, fuse_named(scores, fusion["weights"][FUSED], fusion["rule"])


def main() -> None:
    """Write data/doubtful_labels.csv."""
    params = read_params("fusion", FusionParams)
    classes = np.array(read_json(DATA / "classes.json"))
    images, probabilities = held_out_answers(params)
    ours = (images["split"] != "test").to_numpy()
    images, probabilities = images[ours].reset_index(drop=True), probabilities[ours]
    found = doubtful_labels(probabilities, images["label"].to_numpy())
    names = read_table(DATA / "manifest.parquet", "manifest").set_index("image_id")["path"]
    own = images.loc[found["row"]].reset_index(drop=True)
    table = pd.DataFrame(
        {
            "image_id": own["image_id"],
            "path": names[own["image_id"]].to_numpy(),
            "split": own["split"],
            "label": classes[own["label"]],
            "suggested": classes[found["suggested"]],
            **found.drop(columns=["row", "suggested"]).round(4),
        }
    )
    write_csv(DATA / "doubtful_labels.csv", table)
    sure = int(table["above_threshold"].sum())
    print(f"labels: {len(images)} looked at, {len(table)} doubted, {sure} of them for good reason")


if __name__ == "__main__":
    run(main)
