"""Draw some test photographs for ``dvc plots show``: object, parts and what each branch says.

Run by itself: ``python stages/draw_examples.py``.
"""

from pathlib import Path

import numpy as np

from opam.pipeline.artifacts import atomic, read_table
from opam.pipeline.params import read_params
from opam.pipeline.stage import run
from opam.report.panels import sheet
from opam.report.show import aligned_parts, colocalization, open_photograph, probabilities

DATA = Path("data")
EXAMPLES = Path("data/examples")
EACH = 12
"""Photographs drawn at random, and as many that came out worst."""


def main() -> None:
    """Write data/examples/: random_01.jpg.., and worst_01.jpg.. from the most surely wrong on."""
    rng = np.random.default_rng(read_params("seed", int))
    predictions = read_table(DATA / "predictions.parquet", "predictions")
    test = predictions[predictions["split"] == "test"]
    right = (test["fused"] == test["label"]).to_numpy()
    sureness = test["confidence"].to_numpy() * np.where(right, 1, -1)
    drawn = {
        "random": test.iloc[np.sort(rng.permutation(len(test))[:EACH])],
        "worst": test.iloc[np.argsort(sureness, kind="stable")[:EACH]],
    }
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    for kind, rows in drawn.items():
        for number, image_id in enumerate(rows["image_id"], start=1):
            photograph = open_photograph(DATA, image_id)
            panels = [step(photograph) for step in (colocalization, aligned_parts, probabilities)]
            with atomic(EXAMPLES / f"{kind}_{number:02d}.jpg") as temporary:
                sheet(f"{image_id}: {photograph.class_name}", panels).save(temporary, "JPEG")


if __name__ == "__main__":
    run(main)
