"""A finished run that never ran: artifacts of any size, with names that try to break the page."""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from small_project import PYTHON, ROOT, small_params

from opam.evaluation.doubts import doubtful_labels
from opam.evaluation.hierarchy import level_figures
from opam.method.fusion import BRANCHES, FUSED, PROBE, fuse_named
from opam.photographs.duplicates import COLUMNS
from opam.pipeline.artifacts import BOX, GT_BOX, read_json, write_csv, write_json, write_table

PROPOSALS = 12


PARTS = {"cluster 0": 0.1, "cluster 1": 0.1, "cluster 0 probe": 0.1, "cluster 1 probe": 0.1}
FUSED_WEIGHTS = {
    "original": 0.2,
    "object": 0.3,
    "original probe": 0.1,
    "object probe": 0.2,
    **PARTS,
}
WEIGHTS = {
    "original": {"original": 0.6, "original probe": 0.4},
    "object": {"object": 0.6, "object probe": 0.4},
    "part": PARTS,
}
FUSION: dict[str, Any] = {
    "rule": "product",
    "weights": {**WEIGHTS, FUSED: FUSED_WEIGHTS},
    "accuracy": dict.fromkeys((*BRANCHES, FUSED), 0.5),
    "folds": [{"fold": fold, "weights": FUSED_WEIGHTS, "accuracy": 0.5} for fold in range(2)],
}


def unit_rows(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    values = rng.random((rows, columns)) ** 4
    return (values / values.sum(1, keepdims=True)).astype(np.float32)


def make_up_run(
    folder: Path,
    count: int,
    classes: list[str],
    ids: list[str] | None = None,
    parents: list[str] | None = None,
) -> Path:
    """Write every artifact that the report reads; photographs have no boxes and are all alike."""
    rng = np.random.default_rng(0)
    data = folder / "data"
    data.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(small_params()))
    picture = folder / "picture.png"
    Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(picture)
    test_ids = sorted(ids or [f"test/{number:05}.jpg" for number in range(count)])
    training_ids = [f"train/{label:04}.jpg" for label in range(len(classes))]
    every = [*test_ids, *training_ids]
    labels = np.array([*(n * len(classes) // count for n in range(count)), *range(len(classes))])
    manifest = pd.DataFrame(
        {
            "image_id": every,
            "path": str(picture),
            "sha256": hashlib.sha256(picture.read_bytes()).hexdigest(),
            "label": labels,
            "class_name": [classes[label] for label in labels],
            "split": ["test"] * count + ["train"] * len(classes),
            "group": every,
            "width": 40,
            "height": 30,
            **{name: pd.array([None] * len(every), dtype="Int32") for name in GT_BOX},
        }
    )
    write_table(data / "manifest.parquet", "manifest", manifest)
    write_json(data / "classes.json", classes)
    levels = [parents] if parents else []
    write_json(data / "parents.json", levels)
    counts = {"train": len(classes), "val": 0, "test": count}
    write_json(data / "photographs.json", {"sha256": "0" * 64, **counts})
    twins = manifest[["image_id", "path", "class_name", "split"]].iloc[[0, -1]]
    twins = twins.assign(group=1, kind="identical", conflict="in train and test", action="kept")
    write_csv(data / "duplicates.csv", twins[COLUMNS])
    total = len(every)
    corners = rng.integers(0, 15, (total * PROPOSALS, 2))
    boxes = np.hstack([corners, corners + rng.integers(5, 15, corners.shape)])
    proposals = pd.DataFrame(boxes, columns=BOX).assign(
        image_id=np.repeat(every, PROPOSALS), rank=np.tile(np.arange(PROPOSALS), total)
    )
    write_table(data / "proposals.parquet", "proposals", proposals)
    training = proposals[proposals["image_id"].isin(training_ids)]
    patches = training.assign(confidence=rng.random(len(training)))
    write_table(data / "patch_scores.parquet", "patch_scores", patches)
    kept = patches[patches["confidence"] >= 0.5]
    write_table(data / "kept_patches.parquet", "kept_patches", kept)
    maps = pd.DataFrame({"image_id": every, "rows": 8, "columns": 8})
    cells = [rng.random(64).astype(np.float32) for _ in every]
    write_table(data / "saliency.parquet", "saliency", maps.assign(predicted_label=0, cam=cells))
    write_table(data / "object_maps.parquet", "object_maps", maps.assign(map=cells))
    objects = pd.DataFrame([(each, 2, 2, 35, 28, 0, "none") for each in every])
    objects.columns = ["image_id", *BOX, "predicted_label", "fallback"]
    write_table(data / "objects.parquet", "objects", objects)
    parts = proposals[proposals["rank"] < 2].rename(columns={"rank": "part"})
    parts = parts.assign(score=np.float32(-np.inf), fallback="saliency", cluster=parts["part"])
    parts["activation"] = rng.random(len(parts)).astype(np.float32)
    write_table(data / "aligned_parts.parquet", "aligned_parts", parts)
    neurons = {"response": "bn2", "clusters": 2, "cluster_of_neuron": [0, 1, 0, 1]}
    write_json(data / "neuron_clusters.json", neurons)

    own = write_scores(data, manifest[["image_id", "split", "label"]], rng)
    write_doubts(data, manifest, fuse_named(own, FUSED_WEIGHTS, "product"))
    own = {name: each[:count] for name, each in own.items()}
    *by_branch, fused = (fuse_named(own, each, "product") for each in FUSION["weights"].values())
    answers = dict(zip(BRANCHES, (each.argmax(1) for each in by_branch), strict=True))
    predictions = manifest[["image_id", "split", "label"]].head(count)
    predictions = predictions.assign(
        **answers,
        fused=fused.argmax(1),
        confidence=fused.max(1),
        probabilities=list(fused.astype(np.float32)),
    )
    write_table(data / "predictions.parquet", "predictions", predictions)
    write_figures(data)
    if levels:
        metrics = read_json(data / "metrics.json")
        figures = level_figures(fused, labels[:count], levels[0], 100, 0)
        write_json(data / "metrics.json", metrics | {"levels": {"level_1": figures}})
    return folder


def write_scores(
    data: Path, scores: pd.DataFrame, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """What networks and probes say of all photographs, as if none was fitted on any."""
    classes = scores["label"].max() + 1
    own = {name: unit_rows(rng, len(scores), classes) for name in FUSED_WEIGHTS}
    for name in ("original", "object"):
        table = scores.assign(probabilities=list(own[name]))
        write_table(data / f"scores/{name}.parquet", "scores", table)
    tables = [scores.assign(cluster=k, probabilities=list(own[f"cluster {k}"])) for k in (0, 1)]
    table = pd.concat(tables).sort_values(["image_id", "cluster"])
    write_table(data / "scores/clusters.parquet", "cluster_scores", table)
    probes = [name for name in own if name.endswith(PROBE)]
    tables = [
        scores.assign(name=name.removesuffix(PROBE), probabilities=list(own[name]))
        for name in probes
    ]
    table = pd.concat(tables).sort_values(["image_id", "name"])
    write_table(data / "scores/probes.parquet", "probe_scores", table)
    return own


def write_doubts(data: Path, manifest: pd.DataFrame, probabilities: np.ndarray) -> None:
    training = (manifest["split"] == "train").to_numpy()
    rows = manifest[training].reset_index(drop=True)
    found = doubtful_labels(probabilities[training], rows["label"].to_numpy())
    classes = rows["class_name"].to_numpy()
    own = rows.loc[found["row"], ["image_id", "path", "split"]].reset_index(drop=True)
    table = own.assign(label=classes[found["row"]], suggested=classes[found["suggested"]])
    table = pd.concat([table, found.drop(columns=["row", "suggested"])], axis=1)
    write_csv(data / "doubtful_labels.csv", table)


def write_figures(data: Path) -> None:
    write_json(data / "fusion.json", FUSION)
    interval = {"accuracy_low": 0.4, "accuracy_high": 0.6}
    figures = {"top5": 0.9, "macro_f1": 0.5, "calibration_error": 0.1}
    accuracy = dict.fromkeys(("original", "object", "part", "fused"), 0.5)
    metrics = {"images": 1, "accuracy": accuracy, "fused": interval | figures, "mcnemar_p": 0.5}
    metrics["object_box"] = {"whole_photograph": 0.25}
    write_json(data / "metrics.json", metrics)
    row = {
        "branches": "original+object+part",
        "accuracy": 0.5,
        **interval,
        **figures,
        "val_accuracy": 0.5,
    }
    write_csv(data / "plots/ablation.csv", pd.DataFrame([row]))
    columns = ["cluster", "location", "photographs", "share"]
    write_csv(data / "plots/part_locations.csv", pd.DataFrame(columns=columns))


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the stage `report` by hand in ``folder``."""
    return run_stage(folder, "report")


def run_stage(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Run a stage by hand in ``folder``."""
    return subprocess.run(
        [PYTHON, str(ROOT / f"stages/{name}.py")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
