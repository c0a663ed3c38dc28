import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_project import ROOT

from opam.artifacts import read_json, read_table, write_table
from opam.errors import OpamError
from opam.fusion import (
    BRANCHES,
    Criterion,
    FusionParams,
    calibrate,
    fold_of,
    fuse,
    search_weights,
    temperature,
    weight_grid,
)


def random_scores(images: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three branches of softmax scores, each right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    scores = rng.dirichlet(np.ones(classes), (3, images))
    scores[:, np.arange(images), labels] += rng.uniform(0, 1, (3, images))
    return (scores / scores.sum(2, keepdims=True)).astype(np.float32), labels


def literal_calibrated(branch: np.ndarray, labels: np.ndarray, images: list[int]) -> np.ndarray:
    """All images' probabilities at the temperature of the given ones, by powers."""
    power = 1 / temperature(branch[images], labels[images])
    return np.stack([(own := row.astype(float) ** power) / own.sum() for row in branch])


def literal_best(
    scores: np.ndarray, labels: np.ndarray, images: list[int], parts: int, criterion: Criterion
) -> tuple[float, ...]:
    """The best weights by loops: accuracy and likelihood, the criterion first, then nearness."""
    scores = scores.astype(float)
    if criterion == "likelihood":
        scores = np.stack([literal_calibrated(branch, labels, images) for branch in scores])
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
        keys = [-right, loss / len(images)]
        ranked.append((*(keys if criterion == "accuracy" else keys[::-1]), distance, weights))
    return min(ranked)[-1]


def test_fuse_is_a_weighted_sum() -> None:
    scores, _ = random_scores(7, 4, 0)
    fused = fuse(scores, (0.5, 0.2, 0.3))
    for image in range(7):
        for label in range(4):
            expected = sum(
                w * float(scores[branch, image, label]) for branch, w in enumerate((0.5, 0.2, 0.3))
            )
            assert fused[image, label] == pytest.approx(expected)
    np.testing.assert_allclose(fused.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(("step", "points"), [(0.1, 66), (0.5, 6), (1.0, 3), (0.05, 231)])
def test_the_grid_holds_all_weights_that_sum_to_one(step: float, points: int) -> None:
    grid = weight_grid(3, step)
    assert grid.shape == (points, 3)
    np.testing.assert_allclose(grid.sum(1), 1)
    assert grid.min() >= 0
    np.testing.assert_allclose(grid / step, np.rint(grid / step), atol=1e-9)
    assert len(np.unique(grid, axis=0)) == points


@settings(max_examples=25, deadline=None)
@given(
    st.integers(6, 20),
    st.integers(2, 5),
    st.integers(2, 4),
    st.integers(0, 10_000),
    st.sampled_from(["accuracy", "likelihood"]),
)
def test_the_search_is_that_of_literal_loops(
    images: int, classes: int, folds: int, seed: int, criterion: Criterion
) -> None:
    scores, labels = random_scores(images, classes, seed)
    found = search_weights(scores, labels, folds, 0.25, seed, criterion)
    fold = fold_of(labels, folds, seed)
    everything = list(range(images))
    assert found.weights == pytest.approx(literal_best(scores, labels, everything, 4, criterion))
    right = 0
    for held_out in range(folds):
        rest = [image for image in everything if fold[image] != held_out]
        weights = literal_best(scores, labels, rest, 4, criterion)
        assert found.fold_weights[held_out] == pytest.approx(weights)
        own = [image for image in everything if fold[image] == held_out]
        answers = scores
        if criterion == "likelihood":
            answers = np.stack([literal_calibrated(branch, labels, rest) for branch in scores])
        hits = [
            int(np.argmax(np.tensordot(weights, answers[:, image], 1)) == labels[image])
            for image in own
        ]
        assert found.fold_accuracy[held_out] == pytest.approx(np.mean(hits))
        right += sum(hits)
    assert found.accuracy == pytest.approx(right / images)


@pytest.mark.parametrize("power", [0.3, 1.0, 2.5])
def test_a_temperature_brings_back_what_was_flattened(power: float) -> None:
    """Labels drawn with known probabilities; the temperature undoes a power of them."""
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.ones(4), 4000)
    labels = np.array([rng.choice(4, p=row) for row in truth])
    shown = truth**power / (truth**power).sum(1, keepdims=True)
    found = temperature(shown, labels)
    assert found == pytest.approx(power, rel=0.1)
    back = calibrate(shown[None], [power])[0]
    np.testing.assert_allclose(back, truth, atol=1e-6)


def test_a_temperature_is_the_best_of_many() -> None:
    scores, labels = random_scores(50, 4, 3)
    found = temperature(scores[0], labels)

    def loss(value: float) -> float:
        powers = scores[0].astype(float) ** (1 / value)
        own = powers[np.arange(50), labels] / powers.sum(1)
        return -float(np.log(own).mean())

    others = [loss(value) for value in np.geomspace(0.1, 10, 200)]
    assert loss(found) <= min(others) + 1e-6


def test_temperatures_stay_in_range_where_a_branch_is_always_right_or_always_wrong() -> None:
    certain = np.array([[0.9, 0.1]] * 5)
    assert temperature(certain, np.zeros(5, dtype=int)) == pytest.approx(0.1, rel=0.01)
    assert temperature(certain, np.ones(5, dtype=int)) == pytest.approx(10, rel=0.01)
    assert np.isfinite(calibrate(np.array([[[1.0, 0.0]]]), [0.1])).all()


def test_a_branch_that_is_right_but_unsure_keeps_its_say() -> None:
    """The same answers, once flattened: without a temperature the flat one would get nothing."""
    rng = np.random.default_rng(1)
    truth = rng.dirichlet(np.full(3, 0.3), (2, 300))
    joint = truth[0] * truth[1]
    joint /= joint.sum(1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in joint])
    flat = truth[1] ** 0.3 / (truth[1] ** 0.3).sum(1, keepdims=True)
    found = search_weights(np.stack([truth[0], flat]), labels, 5, 0.1, 0, "likelihood")
    assert found.temperatures[1] < found.temperatures[0]
    assert 0.3 <= found.weights[1] <= 0.7
    plain = search_weights(np.stack([truth[0], flat]), labels, 5, 0.1, 0, "accuracy")
    assert plain.temperatures == (1.0, 1.0)


@pytest.mark.parametrize("branch", [0, 1, 2])
def test_the_one_branch_that_knows_gets_all_the_weight(branch: int) -> None:
    labels = np.arange(40) % 4
    scores = np.full((3, 40, 4), 0.25)
    scores[branch] = np.eye(4)[labels]
    expected = tuple(float(b == branch) for b in range(3))
    found = search_weights(scores, labels, 5, 0.1, 0)
    assert found.weights == expected
    assert found.fold_accuracy == (1.0,) * 5
    assert found.accuracy == 1.0


def test_equal_branches_get_weights_closest_to_equal() -> None:
    labels = np.arange(30) % 3
    one = np.eye(3)[labels] * 0.5 + 0.5 / 3
    found = search_weights(np.stack([one] * 3), labels, 3, 1 / 3, 0)
    assert found.weights == pytest.approx((1 / 3,) * 3)


@pytest.mark.parametrize("criterion", ["likelihood", "accuracy"])
def test_the_stage_gives_the_parts_weight_to_the_cluster_that_knows(
    criterion: Criterion, tmp_path: Path
) -> None:
    """By accuracy, as in the paper, all clusters count alike."""
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
    params = {"seed": 0, "fusion": {"criterion": criterion}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    subprocess.run([sys.executable, str(ROOT / "stages/fuse.py")], cwd=tmp_path, check=True)

    fusion = read_json(tmp_path / "data/fusion.json")
    found = np.stack(read_table(folder / "part.parquet", "scores")["probabilities"].to_list())
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    branches = [[*each["weights"]] for each in fusion["combinations"]]
    assert branches == [list(each) for count in (1, 2, 3) for each in combinations(BRANCHES, count)]
    whole = fusion["combinations"][-1]
    assert whole == {"weights": fusion["weights"], "accuracy": fusion["accuracy"]}
    if criterion == "accuracy":
        assert fusion["clusters"] == {"weights": [0.5, 0.5], "temperatures": [1, 1]}
        np.testing.assert_allclose(found, (scores[2] + scores[3]) / 2, atol=1e-6)
        return
    assert fusion["clusters"]["weights"][1] > 0.8
    assert fusion["weights"]["part"] > 0.8
    alike = (scores[2] + scores[3]).argmax(1)
    assert (found.argmax(1) == labels).mean() >= (alike == labels).mean()


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
    found = search_weights(scores, np.arange(10), 5, 0.5, 0)
    assert len(found.fold_accuracy) == len(found.fold_weights) == 5


def test_fewer_images_than_folds_are_refused() -> None:
    scores, labels = random_scores(4, 2, 0)
    with pytest.raises(OpamError, match=r"fusion\.folds: 5 folds of 4 val images"):
        search_weights(scores, labels, 5, 0.1, 0)


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"step": 0.0}, {"step": 1.5}])
def test_parameters_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FusionParams(**wrong)


def test_by_likelihood_one_lucky_photograph_does_not_decide() -> None:
    """The first branch is right once more; the second says the truth with far more conviction."""
    labels = np.zeros(20, dtype=int)
    scores = np.empty((3, 20, 2))
    scores[0], scores[1], scores[2] = [0.51, 0.49], [0.9, 0.1], [0.5, 0.5]
    scores[1, 0] = [0.2, 0.8]
    by_accuracy = search_weights(scores, labels, 4, 0.5, 0)
    by_likelihood = search_weights(scores, labels, 4, 0.5, 0, "likelihood")
    assert by_accuracy.weights == (1, 0, 0)
    assert by_likelihood.weights[1] > 0
