"""Labels changed by a seed: how many of them the list of doubtful labels begins with.

Preset ``frozen`` on the photographs that params.yaml names, of whose labels for training one in
twenty is changed to another class before anything is learned.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from project import ROOT, STAGES, copy_project, params_of, run_stages

from opam.pipeline.artifacts import read_json, read_table, write_table

CHANGED = 0.05
"""Of the labels for training."""
LISTED = 0.08
"""The beginning of the list, as a share of the photographs for training."""
SEEDS = (0, 1, 2)


def change_labels(folder: Path, seed: int) -> tuple[set[str], int]:
    """Change labels of the manifest in ``folder``: which photographs', and of how many."""
    manifest = read_table(folder / "data/manifest.parquet", "manifest")
    classes = np.array(read_json(folder / "data/classes.json"))
    training = np.flatnonzero(manifest["split"] == "train")
    generator = np.random.default_rng(seed)
    chosen = generator.choice(training, round(CHANGED * len(training)), replace=False)
    further = generator.integers(1, len(classes), len(chosen))
    labels = (manifest["label"].to_numpy()[chosen] + further) % len(classes)
    manifest.loc[chosen, "label"] = labels.astype(manifest["label"].dtype)
    manifest.loc[chosen, "class_name"] = classes[labels]
    write_table(folder / "data/manifest.parquet", "manifest", manifest)
    return {*manifest["image_id"][chosen]}, len(training)


def measured(shared: dict[str, Any], seed: int) -> tuple[float, int]:
    """Share of changed labels in the list's beginning, and how many were changed."""
    with tempfile.TemporaryDirectory() as temporary:
        params = params_of("frozen", shared, seed)
        folder = copy_project(Path(temporary) / "project", params)
        behind = STAGES.index("prepare") + 1
        run_stages(folder, params, STAGES[:behind])
        changed, training = change_labels(folder, seed)
        run_stages(folder, params, [*STAGES[behind : STAGES.index("evaluate")], "doubt_labels"])
        listed = pd.read_csv(folder / "data/doubtful_labels.csv")["image_id"]
        first = listed[: round(LISTED * training)]
        return first.isin(changed).sum() / len(changed), len(changed)


def measure() -> list[dict[str, object]]:
    """A row a seed."""
    shared = yaml.safe_load((ROOT / "params.yaml").read_text())
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as kept:
        os.environ["OPAM_CACHE"] = os.environ.get("OPAM_CACHE", kept)
        for seed in SEEDS:
            share, count = measured(shared, seed)
            rows.append(
                {
                    "what": f"doubtful labels, seed {seed}: of {count} changed ones among the "
                    f"first that are listed, {LISTED:.0%} of all",
                    "value": f"{share:.0%}",
                    "ratio": "",
                    "goal": "80%",
                }
            )
    return rows
