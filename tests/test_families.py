"""The whole pipeline behind the proposals, and every other system, on backbones of six families."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from small_project import STAGES, Undisturbed, call, preset, script, scripts

pytestmark = pytest.mark.slow

FAMILIES = [
    "test_vit",
    "test_vit3",
    "test_convnext",
    "test_nfnet",
    "efficientvit_b0",
    "test_mambaout",
]
"""The smallest of their families."""

BEHIND_PROPOSALS = STAGES[STAGES.index("train_filternet") : STAGES.index("draw_examples")]
WANT_STAGES = {"ap_cnn"}
PLAIN = {"test_vit", "test_vit3"}
"""Backbones whose maps do not grow coarser."""


@pytest.mark.parametrize("backbone", FAMILIES)
def test_the_method_and_every_system_run_on_it(
    undisturbed: Undisturbed, tmp_path: Path, backbone: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed.untouched, folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["backbone"]["name"] = backbone
    for network in ("filternet", "classnet", "objectnet", "partnet"):
        params[network] |= {"epochs": 1}
    params["probes"] |= {"input_size": 64, "part_size": 64, "views": 0}
    if backbone == "test_vit":
        params["probes"]["pooled"] = "both"
    systems = preset("defaults")["baselines"]
    systems["bcnn"]["classifier_training"]["epochs"] = 1
    refused = WANT_STAGES if backbone in PLAIN else set()
    params["baselines"] = systems
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    checked = call(folder, *script("check_params"))
    assert checked.returncode == (1 if refused else 0), checked.stderr
    if refused:
        assert checked.stderr.count("\n") == 1
        assert "cannot be run in stages" in checked.stderr
        params["baselines"] = {name: systems[name] for name in systems.keys() - refused}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
    trained = [f"train_baseline@{name}" for name in params["baselines"]]
    stages = ["check_params", "record_environment", *BEHIND_PROPOSALS, *trained, "compare"]
    done = call(folder, *scripts(stages))
    assert done.returncode == 0, done.stderr
    metrics = json.loads((folder / "data/metrics.json").read_text())
    assert metrics != json.loads((undisturbed.untouched / "data/metrics.json").read_text())
    compared = (folder / "data/comparison.csv").read_text()
    assert all(name in compared for name in params["baselines"])
