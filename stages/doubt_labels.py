"""Doubt labels: photographs that look like another class to networks that were not shown them.

Of train where scores are out of fold (discriminants and probes are), and of val; of test none, for
whoever mends what a classifier gets wrong there measures nothing any more. Run by itself:
``python stages/doubt_labels.py``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from opam.evaluation.doubts import doubtful_labels
from opam.evaluation.scores import held_out_answers
from opam.method.fusion import FusionParams
from opam.pipeline.artifacts import read_json, read_table, write_csv
from opam.pipeline.params import read_params
from opam.pipeline.stage import run

DATA = Path("data")


def main() -> None:
    """Write data/doubtful_labels.csv."""
    params = read_params("fusion", FusionParams)
    classes = np.array(read_json(DATA / "classes.json"))
    fusion = read_json(DATA / "fusion.json")
    images, probabilities = held_out_answers(DATA / "scores", params.scores, fusion)
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
