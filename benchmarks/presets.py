"""Presets side by side: what each takes on this machine, start to accuracy, and how right it is.

Run: ``python benchmarks/presets.py``, on the photographs that params.yaml names, or
``python benchmarks/presets.py frozen 0 1 2`` for one of `RUNS` with seeds of your own. Each begins
with nothing, in a copy of the project with a cache of its own. What benchmarks/presets.json
already has of the same photographs and seed is kept, with its commit: runs may be made on
different days, and on several sets of photographs. Delete its rows to measure anew. `make results`
writes the tables to docs/results.md. Every run is a look at test (data/looks.csv).
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bench import hardware
from project import ROOT, copy_project, environment, params_of

from opam.evaluation.lineage import LOOKS, read_looks, record_look
from opam.pipeline.artifacts import read_json, read_table, write_csv, write_json
from opam.pipeline.outside import given_photographs
from opam.pipeline.revision import commit
from opam.report.results import SIDE_BY_SIDE, photographs, presets_text

RUNS = {
    "frozen": ("frozen", "evaluate"),
    "cub-small-cpu": ("cub-small-cpu", "evaluate"),
    "finetune": ("cub-small-cpu", "train_baseline@finetune"),
}
"""The preset of each, and the stage with which it is done."""


def figures(data: Path) -> dict[str, Any]:
    """Accuracy on test, which photographs were wrong, and where the object was looked for."""
    if (data / "metrics.json").exists():
        metrics = read_json(data / "metrics.json")
        table = read_table(data / "predictions.parquet", "predictions")
        answers = table["fused"]
        boxes = metrics.get("object_box", {})
    else:
        table = read_table(data / "baselines/finetune/scores.parquet", "scores")
        answers = table["probabilities"].map(np.argmax)
        boxes = {}
    test = table["split"] == "test"
    wrong = test & (answers != table["label"])
    return {
        "accuracy": 1 - wrong.sum() / test.sum(),
        "corloc": boxes.get("corloc"),
        "mean_iou": boxes.get("mean_iou"),
        "test": int(test.sum()),
        "wrong": sorted(table["image_id"][wrong]),
    }


def measure(preset: str, target: str, shared: dict[str, Any], seed: int) -> dict[str, Any]:
    """Of one run the photographs, seconds and figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_project(Path(temporary) / "project", params_of(preset, shared, seed))
        shutil.copy(ROOT / LOOKS, folder / LOOKS)
        here = {**environment(folder), "OPAM_CACHE": str(Path(temporary, "kept"))}
        started = time.monotonic()
        subprocess.run(["dvc", "repro", target], cwd=folder, env=here, check=True)
        seconds = time.monotonic() - started
        keep_looks(folder, target)
        found = photographs(read_table(folder / "data/manifest.parquet", "manifest"))
        return {**found, "seconds": seconds, **figures(folder / "data")}


def called(dataset: dict[str, Any]) -> str:
    """The name of photographs, for people: of their folder, where one is given."""
    given = given_photographs(dataset["path"]) is not None
    return Path(dataset["path"]).name if given else dataset["name"]


def keep_looks(folder: Path, target: str) -> None:
    """Add the looks of a run in ``folder``, which knows no commit, to the project's."""
    os.chdir(folder)
    if target.startswith("train_baseline"):  # `compare` records it, where that is run
        scores = read_table(Path("data/baselines/finetune/scores.parquet"), "scores")
        record_look(
            "finetune", scores[scores["split"] == "test"], figures(Path("data"))["accuracy"]
        )
    looks = read_looks()
    os.chdir(ROOT)
    looks.loc[looks["commit"] == "", "commit"] = commit() or ""
    write_csv(LOOKS, looks)


def photographs_of(shared: dict[str, Any]) -> dict[str, int]:
    """What tells the photographs of params.yaml from others."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_project(Path(temporary) / "project", params_of("frozen", shared, 0))
        subprocess.run(["dvc", "repro", "prepare"], cwd=folder, env=environment(folder), check=True)
        return photographs(read_table(folder / "data/manifest.parquet", "manifest"))


def main() -> None:
    """Write benchmarks/presets.json, a row as soon as it is measured."""
    os.chdir(ROOT)
    names = sys.argv[1:2] or list(RUNS)
    seeds = [int(each) for each in sys.argv[2:]] or [0]
    shared = yaml.safe_load(Path("params.yaml").read_text())
    own = photographs_of(shared)
    for seed in seeds:
        for name in names:
            rows = read_json(SIDE_BY_SIDE) if SIDE_BY_SIDE.exists() else []
            known = {"run": name, "seed": seed, **own}
            if any(known.items() <= row.items() for row in rows):
                print(f"{name}, seed {seed}: measured already", flush=True)
                continue
            preset, target = RUNS[name]
            how = {"commit": commit(), "day": date.today().isoformat(), "hardware": hardware()}
            found = measure(preset, target, shared, seed)
            row = {"run": name, "seed": seed, "set": called(shared["dataset"]), **found, **how}
            order = [*RUNS].index
            write_json(SIDE_BY_SIDE, sorted([*rows, row], key=lambda each: order(each["run"])))
    print(presets_text([row for row in read_json(SIDE_BY_SIDE) if own.items() <= row.items()]))


if __name__ == "__main__":
    main()
