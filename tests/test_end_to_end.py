"""Every stage, on a handful of drawn birds: under DVC, without DVC, again, and after a change."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from small_project import (
    BASELINES,
    DECODED,
    PYTHON,
    STAGES,
    Undisturbed,
    call,
    digests,
    dvc,
    project,
    scripts,
    small_params,
)

from opam.evaluation.scores import read_scores
from opam.method.fusion import PROBE
from opam.pipeline.artifacts import SCHEMAS, read_json, read_table

TABLES = {
    "manifest": "manifest",
    "keypoints": "keypoints",
    "proposals": "proposals",
    "patch_scores": "patch_scores",
    "kept_patches": "kept_patches",
    "saliency": "saliency",
    "object_maps": "object_maps",
    "objects": "objects",
    "parts": "parts",
    "aligned_parts": "aligned_parts",
    "scores/original": "scores",
    "scores/object": "scores",
    "scores/clusters": "cluster_scores",
    "scores/probes": "probe_scores",
    "predictions": "predictions",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repro(undisturbed: Undisturbed) -> Path:
    return undisturbed.folder


def test_a_second_repro_runs_nothing(repro: Path) -> None:
    assert "Running stage" not in dvc(repro, "repro")
    assert "up to date" in dvc(repro, "status")


def test_a_photograph_is_decoded_once_for_all_stages_epochs_and_processes(repro: Path) -> None:
    manifest = read_table(repro / "data/manifest.parquet", "manifest")
    decoded = (repro / DECODED).read_text().splitlines()
    assert sorted(decoded) == sorted(manifest["path"])


def test_other_workers_and_shards_without_dvc_or_pixels_give_the_same_bytes(
    undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = project(tmp_path_factory.mktemp("scripts"))
    params = small_params()
    params["execution"] |= {"workers": 1, "shard_size": 3, "decoded_gigabytes": 0}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPAM_CACHE", str(folder / "none"))
        done = call(folder, *scripts(STAGES))
        assert done.returncode == 0, done.stderr
    assert digests(folder) == undisturbed.digests
    assert len((folder / DECODED).read_text().splitlines()) > 500
    assert list((folder / ".resume").glob("*/*")) == []


@pytest.mark.parametrize(("file", "schema"), TABLES.items())
def test_tables_have_their_columns_and_order(repro: Path, file: str, schema: str) -> None:
    table = read_table(repro / f"data/{file}.parquet", schema)
    assert list(table.columns) == SCHEMAS[schema].names
    assert len(table)
    keys = [key for key in ("image_id", "rank", "part", "cluster", "name") if key in table.columns]
    assert table[keys].equals(table.sort_values(keys)[keys].reset_index(drop=True))


def test_boxes_lie_inside_their_photographs(repro: Path) -> None:
    manifest = read_table(repro / "data/manifest.parquet", "manifest").set_index("image_id")
    for name in ("proposals", "objects", "parts"):
        table = read_table(repro / f"data/{name}.parquet", name).join(
            manifest[["width", "height"]], on="image_id"
        )
        assert (table[["x0", "y0"]].to_numpy() >= 0).all()
        assert (table["x1"] <= table["width"]).all()
        assert (table["y1"] <= table["height"]).all()
        assert (table["x1"] > table["x0"]).all()
        assert (table["y1"] > table["y0"]).all()


def test_no_image_is_dropped(repro: Path) -> None:
    manifest = read_table(repro / "data/manifest.parquet", "manifest")
    assert set(manifest["split"]) == {"train", "val", "test"}
    for name in ("proposals", "saliency", "object_maps", "objects", "parts", "aligned_parts"):
        table = read_table(repro / f"data/{name}.parquet", name)
        assert set(table["image_id"]) == set(manifest["image_id"])
    parts = read_table(repro / "data/parts.parquet", "parts")
    assert (parts.groupby("image_id").size() == 2).all()


def test_filter_and_scores_hold_what_they_promise(repro: Path) -> None:
    manifest = read_table(repro / "data/manifest.parquet", "manifest")
    scores = read_table(repro / "data/patch_scores.parquet", "patch_scores")
    kept = read_table(repro / "data/kept_patches.parquet", "kept_patches")
    assert set(scores["image_id"]) == set(manifest.loc[manifest["split"] == "train", "image_id"])
    assert len(kept) == (scores["confidence"] >= 0.05).sum()
    images, scores = read_scores(repro / "data/scores")
    assert set(images["split"]) == {"val", "test"}
    names = ["original", "object", "cluster 0", "cluster 1"]
    assert list(scores) == [*names, *(name + PROBE for name in names)]
    for probabilities in scores.values():
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_metrics_are_those_of_the_predictions(repro: Path) -> None:
    metrics = read_json(repro / "data/metrics.json")
    predictions = read_table(repro / "data/predictions.parquet", "predictions")
    test = predictions[predictions["split"] == "test"]
    for name in ("original", "object", "part", "fused"):
        assert metrics["accuracy"][name] == pytest.approx((test[name] == test["label"]).mean())
    val = predictions[predictions["split"] == "val"]
    assert metrics["val_accuracy"]["object"] == pytest.approx(
        (val["object"] == val["label"]).mean()
    )
    fusion = read_json(repro / "data/fusion.json")
    assert metrics["val_accuracy"]["fused"] == fusion["accuracy"]["original+object+part"]
    assert min(fusion["weights"]["original+object+part"].values()) >= 0
    assert read_json(repro / "data/parents.json") == []
    assert "levels" not in metrics
    ablation = pd.read_csv(repro / "data/plots/ablation.csv")
    assert len(ablation) == 7


def test_the_comparison_has_a_row_a_system(repro: Path) -> None:
    rows = read_json(repro / "data/comparison.json")
    assert [row["system"] for row in rows] == ["opam", *BASELINES]
    metrics = read_json(repro / "data/metrics.json")
    assert rows[0]["accuracy"] == metrics["accuracy"]["fused"]
    assert rows[0]["mcnemar_p"] == 1
    for row in rows:
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert 0 <= row["pointing"] <= 1
        assert row["gflops"] > 0
        assert row["training_seconds"] > 0
        assert row["images_a_second"] > 0
    for row in rows[1:]:
        scores = read_table(repro / f"data/baselines/{row['system']}/scores.parquet", "scores")
        test = scores[scores["split"] == "test"]
        found = np.stack(test["probabilities"].to_list()).argmax(1)
        assert row["accuracy"] == pytest.approx((found == test["label"]).mean())
    table = pd.read_csv(repro / "data/comparison.csv")
    assert table["system"].tolist() == [row["system"] for row in rows]


def test_dvc_shows_metrics_plots_and_experiments(repro: Path) -> None:
    dvc(repro, "repro")
    subprocess.run(["git", "add", "-A"], cwd=repro, check=True)
    identity = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*identity, "commit", "-qm", "run"], cwd=repro, check=True)
    metrics = json.loads(dvc(repro, "metrics", "show", "--json"))
    assert "accuracy" in json.dumps(metrics)
    page = dvc(repro, "plots", "show", "-o", "page")
    assert "index.html" in page
    html = (repro / "page/index.html").read_text()
    for title in (
        "Validation accuracy",
        "Training loss",
        "Ablation",
        "Confusion",
        "random_01.jpg",
        "worst_12.jpg",
    ):
        assert title in html
    ran = dvc(repro, "exp", "run", "-S", "fusion.rule=mean", "-n", "paper")
    assert [name for name in STAGES if f"Running stage '{name}'" in ran] == [
        "check_params",
        "fuse",
        "doubt_labels",
        "evaluate",
        "draw_examples",
        "export_bundle",
        "compare",
        "report",
    ]
    experiments = dvc(repro, "exp", "show", "--csv")
    assert "paper" in experiments
    assert "accuracy.fused" in experiments
    changed = json.loads(dvc(repro, "params", "diff", "--json"))
    assert "fusion.rule" in json.dumps(changed)
    dvc(repro, "metrics", "diff")


@pytest.mark.parametrize(
    ("section", "value", "stage", "message"),
    [
        ("filter", {"threshold": 1.5}, "filter_patches", "filter.threshold"),
        ("filter", {"treshold": 0.5}, "filter_patches", "filter.treshold"),
        ("filter", {"threshold": "high"}, "filter_patches", "filter.threshold"),
        ("fusion", {"step": 0.1, "folds": 1}, "fuse", "fusion.folds"),
        ("fussion", {}, "fuse", "fussion"),
    ],
)
def test_bad_params_stop_with_one_line(
    repro: Path, tmp_path: Path, section: str, value: dict, stage: str, message: str
) -> None:
    params = small_params()
    params[section] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    environment = {**os.environ, "OPAM_PARAMS": str(path)}
    done = subprocess.run(
        [PYTHON, f"stages/{stage}.py"],
        cwd=repro,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
