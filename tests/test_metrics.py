from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import f1_score, top_k_accuracy_score

from opam.evaluation.metrics import (
    ablation_row,
    accuracy,
    balanced_accuracy,
    bootstrap_interval,
    box_iou,
    calibration_error,
    corloc,
    macro_f1,
    mcnemar_p,
    part_locations,
    wilson_interval,
)


def predictions(images: int = 80, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    probabilities = rng.dirichlet(np.ones(classes), images)
    probabilities[np.arange(images), labels] += rng.uniform(0, 0.6, images)
    return probabilities / probabilities.sum(1, keepdims=True), labels


@pytest.mark.parametrize("top", [1, 2, 5, 7])
def test_accuracy_is_scikit_learn_s(top: int) -> None:
    probabilities, labels = predictions()
    expected = 1.0
    if top < 7:
        expected = top_k_accuracy_score(labels, probabilities, k=top, labels=np.arange(7))
    assert accuracy(probabilities, labels, top) == pytest.approx(expected)


def test_more_places_than_classes_are_all_places() -> None:
    probabilities, labels = predictions(classes=3)
    assert accuracy(probabilities, labels, top=5) == 1


def test_macro_f1_by_its_definition() -> None:
    probabilities, labels = predictions()
    predicted = probabilities.argmax(1)
    scores = []
    for label in range(7):
        hits = int(((predicted == label) & (labels == label)).sum())
        wrong = int(((predicted == label) != (labels == label)).sum())
        scores.append(2 * hits / (2 * hits + wrong) if hits + wrong else 0.0)
    assert macro_f1(probabilities, labels) == pytest.approx(np.mean(scores))
    assert macro_f1(probabilities, labels) == f1_score(labels, predicted, average="macro")


def test_calibration_error_by_hand() -> None:
    # Two bins: confidence 0.3 and 0.4, one right; confidence 0.8 and 1.0, both right.
    probabilities = np.array(
        [
            (0.3, 0.25, 0.25, 0.2),
            (0.4, 0.2, 0.2, 0.2),
            (0.8, 0.1, 0.1, 0.0),
            (1.0, 0.0, 0.0, 0.0),
        ]
    )
    labels = np.array([0, 1, 0, 0])
    expected = 0.5 * abs(0.5 - 0.35) + 0.5 * abs(1 - 0.9)
    assert calibration_error(probabilities, labels, bins=2) == pytest.approx(expected)


def test_calibration_error_by_loops_over_bins() -> None:
    probabilities, labels = predictions()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for bin_ in range(15):
        within = (confidence >= bin_ / 15) & (confidence < (bin_ + 1) / 15)
        if within.any():
            gap = abs(right[within].mean() - confidence[within].mean())
            expected += within.mean() * gap
    assert calibration_error(probabilities, labels) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_interval_is_scipy_s_percentile_bootstrap(share: float) -> None:
    right = np.random.default_rng(0).random(400) < share
    low, high = bootstrap_interval(right, 4000, seed=0)
    expected = bootstrap(
        (right,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert low == pytest.approx(expected.low, abs=0.008)
    assert high == pytest.approx(expected.high, abs=0.008)
    assert low <= right.mean() <= high


def test_the_interval_is_seeded_and_closed_for_one_value() -> None:
    right = np.arange(50) % 3 == 0
    assert bootstrap_interval(right, 200, 3) == bootstrap_interval(right, 200, 3)
    assert bootstrap_interval(right, 200, 3) != bootstrap_interval(right, 200, 4)
    assert bootstrap_interval(np.ones(9, dtype=bool), 200, 0) == (1.0, 1.0)


def test_a_row_holds_the_figures_it_is_named_for() -> None:
    probabilities, labels = predictions()
    row = ablation_row(probabilities, labels, 200, 0)
    assert row["accuracy"] == accuracy(probabilities, labels)
    assert row["top5"] == accuracy(probabilities, labels, 5)
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert row["macro_f1"] == macro_f1(probabilities, labels)
    assert row["calibration_error"] == calibration_error(probabilities, labels)


def test_balanced_accuracy_counts_classes_alike() -> None:
    labels = np.repeat([0, 2], [500, 5])  # of class 1 there is none
    correct = np.r_[np.ones(500, dtype=bool), [True, False, False, False, False]]
    assert correct.mean() > 0.99
    assert balanced_accuracy(correct, labels) == pytest.approx((1 + 0.2) / 2)


@pytest.mark.parametrize(
    ("right", "count", "expected"),
    [
        (4, 5, (0.3755, 0.9638)),  # as in tables of the interval
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (263, 500, (0.4822, 0.5694)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_intervals_of_few_photographs(
    right: int, count: int, expected: tuple[float, float]
) -> None:
    low, high = wilson_interval(np.array([right]), np.array([count]))
    assert (low[0], high[0]) == pytest.approx(expected, abs=1e-4)
    if count:
        found = binomtest(right, count).proportion_ci(method="wilson")
        assert (low[0], high[0]) == pytest.approx((found.low, found.high), abs=1e-6)


@pytest.mark.parametrize(("only", "other"), [(1, 5), (5, 1), (0, 8), (3, 3), (0, 0), (2, 11)])
def test_mcnemar_is_the_two_sided_binomial(only: int, other: int) -> None:
    correct = np.array([True] * only + [False] * other + [True] * 4 + [False] * 2)
    other_correct = np.array([False] * only + [True] * other + [True] * 4 + [False] * 2)
    total = only + other
    tail = sum(comb(total, k) for k in range(min(only, other) + 1)) / 2**total
    assert mcnemar_p(correct, other_correct) == pytest.approx(min(1.0, 2 * tail))


def box(draw: st.DrawFn) -> tuple[int, int, int, int]:
    x0, x1 = sorted(draw(st.tuples(st.integers(0, 8), st.integers(0, 8))))
    y0, y1 = sorted(draw(st.tuples(st.integers(0, 8), st.integers(0, 8))))
    return x0, y0, x1, y1


@settings(max_examples=200, deadline=None)
@given(st.composite(box)(), st.composite(box)())
def test_iou_by_counting_pixels(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    def pixels(x0: int, y0: int, x1: int, y1: int) -> set[tuple[int, int]]:
        return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}

    union = len(pixels(*one) | pixels(*other))
    expected = len(pixels(*one) & pixels(*other)) / union if union else 0.0
    assert box_iou(np.array([one]), np.array([other]))[0] == pytest.approx(expected)


def test_corloc_counts_half_as_found() -> None:
    assert corloc(np.array([0.5, 0.49, 0.9, 0.0])) == 0.5
    assert corloc(np.array([0.5, 0.49, 0.9, 0.0]), threshold=0.9) == 0.25


def test_part_locations_by_hand() -> None:
    parts = pd.DataFrame(
        [
            ("a", 0, 0, 10, 10, 0),
            ("a", 10, 0, 20, 10, 1),
            ("b", 0, 0, 10, 10, 0),
            ("b", 10, 0, 20, 10, 1),
            ("c", 0, 0, 10, 10, 0),
            ("c", 10, 0, 20, 10, 0),
        ],
        columns=["image_id", "x0", "y0", "x1", "y1", "cluster"],
    )
    keypoints = pd.DataFrame(
        [
            ("a", "beak", 3.0, 3.0, True),
            ("b", "beak", 10.0, 3.0, True),  # x1 is outside the first box, x0 in the second
            ("c", "beak", 15.0, 3.0, True),  # held by one of two parts of cluster 0
            ("a", "tail", 15.0, 5.0, True),
            ("b", "tail", 15.0, 5.0, False),
        ],
        columns=["image_id", "part", "x", "y", "visible"],
    )
    table = part_locations(parts, keypoints)
    assert list(table.columns) == ["cluster", "location", "photographs", "share"]
    rows = {(c, name): (n, share) for c, name, n, share in table.itertuples(index=False)}
    assert rows[0, "beak"] == (3, pytest.approx(2 / 3))
    assert rows[1, "beak"] == (2, pytest.approx(1 / 2))
    assert rows[0, "tail"] == (1, 0)
    assert rows[1, "tail"] == (1, 1)
    assert len(rows) == 4


def test_no_visible_location_gives_an_empty_table() -> None:
    parts = pd.DataFrame(
        [("a", 0, 0, 9, 9, 0)], columns=["image_id", "x0", "y0", "x1", "y1", "cluster"]
    )
    keypoints = pd.DataFrame(
        [("a", "beak", 3.0, 3.0, False)], columns=["image_id", "part", "x", "y", "visible"]
    )
    table = part_locations(parts, keypoints)
    assert table.empty
    assert list(table.columns) == ["cluster", "location", "photographs", "share"]
