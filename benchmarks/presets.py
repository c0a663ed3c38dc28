"""Presets side by side: what each takes on this machine, start to accuracy, and how right it is.

Run: ``python benchmarks/presets.py``, on the photographs that params.yaml names; `make results`
writes the table to docs/results.md. Each begins with nothing, in a copy of the project with a cache
of its own. Every run is a look at test (data/looks.csv).
"""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from bench import hardware
from project import ROOT, copy_project, environment

from opam.evaluation.lineage import LOOKS, commit
from opam.pipeline.artifacts import read_json, read_table, write_json
from opam.pipeline.presets import laid_over
from opam.report.results import SIDE_BY_SIDE, photographs

RUNS = {
    "frozen": ("frozen", "evaluate"),
    "cub-small-cpu": ("cub-small-cpu", "evaluate"),
    "cub-small-cpu, finetune": ("cub-small-cpu", "train_baseline@finetune"),
}
"""The preset of each, and the stage with which it is done."""


def params_of(preset: str, shared: dict[str, Any]) -> dict[str, Any]:
    """Of a preset on the photographs, and on the machine, of ``shared``."""
    text = laid_over(ROOT / "presets/defaults.yaml", ROOT / f"presets/{preset}.yaml")
    params: dict[str, Any] = yaml.safe_load(text)
    return {**params, **{name: shared[name] for name in ("dataset", "execution", "seed")}}


def figures(data: Path) -> dict[str, float | None]:
    """Accuracy on test, and where the object was looked for, CorLoc."""
    if (data / "metrics.json").exists():
        metrics = read_json(data / "metrics.json")
        corloc = metrics.get("object_box", {}).get("corloc")
        return {"accuracy": metrics["accuracy"]["fused"], "corloc": corloc}
    scores = read_table(data / "baselines/finetune/scores.parquet", "scores")
    test = scores[scores["split"] == "test"]
    answers = test["probabilities"].map(lambda each: each.argmax())
    return {"accuracy": float((answers == test["label"]).mean()), "corloc": None}


def measure(preset: str, target: str, shared: dict[str, Any]) -> dict[str, Any]:
    """Of one run the photographs, seconds and figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_project(Path(temporary) / "project", params_of(preset, shared))
        shutil.copy(ROOT / LOOKS, folder / LOOKS)
        here = {**environment(folder), "OPAM_CACHE": str(Path(temporary, "kept"))}
        started = time.monotonic()
        subprocess.run(["dvc", "repro", target], cwd=folder, env=here, check=True)
        seconds = time.monotonic() - started
        shutil.copy(folder / LOOKS, ROOT / LOOKS)
        found = photographs(read_table(folder / "data/manifest.parquet", "manifest"))
        return {**found, "seconds": seconds, **figures(folder / "data")}


def main() -> None:
    """Write benchmarks/presets.json, a row as soon as it is measured."""
    os.chdir(ROOT)
    shared = yaml.safe_load(Path("params.yaml").read_text())
    rows: list[dict[str, Any]] = []
    for name, (preset, target) in RUNS.items():
        how = {"commit": commit(), "hardware": hardware()}
        rows.append({"run": name, **measure(preset, target, shared), **how})
        write_json(SIDE_BY_SIDE, rows)
    print(pd.DataFrame(rows).to_string())


if __name__ == "__main__":
    main()
