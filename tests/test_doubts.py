"""Labels that are wrong are found by what was answered without having seen them."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from small_project import PYTHON, ROOT

from opam.evaluation.doubts import doubtful_labels, most_alike
from opam.method.fusion import FUSED
from opam.pipeline.artifacts import write_json, write_table


def test_wrong_labels_come_first() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 10, 600)
    logits = generator.normal(size=(600, 10)) + 4.0 * np.eye(10)[truth]
    said = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = truth.copy()
    changed = generator.choice(600, 30, replace=False)
    labels[changed] = (labels[changed] + generator.integers(1, 10, 30)) % 10
    found = doubtful_labels(said, labels)
    assert np.isin(changed, found["row"][:48]).mean() >= 0.8
    assert (found["suggested"] != labels[found["row"]]).all()
    margin = found["own_probability"] - found["suggested_probability"]
    assert margin.is_monotonic_increasing


def test_a_class_that_is_told_badly_doubts_less() -> None:
    # Of class 1 the classifier is never sure: 0.55 for it is as sure as it gets.
    said = np.array([[0.95, 0.05], [0.9, 0.1], [0.45, 0.55], [0.45, 0.55], [0.3, 0.7], [0.6, 0.4]])
    found = doubtful_labels(said, np.array([0, 0, 1, 1, 0, 1]))
    by_row = found.set_index("row")["above_threshold"]
    assert by_row.to_dict() == {4: True, 5: False}  # 0.6 for class 0 is not sure of a class 0


def test_nothing_is_doubted_where_all_agree_or_nothing_is_there() -> None:
    assert doubtful_labels(np.eye(3), np.arange(3)).empty
    assert doubtful_labels(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)).empty


def test_the_most_alike_are_alike_in_all_classes_and_not_in_the_first_alone() -> None:
    said = np.array([[0.9, 0.09, 0.01], [0.9, 0.01, 0.09], [0.7, 0.27, 0.03], [0.9, 0.09, 0.01]])
    assert most_alike(said, 0, np.arange(4), 2).tolist() == [3, 2]
    assert most_alike(said, 0, np.array([1, 2]), 9).tolist() == [2, 1]
    assert most_alike(said, 0, np.array([0]), 9).tolist() == []
    # Literally: logarithms less their mean over the classes, and Euclid's distance.
    centred = np.log(said) - np.log(said).mean(1, keepdims=True)
    distances = np.linalg.norm(centred - centred[1], axis=1)
    others = [row for row in np.argsort(distances, kind="stable").tolist() if row != 1]
    assert most_alike(said, 1, np.arange(4), 3).tolist() == others


CLASSES = ["owl", "wren"]


def scores(ids: list[str], split: str, labels: list[int], said: list[float]) -> pd.DataFrame:
    """Rows of a table of scores; ``said`` of wren."""
    table = pd.DataFrame({"image_id": ids, "split": split, "label": labels})
    return table.assign(probabilities=[np.float32([1 - each, each]) for each in said])


@pytest.mark.parametrize("by", ["discriminants", "training", "training without probes"])
def test_the_stage_lists_photographs_of_train_and_val_never_of_test(
    tmp_path: Path, by: str
) -> None:
    val = scores(["v0", "v1"], "val", [0, 1], [0.2, 0.3])
    test = scores(["t0"], "test", [0], [0.99])
    train = scores(["a", "b", "c"], "train", [0, 1, 0], [0.1, 0.8, 0.9])
    networks = pd.concat([train, val, test] if by == "discriminants" else [val, test])
    folder = tmp_path / "data/scores"
    write_table(folder / "original.parquet", "scores", networks)
    write_table(folder / "object.parquet", "scores", networks)
    write_table(folder / "clusters.parquet", "cluster_scores", networks.assign(cluster=0))
    every = pd.concat([train, val, test])
    of_probes = [every.assign(name=name) for name in ("original", "object", "cluster 0")]
    probes = pd.concat(of_probes) if by == "training" else every[:0].assign(name="")
    write_table(folder / "probes.parquet", "probe_scores", probes)
    manifest = every[["image_id", "split", "label"]].assign(path=every["image_id"] + ".jpg")
    for name, value in {
        "sha256": "0",
        "class_name": "",
        "width": 1,
        "height": 1,
        "group": "0",
    }.items():
        manifest[name] = value
    for name in ("gt_x0", "gt_y0", "gt_x1", "gt_y1"):
        manifest[name] = None
    write_table(tmp_path / "data/manifest.parquet", "manifest", manifest)
    write_json(tmp_path / "data/classes.json", CLASSES)
    names = ["original", "object", "cluster 0"]
    weights = {FUSED: dict.fromkeys(names, 1 / 3)}
    write_json(tmp_path / "data/fusion.json", {"rule": "product", "weights": weights})
    params = {"fusion": {"scores": "networks"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))

    done = subprocess.run(
        [PYTHON, str(ROOT / "stages/doubt_labels.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(tmp_path / "data/doubtful_labels.csv")
    expected = ["v1"] if by == "training without probes" else ["c", "v1"]
    assert found["image_id"].tolist() == expected
    assert found["suggested"].tolist()[-1] == "owl"
    assert found["label"].tolist()[-1] == "wren"
    assert found["path"].tolist()[-1] == "v1.jpg"
    looked_at = 2 if by == "training without probes" else 5
    assert f"labels: {looked_at} looked at, {len(expected)} doubted" in done.stdout
