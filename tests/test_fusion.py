import math
import subprocess
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_project import PYTHON, ROOT

from opam.evaluation.scores import read_scores
from opam.method.fusion import (
    BRANCHES,
    FUSED,
    PENALTY,
    PROBE,
    FusionParams,
    Rule,
    branch_shares,
    fuse,
    fuse_named,
    most_probable,
    search_weights,
    weight_grid,
)
from opam.photographs.folds import fold_of
from opam.pipeline.artifacts import GT_BOX, read_json, write_table
from opam.pipeline.errors import OpamError


def random_scores(images: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three branches of softmax scores, each right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    scores = rng.dirichlet(np.ones(classes), (3, images))
    scores[:, np.arange(images), labels] += rng.uniform(0, 1, (3, images))
    return (scores / scores.sum(2, keepdims=True)).astype(np.float32), labels


def literal_best(
    scores: np.ndarray, labels: np.ndarray, images: list[int], parts: int
) -> tuple[float, ...]:
    """The best weights of a mean by loops: accuracy, likelihood, nearness, in this order."""
    ranked = []
    for first, second in product(range(parts + 1), repeat=2):
        if first + second > parts:
            continue
        weights = (first / parts, second / parts, (parts - first - second) / parts)
        right, loss = 0, 0.0
        for image in images:
            fused = sum(
                w * branch[image].astype(float) for w, branch in zip(weights, scores, strict=True)
            )
            right += int(np.argmax(fused) == labels[image])
            loss -= np.log(max(float(fused[labels[image]]), 1e-12))
        distance = sum((w - 1 / 3) ** 2 for w in weights)
        ranked.append((-right, loss / len(images), distance, weights))
    return min(ranked)[-1]


@pytest.mark.parametrize("rule", ["mean", "product"])
def test_fuse_is_that_of_literal_loops(rule: Rule) -> None:
    scores, _ = random_scores(7, 4, 0)
    weights = (0.5, 0.2, 0.3)
    fused = fuse(scores, weights, rule)
    for image in range(7):
        own = scores[:, image].astype(float)
        expected = [
            sum(w * p for w, p in zip(weights, own[:, label], strict=True))
            if rule == "mean"
            else math.prod(p**w for w, p in zip(weights, own[:, label], strict=True))
            for label in range(4)
        ]
        np.testing.assert_allclose(fused[image], np.array(expected) / sum(expected), rtol=1e-6)


def test_a_product_stays_finite_where_a_probability_is_zero() -> None:
    scores = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    np.testing.assert_allclose(fuse(scores, [1, 1], "product"), [[0.5, 0.5]])
    assert fuse(scores, [9, 0], "product")[0, 0] == pytest.approx(1)


@pytest.mark.parametrize(("step", "points"), [(0.1, 66), (0.5, 6), (1.0, 3), (0.05, 231)])
def test_the_grid_holds_all_weights_that_sum_to_one(step: float, points: int) -> None:
    grid = weight_grid(3, step)
    assert grid.shape == (points, 3)
    np.testing.assert_allclose(grid.sum(1), 1)
    assert grid.min() >= 0
    np.testing.assert_allclose(grid / step, np.rint(grid / step), atol=1e-9)
    assert len(np.unique(grid, axis=0)) == points


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 20), st.integers(2, 5), st.integers(2, 4), st.integers(0, 10_000))
def test_the_search_is_that_of_literal_loops(
    images: int, classes: int, folds: int, seed: int
) -> None:
    scores, labels = random_scores(images, classes, seed)
    found = search_weights(scores, labels, folds, 0.25, seed, "mean")
    fold = fold_of(labels, folds, seed)
    everything = list(range(images))
    assert found.weights == pytest.approx(literal_best(scores, labels, everything, 4))
    right = 0
    for held_out in range(folds):
        rest = [image for image in everything if fold[image] != held_out]
        weights = literal_best(scores, labels, rest, 4)
        assert found.fold_weights[held_out] == pytest.approx(weights)
        own = [image for image in everything if fold[image] == held_out]
        hits = [
            int(np.argmax(np.tensordot(weights, scores[:, image], 1)) == labels[image])
            for image in own
        ]
        assert found.fold_accuracy[held_out] == pytest.approx(np.mean(hits))
        right += sum(hits)
    assert found.accuracy == pytest.approx(right / images)


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 40), st.integers(2, 5), st.integers(0, 10_000))
def test_no_other_powers_make_the_labels_more_probable(
    images: int, classes: int, seed: int
) -> None:
    scores, labels = random_scores(images, classes, seed)

    def loss(powers: np.ndarray) -> float:
        fused = fuse(scores, powers, "product")[np.arange(images), labels]
        return float(-np.log(fused).sum() + PENALTY * np.square(powers - 1 / 3).sum())

    found = most_probable(scores, labels)
    assert found.min() >= 0
    rng = np.random.default_rng(seed)
    near = np.maximum(found + rng.normal(0, 0.05, (30, 3)), 0)
    others = [*near, *rng.uniform(0, 3, (30, 3))]
    assert loss(found) <= min(map(loss, others)) + 1e-6


def test_powers_of_a_product_are_held_out_too() -> None:
    scores, labels = random_scores(24, 3, 5)
    found = search_weights(scores, labels, 4, 0.1, 0, "product")
    fold = fold_of(labels, 4, 0)
    for held_out in range(4):
        own = fold == held_out
        powers = most_probable(scores[:, ~own], labels[~own])
        assert found.fold_weights[held_out] == tuple(powers)
        right = fuse(scores[:, own], powers, "product").argmax(1) == labels[own]
        assert found.fold_accuracy[held_out] == pytest.approx(right.mean())
    assert found.weights == tuple(most_probable(scores, labels))


@pytest.mark.parametrize("power", [0.3, 1.0, 2.5])
def test_a_power_brings_back_what_was_flattened(power: float) -> None:
    """Labels drawn with known probabilities; what was made of them by a power is undone."""
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.ones(4), 4000)
    labels = np.array([rng.choice(4, p=row) for row in truth])
    shown = truth**power / (truth**power).sum(1, keepdims=True)
    assert most_probable(shown[None], labels) == pytest.approx(1 / power, rel=0.1)


def test_powers_stay_bounded_where_a_branch_is_always_right_or_always_wrong() -> None:
    certain = np.array([[[0.9, 0.1]] * 50])
    assert 1 < most_probable(certain, np.zeros(50, dtype=int))[0] < 3
    assert most_probable(certain, np.ones(50, dtype=int))[0] == 0


def test_a_product_knows_what_only_two_parts_together_tell() -> None:
    """The bill leaves two of four species, the wing bar two others; a mean is left with a tie."""
    labels = np.arange(80) % 4
    bill = np.where(np.arange(4) // 2 == labels[:, None] // 2, 0.4, 0.1)
    wing = np.where(np.arange(4) % 2 == labels[:, None] % 2, 0.4, 0.1)
    scores = np.stack([bill, wing])
    found = search_weights(scores, labels, 5, 0.1, 0, "product")
    assert found.accuracy == 1
    probable = fuse(scores, found.weights, "product")[np.arange(80), labels].mean()
    mean = search_weights(scores, labels, 5, 0.1, 0, "mean")
    assert probable > fuse(scores, mean.weights, "mean")[np.arange(80), labels].mean() + 0.2


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_the_one_branch_that_knows_gets_all_the_weight(branch: int) -> None:
    labels = np.arange(40) % 4
    scores = np.full((3, 40, 4), 0.25)
    scores[branch] = np.eye(4)[labels]
    expected = tuple(float(b == branch) for b in range(3))
    found = search_weights(scores, labels, 5, 0.1, 0, "mean")
    assert found.weights == expected
    assert found.fold_accuracy == (1.0,) * 5
    assert found.accuracy == 1.0


def test_equal_branches_get_weights_closest_to_equal() -> None:
    labels = np.arange(30) % 3
    one = np.eye(3)[labels] * 0.5 + 0.5 / 3
    found = search_weights(np.stack([one] * 3), labels, 3, 1 / 3, 0, "mean")
    assert found.weights == pytest.approx((1 / 3,) * 3)


def write_manifest(
    folder: Path, images: pd.DataFrame, labels: np.ndarray, group: Sequence[str] | pd.Series
) -> None:
    sizes = dict.fromkeys(("width", "height"), 9)
    boxes = {name: pd.array([None] * len(images), dtype="Int32") for name in GT_BOX}
    named = dict.fromkeys(("path", "sha256"), "") | {"class_name": "x"}
    table = images.assign(label=labels, group=group, **named, **sizes, **boxes)
    write_table(folder / "data/manifest.parquet", "manifest", table)


@pytest.mark.parametrize("rule", ["product", "mean"])
def test_the_stage_gives_the_weight_to_the_cluster_that_knows(rule: Rule, tmp_path: Path) -> None:
    """In a mean, as in the paper, all clusters count alike."""
    labels = np.arange(60) % 3
    rng = np.random.default_rng(0)
    noise = rng.dirichlet(np.ones(3), (3, 60))
    knows = noise[0] + 1.5 * np.eye(3)[labels]
    scores = [noise[1], noise[2], noise[0], knows / knows.sum(1, keepdims=True)]
    split = ["val"] * 40 + ["test"] * 20
    images = pd.DataFrame({"image_id": [f"{i:02}" for i in range(60)], "split": split})
    tables = [
        images.assign(label=labels.astype(np.int32), probabilities=list(each.astype(np.float32)))
        for each in scores
    ]
    folder = tmp_path / "data/scores"
    write_table(folder / "original.parquet", "scores", tables[0])
    write_table(folder / "object.parquet", "scores", tables[1])
    clusters = pd.concat(table.assign(cluster=k) for k, table in enumerate(tables[2:]))
    write_table(folder / "clusters.parquet", "cluster_scores", clusters)
    names = ["original", "object", "cluster 0", "cluster 1"]
    probes = pd.concat(
        table.assign(name=name) for name, table in zip(names, reversed(tables), strict=True)
    )
    write_table(folder / "probes.parquet", "probe_scores", probes)
    params = {"seed": 0, "fusion": {"rule": rule, "scores": "networks"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    write_manifest(tmp_path, images, labels, images["image_id"])
    subprocess.run([PYTHON, str(ROOT / "stages/fuse.py")], cwd=tmp_path, check=True)

    write_manifest(tmp_path, images, labels, ["one"] * 20 + ["other"] * 20 + ["test"] * 20)
    subprocess.run([PYTHON, str(ROOT / "stages/fuse.py")], cwd=tmp_path, check=True)
    assert len(read_json(tmp_path / "data/fusion.json")["folds"]) == 2  # not 5: one a group
    write_manifest(tmp_path, images, labels, ["one"] * 60)
    done = subprocess.run(
        [PYTHON, str(ROOT / "stages/fuse.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the 40 images are all of one group" in done.stderr
    write_manifest(tmp_path, images, labels, images["image_id"])
    subprocess.run([PYTHON, str(ROOT / "stages/fuse.py")], cwd=tmp_path, check=True)

    fusion = read_json(tmp_path / "data/fusion.json")
    assert fusion["rule"] == rule
    every = ["+".join(each) for count in (1, 2, 3) for each in combinations(BRANCHES, count)]
    assert [*fusion["weights"]] == [*fusion["accuracy"]] == every
    part, fused = fusion["weights"]["part"], fusion["weights"][FUSED]
    assert [*fused] == names
    assert [[*fold["weights"]] for fold in fusion["folds"]] == [[*fused]] * 5
    if rule == "mean":
        assert part == {"cluster 0": 0.5, "cluster 1": 0.5}
        assert fused["cluster 0"] == fused["cluster 1"] > 0
        assert sum(fused.values()) == pytest.approx(1)
    else:
        assert part["cluster 1"] > 3 * part["cluster 0"]
        assert fused["cluster 1"] > 3 * max(fused["original"], fused["object"], fused["cluster 0"])
    images, own = read_scores(folder)
    found = fuse_named(own, fused, rule)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert (found.argmax(1) == labels).mean() > (own["original"].argmax(1) == labels).mean()

    for scores, known in (
        ("probes", [name + PROBE for name in names]),
        ("all", [each for name in names for each in (name, name + PROBE)]),
    ):
        params["fusion"] = {"rule": rule, "scores": scores}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        subprocess.run([PYTHON, str(ROOT / "stages/fuse.py")], cwd=tmp_path, check=True)
        weights = read_json(tmp_path / "data/fusion.json")["weights"]
        assert sorted(weights[FUSED]) == sorted(known)
        # The probe of the whole photograph is the one that knows.
        assert weights["original"][names[0] + PROBE] == max(weights["original"].values())
        if rule == "product":
            assert weights[FUSED][names[0] + PROBE] == max(weights[FUSED].values())


def test_a_branch_counts_as_its_clusters_do_together() -> None:
    weights = {"original": 0.6, "object": 0.3, "cluster 0": 0.2, "cluster 1": 0.1}
    shares = branch_shares(weights)
    assert shares == pytest.approx({"original": 0.5, "object": 0.25, "part": 0.25})
    assert branch_shares(dict.fromkeys(weights, 0.0)) == dict.fromkeys(BRANCHES, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(6, 60), st.integers(1, 9), st.integers(0, 10_000))
def test_folds_are_even_over_all_and_over_each_class(
    folds: int, images: int, classes: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, images)
    fold = fold_of(labels, folds, seed)
    assert np.ptp(np.bincount(fold, minlength=folds)) <= 1
    for label in np.unique(labels):
        assert np.ptp(np.bincount(fold[labels == label], minlength=folds)) <= 1
    np.testing.assert_array_equal(fold, fold_of(labels, folds, seed))


def test_classes_of_one_image_do_not_stop_the_search() -> None:
    scores, _ = random_scores(10, 10, 0)
    found = search_weights(scores, np.arange(10), 5, 0.5, 0, "mean")
    assert len(found.fold_accuracy) == len(found.fold_weights) == 5


def test_fewer_images_than_folds_are_refused() -> None:
    scores, labels = random_scores(4, 2, 0)
    with pytest.raises(OpamError, match=r"fusion\.folds: 5 folds of 4 images"):
        search_weights(scores, labels, 5, 0.1, 0, "mean")


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"step": 0.0}, {"step": 1.5}])
def test_parameters_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FusionParams(**wrong)


def test_in_a_product_one_lucky_photograph_does_not_decide() -> None:
    """The first branch is right once more; the second says the truth with far more conviction."""
    labels = np.zeros(20, dtype=int)
    scores = np.empty((3, 20, 2))
    scores[0], scores[1], scores[2] = [0.51, 0.49], [0.9, 0.1], [0.5, 0.5]
    scores[1, 0] = [0.2, 0.8]
    assert search_weights(scores, labels, 4, 0.5, 0, "mean").weights == (1, 0, 0)
    assert search_weights(scores, labels, 4, 0.5, 0, "product").weights[1] > 0
