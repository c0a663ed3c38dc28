"""The ablation's grid: every change is one that the parameter file knows, and changes something."""

import sys
from pathlib import Path

import pytest
import yaml
from small_project import ROOT

from opam.artifacts import write_json
from opam.report.check_params import check
from opam.report.results import measured

sys.path.insert(0, str(ROOT / "benchmarks"))
from ablation import changed, other_seeds, variants

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


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


def test_seeds_of_other_days_are_kept_while_the_params_stay(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    assert other_seeds(path, PARAMS, [0]) == []
    rows = [{"variant": "as it is", "seed": seed, "fused": 0.5} for seed in (0, 1)]
    write_json(path, {"params": measured(PARAMS), "rows": rows})
    moved = changed(PARAMS, {"dataset.path": "/elsewhere", "execution.threads": 7}, seed=3)
    assert other_seeds(path, moved, [1, 2]) == rows[:1]
    assert other_seeds(path, changed(PARAMS, {"parts.n_parts": 4}, seed=0), [1, 2]) == []
