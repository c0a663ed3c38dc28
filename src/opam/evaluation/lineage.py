"""What a result was made from: photographs, commit, versions, parameters, and looks at test.

A look at the test split is a result on it that was not there before. The stage that makes one adds
a row to ``data/looks.csv``, which git keeps: what was chosen after many looks was chosen on test.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from opam.pipeline.artifacts import read_json, write_csv
from opam.pipeline.environment import ENVIRONMENT, installed_versions
from opam.pipeline.errors import OpamError, cause
from opam.pipeline.revision import commit, configuration, tracked_params

PHOTOGRAPHS = Path("data/photographs.json")
"""Written by prepare: SHA-256 of the photographs with their labels and splits, and counts."""

LOOKS = Path("data/looks.csv")
OPAM = "opam"
COLUMNS = ["photographs", "system", "configuration", "predictions", "commit", "accuracy"]


def lineage() -> dict[str, Any]:
    """What the results of the pipeline, without the other systems, were made from, as JSON has it.

    Raises:
        OpamError: an artifact that tells is missing or damaged.
    """
    photographs = read_json(PHOTOGRAPHS)
    environment = read_json(ENVIRONMENT) if ENVIRONMENT.exists() else {}
    params = tracked_params()
    params.pop("baselines", None)
    return {
        "photographs": photographs,
        "commit": commit(),
        "versions": {
            "opam": version("opam"),
            **environment.get("versions", installed_versions()),
        },
        "weights": environment.get("weights", {}).get("shared"),
        "seed": params.get("seed"),
        "params": params,
        "looks_at_test": int((looks_at(photographs["sha256"])["system"] == OPAM).sum()),
    }


def record_look(system: str, predictions: pd.DataFrame, accuracy: float) -> None:
    """Add a row to `LOOKS`, unless the same answers to the same photographs are there.

    Args:
        system: `OPAM`, or the name of an entry under ``baselines``.
        predictions: rows of test with ``image_id`` and ``probabilities``.
        accuracy: of them, 0..1.
    """
    digest = hashlib.sha256()
    for image_id, probabilities in zip(
        predictions["image_id"], predictions["probabilities"], strict=True
    ):
        digest.update(image_id.encode())
        digest.update(probabilities.tobytes())
    row = {
        "photographs": read_json(PHOTOGRAPHS)["sha256"],
        "system": system,
        "configuration": configuration(),
        "predictions": digest.hexdigest()[:16],
        "commit": commit() or "",
        "accuracy": round(accuracy, 4),
    }
    looks = read_looks()
    same = ["photographs", "system", "predictions"]
    if not (looks[same] == [row[name] for name in same]).all(axis=1).any():
        write_csv(LOOKS, pd.concat([looks, pd.DataFrame([row])], ignore_index=True))


def read_looks() -> pd.DataFrame:
    """The looks that were taken, in order; none where there is no file.

    Raises:
        OpamError: the file is damaged.
    """
    if not LOOKS.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        looks = pd.read_csv(LOOKS, dtype=dict.fromkeys(COLUMNS[:-1], str), keep_default_na=False)
        return looks[COLUMNS]
    except (KeyError, ValueError, OSError) as error:
        raise OpamError(
            f"{LOOKS}: cannot be read ({cause(error)}); `git checkout {LOOKS}` restores it"
        ) from None


def looks_at(photographs: str) -> pd.DataFrame:
    """The looks at the test split of these photographs, by their SHA-256."""
    looks = read_looks()
    return looks[looks["photographs"] == photographs]
