"""Folds and held-out shares: those of old where each photograph is its own group, else whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opam.method.fusion import search_weights
from opam.photographs.folds import fold_of, validation_mask
from opam.pipeline.errors import OpamError

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)


def old_fold_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """As it was before groups."""
    order = np.random.default_rng(seed).permutation(len(labels))
    dealt = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[dealt] = np.arange(len(labels)) % folds
    return fold


def old_validation_mask(labels: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    """As it was before groups."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(val_fraction * len(members))), len(members) - 1)
        mask[members[:count]] = True
    return mask


@given(LABELS, st.integers(2, 7), st.integers(0, 9))
def test_folds_of_single_photographs_are_those_of_old(
    labels: np.ndarray, folds: int, seed: int
) -> None:
    expected = old_fold_of(labels, folds, seed)
    np.testing.assert_array_equal(fold_of(labels, folds, seed), expected)
    names = np.array([f"{number}.jpg" for number in range(len(labels))])
    np.testing.assert_array_equal(fold_of(labels, folds, seed, names), expected)


@given(LABELS, st.floats(0.05, 0.9), st.integers(0, 9))
def test_val_of_single_photographs_is_that_of_old(
    labels: np.ndarray, share: float, seed: int
) -> None:
    expected = old_validation_mask(labels, share, seed)
    np.testing.assert_array_equal(validation_mask(labels, share, seed), expected)
    names = np.array([f"{number}.jpg" for number in range(len(labels))])
    np.testing.assert_array_equal(validation_mask(labels, share, seed, names), expected)


@st.composite
def in_groups(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and groups each of one class, in any order."""
    sizes = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=25))
    labels = np.repeat([label for label, _ in sizes], [size for _, size in sizes])
    groups = np.repeat(np.arange(len(sizes)), [size for _, size in sizes])
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(labels))
    return labels[order], np.array([f"group {each}" for each in groups[order]])


@given(in_groups(), st.integers(2, 7), st.integers(0, 9))
def test_a_group_is_in_one_fold_and_a_class_in_several(
    drawn: tuple[np.ndarray, np.ndarray], folds: int, seed: int
) -> None:
    labels, groups = drawn
    fold = fold_of(labels, folds, seed, groups)
    np.testing.assert_array_equal(fold, fold_of(labels, folds, seed, groups))
    for group in set(groups):
        assert len(set(fold[groups == group])) == 1
    for label in set(labels):
        own = labels == label
        count = len(set(groups[own]))
        assert len(set(fold[own])) == min(count, folds)
        # No fold has more than another by over the largest group.
        held = np.bincount(fold[own], minlength=folds)
        largest = max(np.unique(groups[own], return_counts=True)[1])
        assert held.max() - held.min() <= largest
    if len(set(groups)) >= folds:
        assert set(fold) == set(range(folds))


@given(in_groups(), st.floats(0.05, 0.9), st.integers(0, 9))
def test_val_takes_whole_groups_about_as_many_as_asked(
    drawn: tuple[np.ndarray, np.ndarray], share: float, seed: int
) -> None:
    labels, groups = drawn
    mask = validation_mask(labels, share, seed, groups)
    np.testing.assert_array_equal(mask, validation_mask(labels, share, seed, groups))
    for group in set(groups):
        assert len(set(mask[groups == group])) == 1
    for label in set(labels):
        own = labels == label
        names, sizes = np.unique(groups[own], return_counts=True)
        held = int(mask[own].sum())
        if len(names) == 1:
            assert held == 0
        else:
            assert 0 < held < own.sum()
            assert abs(held - share * own.sum()) <= max(sizes) + 1


def test_groups_across_classes_stay_whole_and_leave_each_class_something() -> None:
    days = np.repeat(np.arange(6), 20)  # on each day, each of four classes
    labels = np.tile(np.arange(4), 30)
    fold = fold_of(labels, 3, 0, days)
    assert [len(set(fold[days == day])) for day in range(6)] == [1] * 6
    assert np.bincount(fold).tolist() == [40, 40, 40]
    mask = validation_mask(labels, 0.2, 0, days)
    assert mask.sum() == 20
    assert len(set(days[mask])) == 1
    chain = validation_mask(np.array([0, 1, 1, 2, 2, 0]), 0.9, 0, np.array([0, 0, 1, 1, 2, 2]))
    for label in range(3):
        assert not chain[np.array([0, 1, 1, 2, 2, 0]) == label].all()


def test_fewer_groups_than_folds_are_fewer_folds_and_a_single_one_is_told() -> None:
    scores = np.full((2, 6, 2), 0.5)
    labels, groups = np.array([0, 1] * 3), np.array(["a", "b"] * 3)
    assert len(search_weights(scores, labels, 3, 0.5, 0, "mean", groups).fold_weights) == 2
    assert len(search_weights(scores, labels, 2, 0.5, 0, "mean", groups).fold_weights) == 2
    with pytest.raises(OpamError, match=r"fusion\.folds: the 6 images are all of one group"):
        search_weights(scores, labels, 2, 0.5, 0, "mean", np.repeat("a", 6))
    with pytest.raises(OpamError, match=r"fusion\.folds: 7 folds of 6 images"):
        search_weights(scores, labels, 7, 0.5, 0, "mean", groups)
