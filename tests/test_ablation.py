"""The ablation's grid: every change is one that the parameter file knows, and changes something."""

import sys

import pytest
import yaml
from small_project import ROOT

from opam.report.check_params import check

sys.path.insert(0, str(ROOT / "benchmarks"))
from ablation import changed, variants

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
