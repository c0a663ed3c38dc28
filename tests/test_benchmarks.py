"""The benchmarks' own arithmetic, and that the page is what they measured."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_run import make_up_run
from small_project import ROOT, STAGES, preset

from opam.pipeline.artifacts import read_table

sys.path.insert(0, str(ROOT / "benchmarks"))
import architectures
import bench
import doubts
import project


def test_the_page_of_speed_is_what_was_measured() -> None:
    text = bench.PAGE.read_text()
    assert bench.page(text, json.loads(bench.RESULTS.read_text())) == text
    rows = [{"what": "crops", "value": "9 a second", "ratio": 0.5, "goal": 0.9}]
    made = bench.page(text, {"maps": {"hardware": "two cores", "day": "today", "rows": rows}})
    assert "On two cores, today." in made
    assert "| crops | `maps` | 9 a second | 0.5 | 0.9 |" in made
    assert made.count("\n| ") < text.count("\n| ")
    assert made.endswith(text[text.index("## Exact and shared scoring") :])


def test_stages_run_by_hand_are_those_of_the_pipeline() -> None:
    networks = {f"train_{name}": name for name in project.NETWORKS}
    found = [networks.get(stage, stage) for stage in STAGES]
    assert [stage for stage in found if stage in project.STAGES] == [*project.STAGES]
    missing = {*STAGES[: STAGES.index("evaluate")]} - {*project.STAGES, *networks}
    assert missing == {"doubt_labels"}  # which no figure needs


def test_crops_of_a_run() -> None:
    params = preset("cub200-resnet50")
    trained, looked = architectures.crops_of(params, training=100, every=200)
    assert trained == 100 * (20 * 1 + 20 * 5 + 15 * 2 + 15 * 4)
    proposals, probes = 500, 4 * (2 + 8)
    of_every = 10 + 2 + 2 + 4 * (1 + params["mirrored"]) + 4
    assert looked == 100 * (proposals + probes) + 200 * of_every


def test_labels_are_changed_to_others_in_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_up_run(tmp_path, 40, ["one", "two", "three"])
    before = read_table(tmp_path / "data/manifest.parquet", "manifest")
    monkeypatch.setattr(doubts, "CHANGED", 0.5)
    changed, count = doubts.change_labels(tmp_path, seed=0)
    after = read_table(tmp_path / "data/manifest.parquet", "manifest")
    training = before["split"] == "train"
    assert count == training.sum()
    assert len(changed) == round(count / 2)
    other = before["label"] != after["label"]
    assert {*before["image_id"][other]} == changed
    assert training[other].all()
    names = np.array(["one", "two", "three"])
    assert (after["class_name"] == names[after["label"]]).all()
