"""What each step is worth to the networks: one thing changed at a time, over seeds.

Run: ``make ablation``, or ``python benchmarks/ablation.py 0 1 2`` with seeds of your own. Every
variant is run by DVC in a copy of the project that shares its cache, so that it computes what it
changes and nothing else. What benchmarks/ablation.json already has for the same params and
photographs is kept, with its commit: an interrupted ablation goes on where it stood, and seeds may
be run on different days. Rows of other params and photographs stay beside them. Delete the file to
measure anew. The tables are printed at the end, and `make results` writes them to docs/results.md.
"""

import copy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from project import ROOT, copy_project, environment

from opam.evaluation.scores import read_scores
from opam.method.fusion import FUSED, by_branch, fuse
from opam.pipeline.artifacts import read_json, read_table
from opam.pipeline.revision import commit
from opam.report.results import (
    ABLATION,
    ON_VAL,
    ablation_rows,
    ablation_text,
    keep_ablation_rows,
    measured,
    of_networks,
)


def variants(params: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is changed, by the name of the change."""
    classnet = params["classnet"]
    # As many steps as with patches, so that it is not the shorter training that is measured.
    as_long = classnet["epochs"] * (1 + classnet["patches_per_image"])
    free = {"parts.min_iou": 0.0, "parts.max_iou": 1.0, "parts.min_inside": 0.0}
    changes: dict[str, dict[str, Any]] = {
        "as it is": {},
        "ClassNet on whole photographs alone": {
            "filter.threshold": 1.0,
            "classnet.epochs": as_long,
        },
        "ClassNet on unfiltered patches": {"filter.threshold": 0.0},
        "object box by the CAM alone, as in the paper": {"objects.map": "cam"},
        "no object box: the whole photograph": {"objects.threshold": 0.0},
        "parts without the object's constraint": free,
        "parts without their own constraint": {"parts.spatial": False},
        "parts without any constraint": {**free, "parts.spatial": False},
        "parts not aligned": {"alignment.clusters": 1},
        "probes beside the networks": {"fusion.scores": "all"},
        "probes alone": {"fusion.scores": "probes"},
    }
    for count in (1, 2, 3, 4):
        if count != params["parts"]["n_parts"]:
            number = {"parts.n_parts": count, "alignment.clusters": count}
            changes[f"{count} part{'s' if count > 1 else ''}"] = number
    return changes


def changed(params: dict[str, Any], changes: dict[str, Any], seed: int) -> dict[str, Any]:
    """``params`` with another seed and other values of dotted names."""
    other = copy.deepcopy(params)
    other["seed"] = seed
    for name, value in changes.items():
        section, key = name.split(".")
        other[section][key] = value
    return other


def figures(data: Path) -> dict[str, float]:
    """The figures of a finished run: accuracy of all combinations, also on val, and CorLoc."""
    metrics = read_json(data / "metrics.json")
    table = pd.read_csv(data / "plots/ablation.csv")
    names = table["branches"].replace(FUSED, "fused")
    found = dict(zip(names, table["accuracy"], strict=True))
    found |= dict(zip(names + ON_VAL, table["val_accuracy"], strict=True))
    images, scores = read_scores(data / "scores")
    fusion = read_json(data / "fusion.json")
    branches = by_branch(fusion["weights"][FUSED])
    means = [np.mean([scores[name] for name in names], axis=0) for names in branches.values()]
    equal = fuse(np.stack(means), [1 / len(means)] * len(means), fusion["rule"])
    right = equal.argmax(1) == images["label"].to_numpy()
    found["equal weights"] = float(right[(images["split"] == "test").to_numpy()].mean())
    if "corloc" in metrics.get("object_box", {}):
        found["CorLoc"] = metrics["object_box"]["corloc"]
    return found


def main() -> None:
    """Run all variants with all seeds; benchmarks/ablation.json holds what is done so far."""
    seeds = [int(each) for each in sys.argv[1:]] or [0, 1, 2]
    params = of_networks(yaml.safe_load((ROOT / "params.yaml").read_text()))
    cache = subprocess.run(
        ["dvc", "cache", "dir"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_project(Path(temporary) / "project", params)

        def dvc(*arguments: str) -> None:
            subprocess.run(["dvc", *arguments], cwd=folder, env=environment(folder), check=True)

        dvc("cache", "dir", "--local", str((ROOT / cache).resolve()))
        dvc("repro", "prepare")
        ablated = measured(params, read_table(folder / "data/manifest.parquet", "manifest"))
        rows = ablation_rows(ROOT / ABLATION, ablated)
        known = {(row["variant"], row["seed"]): row["commit"] for row in rows}
        for seed in seeds:
            for name, changes in variants(params).items():
                if (name, seed) in known:
                    print(f"seed {seed}: {name}: measured at {known[name, seed]}", flush=True)
                    continue
                print(f"seed {seed}: {name}", flush=True)
                text = yaml.safe_dump(changed(params, changes, seed), sort_keys=False)
                (folder / "params.yaml").write_text(text)
                dvc("repro", "evaluate")
                found = figures(folder / "data")
                rows.append({"variant": name, "seed": seed, "commit": commit(), **found})
                keep_ablation_rows(ROOT / ABLATION, ablated, rows)
    print(ablation_text(rows))


if __name__ == "__main__":
    main()
