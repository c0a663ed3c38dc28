"""The ablation's grid: every change is one that the parameter file knows, and changes something."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from made_up_run import PARTS, make_up_run
from small_project import ROOT

from opam.app.check_params import check
from opam.evaluation.scores import read_scores
from opam.report.results import ablation_rows, keep_ablation_rows, measured, of_networks

sys.path.insert(0, str(ROOT / "benchmarks"))
from ablation import changed, figures, variants

PARAMS = of_networks(yaml.safe_load((ROOT / "params.yaml").read_text()))


@pytest.mark.parametrize("name", variants(PARAMS))
def test_a_change_is_valid_and_no_other(name: str, tmp_path) -> None:
    changes = variants(PARAMS)[name]
    found = changed(PARAMS, changes, seed=5)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(found))
    check(path)
    assert found.pop("seed") == 5
    for dotted, value in changes.items():
        section, key = dotted.split(".")
        assert found[section][key] == value != PARAMS[section][key]
        found[section][key] = PARAMS[section][key]
    assert found == {key: value for key, value in PARAMS.items() if key != "seed"}


def test_rows_are_kept_while_params_and_photographs_stay(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    small = pd.DataFrame({"width": [3, 4], "height": [2, 2]})
    ablated = measured(PARAMS, small)
    assert ablation_rows(path, ablated) == []
    rows = [{"variant": "as it is", "seed": seed, "fused": 0.5} for seed in (0, 1)]
    keep_ablation_rows(path, ablated, rows[:1])
    keep_ablation_rows(path, ablated, rows)
    moved = changed(PARAMS, {"dataset.path": "/elsewhere", "execution.threads": 7}, seed=3)
    assert ablation_rows(path, measured({**moved, "baselines": {}}, small)) == rows
    assert ablation_rows(path, measured(PARAMS, small * 2)) == []
    other = measured(changed(PARAMS, {"parts.n_parts": 4}, seed=0), small)
    assert ablation_rows(path, other) == []
    keep_ablation_rows(path, other, rows[:1])
    assert ablation_rows(path, other) == rows[:1]
    assert ablation_rows(path, ablated) == rows


def test_equal_weights_multiply_the_branches(tmp_path: Path) -> None:
    data = make_up_run(tmp_path, 40, ["a", "b", "c"]) / "data"
    found = figures(data)
    assert list(found) == ["fused", "fused on val", "equal weights"]
    images, own = read_scores(data / "scores")
    original = own["original"] + own["original probe"]
    found_object = own["object"] + own["object probe"]
    parts = sum(own[name] for name in PARTS)
    right = (original * found_object * parts).argmax(1) == images["label"]
    assert found["equal weights"] == np.mean(right[images["split"] == "test"])
