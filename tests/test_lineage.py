"""Lineage: what a result was made from, and how often test was looked at."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from small_project import BASELINES, Undisturbed

from opam.evaluation.lineage import (
    LOOKS,
    OPAM,
    PHOTOGRAPHS,
    lineage,
    looks_at,
    read_looks,
    record_look,
)
from opam.pipeline.artifacts import read_json, write_json
from opam.pipeline.environment import installed_versions
from opam.pipeline.errors import OpamError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_json(PHOTOGRAPHS, {"sha256": "birds", "train": 4, "val": 2, "test": 2})
    (tmp_path / "params.yaml").write_text("seed: 3\nfilter: {threshold: 0.5}\nexecution: {}\n")
    return tmp_path


def answers(*confidences: float) -> pd.DataFrame:
    rows = [np.array([each, 1 - each], dtype=np.float32) for each in confidences]
    return pd.DataFrame({"image_id": [f"{n}.jpg" for n in range(len(rows))], "probabilities": rows})


def test_a_look_is_a_result_that_was_not_there_before(run: Path) -> None:
    assert read_looks().empty
    record_look(OPAM, answers(0.2, 0.4), 0.5)
    record_look(OPAM, answers(0.2, 0.4), 0.5)
    assert len(read_looks()) == 1
    record_look(OPAM, answers(0.2, 0.3), 0.5)
    record_look("finetune", answers(0.2, 0.3), 0.5)
    assert read_looks()["system"].tolist() == [OPAM, OPAM, "finetune"]
    assert lineage()["looks_at_test"] == 2
    write_json(PHOTOGRAPHS, {"sha256": "bolts", "train": 4, "val": 2, "test": 2})
    assert lineage()["looks_at_test"] == 0
    record_look(OPAM, answers(0.2, 0.4), 0.5)
    assert len(looks_at("bolts")) == 1
    assert len(looks_at("birds")) == 3


def test_lineage_has_every_parameter_that_counts(run: Path) -> None:
    made_from = lineage()
    assert made_from["seed"] == 3
    assert made_from["params"] == {"seed": 3, "filter": {"threshold": 0.5}}
    assert installed_versions().items() <= made_from["versions"].items()
    assert made_from["commit"] is None


def test_a_damaged_count_is_told(run: Path) -> None:
    LOOKS.write_text("torn\n1\n")
    with pytest.raises(OpamError, match=r"looks\.csv: cannot be read.*git checkout"):
        read_looks()


@pytest.mark.slow
def test_bundle_and_report_say_what_they_were_made_from(undisturbed: Undisturbed) -> None:
    data = undisturbed.untouched / "data"
    made_from = read_json(data / "bundle/bundle.json")["lineage"]
    params = yaml.safe_load((undisturbed.folder / "params.yaml").read_text())
    assert made_from["photographs"] == read_json(data / "photographs.json")
    assert made_from["params"]["classnet"] == params["classnet"]
    assert made_from["params"].keys() == params.keys() - {"execution", "baselines"}
    assert made_from["looks_at_test"] == 1
    assert len(made_from["commit"]) >= 12
    digest = made_from["photographs"]["sha256"]
    assert digest[:16] in (data / "bundle/README.md").read_text()
    report = (data / "report/index.html").read_text()
    assert digest in report
    assert f"torch {made_from['versions']['torch']}" in report
    looks = pd.read_csv(data / "looks.csv")
    assert looks["system"].tolist() == [OPAM, *BASELINES]
