"""Photographs of nothing that is known are told, and so many of the known as were accepted."""

import numpy as np
import pytest
import torch

from opam.engine.familiarity import fit_familiarity
from opam.networks.familiarity import Familiarity

WIDTH, CLASSES = 12, 6


def drawn(labels: np.ndarray, means: np.ndarray, seed: int) -> np.ndarray:
    """Features N x 2 x D about their classes' means; they vary more along some sides."""
    generator = np.random.default_rng(seed)
    spread = np.geomspace(0.2, 3.0, WIDTH)
    noise = generator.normal(size=(len(labels), 1, WIDTH)) * spread
    return (means[labels][:, None] + noise + np.zeros((1, 2, 1))).astype(np.float32) + 5.0


@pytest.fixture(scope="module")
def means() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2 * CLASSES, WIDTH))


@pytest.fixture(scope="module")
def fitted(means: np.ndarray) -> Familiarity:
    labels = np.arange(600) % CLASSES
    features = drawn(labels, means, 0)
    return fit_familiarity(lambda: np.split(features, 6), labels, CLASSES, seed=0)


def test_of_known_classes_as_many_look_strange_as_are_accepted(
    means: np.ndarray, fitted: Familiarity
) -> None:
    labels = np.arange(2000) % CLASSES
    found = fitted(torch.from_numpy(drawn(labels, means, 2)[:, 0])).numpy()
    assert ((found >= 0) & (found <= 1)).all()
    for accepted in (0.05, 0.2, 0.5):
        assert (found <= accepted).mean() == pytest.approx(accepted, abs=0.04)


def test_of_unknown_classes_more_do(means: np.ndarray, fitted: Familiarity) -> None:
    known = fitted(torch.from_numpy(drawn(np.arange(600) % CLASSES, means, 3)[:, 0])).numpy()
    labels = CLASSES + np.arange(600) % CLASSES
    unknown = fitted(torch.from_numpy(drawn(labels, means, 4)[:, 0])).numpy()
    assert (known[:, None] > unknown).mean() > 0.8


def test_it_does_not_depend_on_the_scale_of_features_or_on_pieces(means: np.ndarray) -> None:
    labels = np.arange(120) % CLASSES
    features = drawn(labels, means, 5)
    one = fit_familiarity(lambda: [features], labels, CLASSES, seed=0)
    other = fit_familiarity(lambda: np.split(8 * features, 4), labels, CLASSES, seed=0)
    new = torch.from_numpy(drawn(labels, means, 6)[:, 0])
    torch.testing.assert_close(one(new), other(8 * new), atol=0.02, rtol=0)


def test_photographs_of_one_group_are_judged_without_each_other(means: np.ndarray) -> None:
    labels = np.arange(24) % CLASSES  # few: one's own copy is a good part of a class
    features = drawn(labels, means, 7)
    twice, both = np.repeat(features, 2, axis=0), np.repeat(labels, 2)
    groups = np.repeat(np.arange(24), 2)
    together = fit_familiarity(lambda: [twice], both, CLASSES, seed=0, groups=groups)
    apart = fit_familiarity(lambda: [twice], both, CLASSES, seed=0)
    new = torch.from_numpy(drawn(np.arange(600) % CLASSES, means, 8)[:, 0])
    assert together(new).mean() == pytest.approx(0.5, abs=0.1)
    assert apart(new).mean() < 0.3  # each was judged by its own copy, and no new one has any


def test_a_photograph_is_as_familiar_as_the_less_familiar_of_two_scores(
    means: np.ndarray, fitted: Familiarity
) -> None:
    new = torch.from_numpy(drawn(np.arange(40) % (2 * CLASSES), means, 9)[:, 0])
    # Literally, of the very means: a cosine, and a squared distance to the centre less one to them.
    whitened = (new - fitted.centre) @ fitted.whitening
    middles = fitted.lengths[:, None] * fitted.directions
    cosine = torch.cosine_similarity(whitened[:, None], middles[None], dim=2).amax(1)
    distances = (whitened[:, None] - middles[None]).square().sum(2)
    relative = (whitened.square().sum(1, keepdim=True) - distances).amax(1) / 2
    standardised = (torch.stack([cosine, relative], 1) - fitted.mean) / fitted.spread
    least = standardised.amin(1)
    expected = (fitted.known[None] <= least[:, None]).float().mean(1)
    torch.testing.assert_close(fitted(new), expected, atol=0.005, rtol=0)


def test_a_class_of_one_photograph_judges_nobody() -> None:
    features = np.random.default_rng(0).normal(size=(9, 1, 3)).astype(np.float32)
    labels = np.array([0] * 4 + [1] * 4 + [2])
    found = fit_familiarity(lambda: [features], labels, 4, seed=0)  # and of class 3 there is none
    assert len(found.known) == 8
    assert len(found.directions) == len(found.lengths) == 3
    assert found(torch.zeros(2, 3)).isfinite().all()
    alone = fit_familiarity(lambda: [features], np.arange(9), 9, seed=0)
    assert len(alone.known) == 0
    assert alone(torch.zeros(2, 3)).tolist() == [1.0, 1.0]  # nothing is called unknown
