"""Report: one page that shows what every stage found, photograph by photograph.

Run by itself: ``python stages/report.py``; without data/comparison.json it leaves the comparison
out.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from opam.evaluation.lineage import lineage, looks_at
from opam.evaluation.scores import held_out_answers, read_scores
from opam.method.fusion import FusionParams, branch_answers
from opam.method.objects import ObjectParams
from opam.method.parts import PartParams
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import (
    atomic,
    read_batches,
    read_json,
    read_photographs,
    read_table,
    read_table_in_pieces,
)
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.params import read_params
from opam.pipeline.revision import tracked_params
from opam.pipeline.stage import run
from opam.report.page import gallery, tables
from opam.report.page.copies import copy_groups
from opam.report.page.doubts import doubt_pictures, doubted_labels
from opam.report.page.levels import level_rows, levels
from opam.report.page.render import render

DATA = Path("data")
OUT = DATA / "report"
PAIRS, PAIR_PHOTOGRAPHS = 8, 2
"""Confused pairs that are shown, and photographs a side of each."""
EXCITING = 12
"""Parts that are shown of each cluster."""
TRAINING, PATCHES = 12, 60
"""Training photographs that are shown, and patches of each."""
BINS = 20
"""Of the histograms."""


def read_plot_data(name: str) -> list[dict[str, Any]]:
    """The rows of a table that `evaluate` wrote."""
    path = DATA / "plots" / name
    try:
        rows: list[Any] = pd.read_csv(path).to_dict("records")
        return rows
    except FileNotFoundError:
        raise OpamError(f"{path}: not found; run `dvc repro` to make it") from None


def read_duplicates() -> pd.DataFrame:
    """The photographs that are copies of each other, as `prepare` lists them."""
    path = DATA / "duplicates.csv"
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False).astype({"group": int})
    except FileNotFoundError:
        raise OpamError(f"{path}: not found; run `dvc repro` to make it") from None


def read_doubts() -> pd.DataFrame:
    """The labels that `doubt_labels` lists; whatever a class is called, its name is text."""
    path = DATA / "doubtful_labels.csv"
    text = dict.fromkeys(("image_id", "path", "split", "label", "suggested"), str)
    try:
        return pd.read_csv(path, dtype=text, keep_default_na=False)
    except FileNotFoundError:
        raise OpamError(f"{path}: not found; run `dvc repro` to make it") from None


def read_comparison() -> list[dict[str, Any]]:
    """A row a system; none where the systems were not compared."""
    path = DATA / "comparison.json"
    return read_json(path) if path.exists() else []


def read_answers(fusion: dict[str, Any]) -> dict[str, np.ndarray]:
    """Probabilities N x C of the test photographs, by each branch and fused."""
    images, scores = read_scores(DATA / "scores")
    test = (images["split"] == "test").to_numpy()
    own = {name: each[test] for name, each in scores.items()}
    return branch_answers(own, fusion["weights"], fusion["rule"])


def main() -> None:
    """Write data/report/: index.html and what it loads when needed."""
    params = tracked_params()
    classes = read_json(DATA / "classes.json")
    parents = read_json(DATA / "parents.json")
    metrics = read_json(DATA / "metrics.json")
    fusion = read_json(DATA / "fusion.json")
    clusters = read_json(DATA / "neuron_clusters.json")
    manifest = read_table(DATA / "manifest.parquet", "manifest")
    duplicates = read_duplicates()
    execution = read_params("execution", ExecutionParams)
    photographs = Photographs(manifest, execution.decoded_gigabytes)
    finished = gallery.Run(
        photographs=manifest[manifest["split"] == "test"],
        scores=read_answers(fusion),
        objects=read_table(DATA / "objects.parquet", "objects").set_index("image_id"),
        parts=read_table(DATA / "aligned_parts.parquet", "aligned_parts").set_index("image_id"),
        read=photographs,
    )
    found = gallery.found_photographs(
        finished,
        read_table_in_pieces(DATA / "saliency.parquet", "saliency"),
        read_table_in_pieces(DATA / "object_maps.parquet", "object_maps"),
        read_photographs(DATA / "proposals.parquet", "proposals"),
        read_params("objects", ObjectParams),
    )
    details = gallery.all_details(
        finished,
        found,
        read_params("parts", PartParams),
        execution,
    )
    listed = read_doubts()
    scores = read_params("fusion", FusionParams).scores
    answered = held_out_answers(DATA / "scores", scores, fusion)
    doubts = doubted_labels(listed, *answered, manifest.set_index("image_id"), classes)
    # Behind the photographs of test, in the same files.
    pictures = doubt_pictures(doubts, photographs)
    written = set(gallery.write_pieces(OUT, chain(details, pictures)))
    training = gallery.training_photographs(
        manifest.set_index("image_id"),
        tables.choose_training(manifest, TRAINING),
        read_photographs(DATA / "patch_scores.parquet", "patch_scores"),
        read_photographs(DATA / "kept_patches.parquet", "kept_patches"),
        PATCHES,
        photographs,
    )

    labels, confidence = finished.labels(), finished.scores["fused"].max(1)
    answers = {branch: each.argmax(1) for branch, each in finished.scores.items()}
    data = {
        "classes": classes,
        "piece": gallery.PIECE,
        "photographs": gallery.gallery(finished),
        "pairs": tables.confused_pairs(
            labels, answers["fused"], confidence, PAIRS, PAIR_PHOTOGRAPHS
        ),
        "exciting": tables.most_exciting(finished.parts, finished.positions(), EXCITING),
        "training": training,
    }
    made_from = lineage()
    patches = read_batches(DATA / "patch_scores.parquet", "patch_scores")
    content = {
        "params": params,
        "params_text": yaml.safe_dump(params, sort_keys=False, allow_unicode=True),
        "lineage": made_from,
        "looks": looks_at(made_from["photographs"]["sha256"]).to_dict("records"),
        "splits": manifest["split"].value_counts().to_dict(),
        "classes": classes,
        "copies": copy_groups(duplicates, photographs),
        "copy_counts": {"photographs": len(duplicates), "groups": duplicates["group"].nunique()},
        "doubts": doubts,
        "doubt_counts": {"listed": len(listed), "sure": int(listed["above_threshold"].sum())},
        "branches": list(answers),
        "metrics": metrics,
        "level_rows": level_rows(metrics, len(classes)),
        "levels": levels(labels, answers["fused"], parents, classes),
        "ablation": read_plot_data("ablation.csv"),
        "fusion": fusion,
        "fusion_rows": tables.fusion_rows(fusion),
        "fusion_weights": tables.fusion_weights(fusion),
        "comparison": read_comparison(),
        "class_rows": tables.class_accuracy(labels, answers, len(classes)).to_dict("records"),
        "confusion": tables.confusion(labels, answers["fused"], len(classes)),
        "bins": tables.reliability_bins(confidence, answers["fused"] == labels),
        "iou": tables.count_ious(finished.photographs, finished.objects, BINS),
        "locations": tables.location_rows(read_plot_data("part_locations.csv")),
        "neurons": np.bincount(clusters["cluster_of_neuron"], minlength=clusters["clusters"]),
        "cluster_of_neuron": clusters["cluster_of_neuron"],
        "response": clusters["response"],
        "patch_confidences": tables.count_shares(
            (batch["confidence"].to_numpy() for batch in patches), BINS
        ),
    }
    with atomic(OUT / "index.html") as temporary:
        temporary.write_text(render(content, data), encoding="utf-8")
    gallery.remove_others(OUT, {*written, OUT / "index.html"})
    sizes = [path.stat().st_size for path in OUT.rglob("*") if path.is_file()]
    print(f"{OUT}/index.html: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
