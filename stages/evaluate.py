"""Evaluate on the test split: accuracy of every combination of branches, localisation, parts.

Run by itself: ``python stages/evaluate.py``.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from opam.evaluation.hierarchy import level_figures
from opam.evaluation.lineage import OPAM, record_look
from opam.evaluation.metrics import (
    EvaluationParams,
    ablation_row,
    box_iou,
    corloc,
    mcnemar_p,
    part_locations,
    wilson_interval,
)
from opam.evaluation.scores import read_scores
from opam.method.fusion import BRANCHES, FUSED, fuse_named
from opam.pipeline.artifacts import (
    BOX,
    GT_BOX,
    read_json,
    read_table,
    write_csv,
    write_json,
    write_table,
)
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.stage import run
from opam.pipeline.trackers import tracked

DATA = Path("data")


def main() -> None:
    """Write data/metrics.json, data/predictions.parquet and the data of the plots."""
    seed = read_params("seed", int)
    params = read_params("evaluation", EvaluationParams)
    execution = read_params("execution", ExecutionParams)
    classes = read_json(DATA / "classes.json")
    levels = read_json(DATA / "parents.json")
    fusion = read_json(DATA / "fusion.json")
    images, scores = read_scores(DATA / "scores")
    unseen = images["split"] != "train"
    images = images[unseen].reset_index(drop=True)
    scores = {name: own[unseen] for name, own in scores.items()}
    manifest = read_table(DATA / "manifest.parquet", "manifest").set_index("image_id")
    objects = read_table(DATA / "objects.parquet", "objects").set_index("image_id")
    parts = read_table(DATA / "aligned_parts.parquet", "aligned_parts")
    keypoints = read_table(DATA / "keypoints.parquet", "keypoints")

    # By each branch, each pair and all three, with weights of their own.
    answers = {
        combination: fuse_named(scores, weights, fusion["rule"])
        for combination, weights in fusion["weights"].items()
    }
    fused = answers[FUSED]
    predictions = images.assign(
        **{branch: answers[branch].argmax(1) for branch in BRANCHES},
        fused=fused.argmax(1),
        confidence=fused.max(1),
        probabilities=list(fused.astype(np.float32)),
    )
    write_table(DATA / "predictions.parquet", "predictions", predictions)
    of_test = predictions[predictions["split"] == "test"]
    record_look(OPAM, of_test, float((of_test["fused"] == of_test["label"]).mean()))

    test = (images["split"] == "test").to_numpy()
    labels = images["label"].to_numpy()[test]
    ablation = pd.DataFrame(
        {
            "branches": combination,
            **ablation_row(answer[test], labels, params.bootstrap_samples, seed),
            "val_accuracy": fusion["accuracy"][combination],
        }
        for combination, answer in answers.items()
    )
    write_csv(DATA / "plots/ablation.csv", ablation)
    right = predictions[[*BRANCHES, "fused"]].eq(images["label"], axis=0)
    metrics = {
        "images": int(test.sum()),
        "accuracy": right[test].mean().to_dict(),
        # To choose parameters by: of folds that no weights were chosen on.
        "val_accuracy": {
            **{branch: fusion["accuracy"][branch] for branch in BRANCHES},
            "fused": fusion["accuracy"][FUSED],
        },
        "fused": ablation.drop(columns=["branches", "accuracy", "val_accuracy"]).iloc[-1].to_dict(),
        "mcnemar_p": mcnemar_p(right["fused"][test].to_numpy(), right["original"][test].to_numpy()),
    }
    if levels:
        metrics["levels"] = {
            f"level_{level}": level_figures(
                fused[test], labels, parents, params.bootstrap_samples, seed
            )
            for level, parents in enumerate(levels, start=1)
        }
    fallbacks = objects.loc[images["image_id"][test], "fallback"]
    located = {"whole_photograph": float((fallbacks != "none").mean())}
    boxed = manifest.loc[images["image_id"][test]].dropna(subset=GT_BOX)
    if len(boxed):
        found = objects.loc[boxed.index, BOX].to_numpy(np.float64)
        iou = box_iou(found, boxed[GT_BOX].to_numpy(np.float64))
        located |= {"corloc": corloc(iou), "mean_iou": float(iou.mean())}
    metrics["object_box"] = located
    write_json(DATA / "metrics.json", metrics)

    test_ids = set(images["image_id"][test])
    locations = part_locations(
        parts[parts["image_id"].isin(test_ids)], keypoints[keypoints["image_id"].isin(test_ids)]
    )
    write_csv(DATA / "plots/part_locations.csv", locations)
    names = np.array(classes)
    counts = np.bincount(labels, minlength=len(classes))
    own = np.bincount(labels, right["fused"][test], minlength=len(classes)).astype(np.int64)
    low, high = wilson_interval(own, counts)
    columns = {"class": names, "photographs": counts, "right": own, "low": low, "high": high}
    write_csv(DATA / "plots/classes.csv", pd.DataFrame(columns))
    confusion = pd.DataFrame(
        {"actual": names[labels], "predicted": names[predictions["fused"].to_numpy()[test]]}
    )
    write_csv(DATA / "plots/confusion.csv", confusion)
    with tracked("evaluate", execution.trackers) as log:
        log(metrics)


if __name__ == "__main__":
    run(main)
