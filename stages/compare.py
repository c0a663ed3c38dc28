"""Compare: OPAM and every other system on the test split, a row each.

Run by itself: ``python stages/compare.py``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from opam.artifacts import BOX, GT_BOX, read_json, read_table, write_csv, write_json
from opam.config import read_params
from opam.metrics import EvaluationParams, ablation_row, mcnemar_p, pointing_accuracy
from opam.stage import run

MANIFEST = Path("data/manifest.parquet")
PREDICTIONS = Path("data/predictions.parquet")
OBJECTS = Path("data/objects.parquet")
BASELINES = Path("data/baselines")
CSV = Path("data/comparison.csv")
JSON = Path("data/comparison.json")


def row(
    name: str,
    scores: pd.DataFrame,
    best_regions: pd.DataFrame,
    opam_correct: np.ndarray,
    manifest: pd.DataFrame,
    params: EvaluationParams,
    seed: int,
) -> dict[str, Any]:
    """Accuracy with its interval, macro F1, McNemar's p against OPAM, pointing accuracy."""
    test = scores[scores["split"] == "test"]
    probabilities = np.stack(test["probabilities"].to_list())
    labels = test["label"].to_numpy()
    figures = ablation_row(probabilities, labels, params.bootstrap_samples, seed)
    correct = probabilities.argmax(1) == labels
    found = {
        "system": name,
        "accuracy": figures["accuracy"],
        "accuracy_low": figures["accuracy_low"],
        "accuracy_high": figures["accuracy_high"],
        "macro_f1": figures["macro_f1"],
        "mcnemar_p": mcnemar_p(correct, opam_correct),
    }
    boxed = manifest.loc[test["image_id"]].dropna(subset=GT_BOX)
    if len(boxed):
        boxes = best_regions.set_index("image_id").loc[boxed.index, BOX].to_numpy(np.float64)
        found["pointing"] = pointing_accuracy(boxes, boxed[GT_BOX].to_numpy(np.float64))
    return found


def main() -> None:
    """Write data/comparison.csv and data/comparison.json."""
    seed = read_params("seed", int)
    params = read_params("evaluation", EvaluationParams)
    names = read_params("baselines", dict[str, Any])
    manifest = read_table(MANIFEST, "manifest").set_index("image_id")
    opam = read_table(PREDICTIONS, "predictions")
    test = opam[opam["split"] == "test"]
    opam_correct = (test["fused"] == test["label"]).to_numpy()
    objects = read_table(OBJECTS, "objects")

    rows = [row("opam", opam, objects, opam_correct, manifest, params, seed)]
    for name in names:
        scores = read_table(BASELINES / name / "scores.parquet", "scores")
        regions = read_table(BASELINES / name / "regions.parquet", "regions")
        best = regions[regions["rank"] == 0]
        figures = row(name, scores, best, opam_correct, manifest, params, seed)
        cost = read_json(BASELINES / name / "cost.json")
        rows.append({**figures, **cost, **read_json(BASELINES / name / "time.json")})
    write_csv(CSV, pd.DataFrame(rows))
    write_json(JSON, rows)


if __name__ == "__main__":
    run(main)
