"""Compare: OPAM and every other system on the test split, a row each.

Run by itself: ``python stages/compare.py``.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from opam.app.classifier import Classifier
from opam.evaluation.cost import gflops
from opam.evaluation.lineage import record_look
from opam.evaluation.metrics import EvaluationParams, ablation_row, mcnemar_p, pointing_accuracy
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, GT_BOX, read_json, read_table, write_csv, write_json
from opam.pipeline.curves import CURVES, TIME
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import NETWORKS, read_params
from opam.pipeline.stage import run
from opam.pipeline.trackers import tracked

MANIFEST = Path("data/manifest.parquet")
PREDICTIONS = Path("data/predictions.parquet")
OBJECTS = Path("data/objects.parquet")
BUNDLE = Path("data/bundle")
BASELINES = Path("data/baselines")
CSV = Path("data/comparison.csv")
JSON = Path("data/comparison.json")

TIMED = 64
"""Photographs that OPAM's speed is measured on, and how many at once."""
BATCH = 8


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


def opam_cost(manifest: pd.DataFrame, execution: ExecutionParams) -> dict[str, float]:
    """What the bundle costs a photograph, and the seconds that its networks were trained."""
    classifier = Classifier(BUNDLE, execution)
    networks = classifier.networks.values()
    paths = manifest.loc[manifest["split"] == "test", "path"].tolist()[:TIMED]
    photographs = Photographs(manifest, execution.decoded_gigabytes)
    work = gflops(lambda: classifier(photographs(paths[0])))
    started = time.monotonic()
    for first in range(0, len(paths), BATCH):
        classifier.classify([photographs(path) for path in paths[first : first + BATCH]])
    return {
        "parameters": sum(p.numel() for each in networks for p in each.parameters()),
        "gflops": work,
        "training_seconds": sum(
            read_json(CURVES / name / TIME)["training_seconds"] for name in NETWORKS
        ),
        "images_a_second": len(paths) / (time.monotonic() - started),
    }


def main() -> None:
    """Write data/comparison.csv and data/comparison.json."""
    seed = read_params("seed", int)
    params = read_params("evaluation", EvaluationParams)
    names = read_params("baselines", dict[str, Any])
    execution = read_params("execution", ExecutionParams)
    manifest = read_table(MANIFEST, "manifest").set_index("image_id")
    opam = read_table(PREDICTIONS, "predictions")
    test = opam[opam["split"] == "test"]
    opam_correct = (test["fused"] == test["label"]).to_numpy()
    objects = read_table(OBJECTS, "objects")

    figures = row("opam", opam, objects, opam_correct, manifest, params, seed)
    rows = [{**figures, **opam_cost(manifest, execution)}]
    for name in names:
        scores = read_table(BASELINES / name / "scores.parquet", "scores")
        regions = read_table(BASELINES / name / "regions.parquet", "regions")
        of_test = scores[scores["split"] == "test"]
        answers = np.stack(of_test["probabilities"].to_list()).argmax(1)
        record_look(name, of_test, float((answers == of_test["label"]).mean()))
        best = regions[regions["rank"] == 0]
        figures = row(name, scores, best, opam_correct, manifest, params, seed)
        cost = read_json(BASELINES / name / "cost.json")
        rows.append({**figures, **cost, **read_json(BASELINES / name / "time.json")})
    write_csv(CSV, pd.DataFrame(rows))
    write_json(JSON, rows)
    with tracked("compare", execution.trackers) as log:
        log({figures["system"]: figures for figures in rows})


if __name__ == "__main__":
    run(main)
