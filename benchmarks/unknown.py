"""Photographs of nothing that is known: how well they are told from those of known classes.

Run: ``python benchmarks/unknown.py NAME=FOLDER ...``, on the bundle and the test photographs of the
run in ``data/``; each folder holds photographs of other classes only. benchmarks/unknown.json keeps
the rows, and `make results` writes them to docs/results.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from opam.app.classifier import Classifier, LookedAt
from opam.app.predict import find_photographs
from opam.pipeline.artifacts import read_json, read_table, write_json
from opam.pipeline.device import ExecutionParams
from opam.pipeline.params import read_params
from opam.pipeline.progress import progress
from opam.pipeline.revision import tracked_params
from opam.report.results import UNKNOWN, unknown_text

AT_MOST = 500
"""Photographs of a folder."""
TOGETHER = 16


def scores(classifier: Classifier, paths: list[Path], name: str) -> dict[str, np.ndarray]:
    """By three ways how much each photograph looks known: higher is more so."""
    network, size = classifier.networks["object"], classifier.settings["object"]["input_size"]

    def energy(crops: torch.Tensor) -> tuple[torch.Tensor]:
        return (network(crops).float().logsumexp((1, 2)),)

    found: dict[str, list[float]] = {"familiarity": [], "largest probability": [], "energy": []}
    starts = range(0, len(paths), TOGETHER)
    for start in progress(starts, len(starts), name):
        looks: list[LookedAt] = [classifier.look(path) for path in paths[start : start + TOGETHER]]
        images = [look.photograph.pixels for look in looks]
        answers = classifier.classify_looked_at(looks)
        boxes = [each.object_box[None] for each in answers]
        [energies] = classifier.forward(network, energy, classifier.batches(images, boxes, size))
        found["familiarity"] += [each.familiarity for each in answers]
        found["largest probability"] += [float(e.probabilities["fused"].max()) for e in answers]
        found["energy"] += energies.tolist()
    return {way: np.array(each) for way, each in found.items()}


def told_apart(known: np.ndarray, unknown: np.ndarray) -> dict[str, float]:
    """Area under the curve, and unknown ones let pass where 95% of the known do."""
    truth = np.repeat([True, False], [len(known), len(unknown)])
    passed = unknown >= np.quantile(known, 0.05, method="lower")
    return {
        "auroc": float(roc_auc_score(truth, np.concatenate([known, unknown]))),
        "false_positives": float(passed.mean()),
    }


def main() -> None:
    """Print the table, and write benchmarks/unknown.json."""
    asked = dict(each.split("=", 1) for each in sys.argv[1:])
    if not asked:
        sys.exit("error: give NAME=FOLDER ..., photographs of other classes")
    classifier = Classifier(Path("data/bundle"), read_params("execution", ExecutionParams))
    manifest = read_table(Path("data/manifest.parquet"), "manifest")
    test = [Path(path) for path in manifest.loc[manifest["split"] == "test", "path"]]
    known = scores(classifier, test, "known")
    rows: list[dict[str, Any]] = []
    for name, folder in asked.items():
        paths, _ = find_photographs([Path(folder)])
        chosen = np.random.default_rng(0).permutation(len(paths))[:AT_MOST]
        found = scores(classifier, [paths[each] for each in sorted(chosen)], name)
        for way, own in found.items():
            figures = told_apart(known[way], own)
            rows.append({"unknown": name, "photographs": len(own), "score": way, **figures})
    accepted = {
        f"{each:.0%}": float((known["familiarity"] <= each).mean()) for each in (0.01, 0.05, 0.1)
    }
    content = {
        "known": len(test),
        "input_size": classifier.familiar["input_size"],
        "objectnet": tracked_params()["objectnet"]["by"],
        "accepted": accepted,
        "rows": rows,
    }
    write_json(UNKNOWN, content)
    print(unknown_text(read_json(UNKNOWN)), json.dumps(accepted))


if __name__ == "__main__":
    main()
