import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opam.method.alignment import (
    assign_parts,
    cluster_neurons,
    contrast,
    cosine_similarity,
    group_activations,
)
from opam.pipeline.errors import OpamError


def planted(sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled weights of groups of neurons, each around a direction of its own, any length."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(36, len(sizes))))[0].T
    group = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    weights = directions[group] + 0.05 * rng.normal(size=(len(group), 36))
    weights *= rng.uniform(0.1, 10, (len(group), 1))
    return weights.reshape(-1, 4, 3, 3), group


def numbered_by_appearance(group: np.ndarray) -> list[int]:
    names: dict[int, int] = {}
    return [names.setdefault(int(label), len(names)) for label in group]


def test_cosine_similarity_by_loops() -> None:
    weights = np.random.default_rng(0).normal(size=(6, 2, 3, 3))
    weights[4] = 0
    similarity = cosine_similarity(weights)
    for i in range(6):
        for j in range(6):
            a, b = weights[i].ravel(), weights[j].ravel()
            lengths = np.sqrt((a * a).sum()) * np.sqrt((b * b).sum())
            expected = (a * b).sum() / lengths if lengths else 0.0
            assert similarity[i, j] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sizes", [[20, 20], [30, 8], [12, 15, 18], [10, 10, 10, 10]])
def test_planted_groups_are_recovered(sizes: list[int]) -> None:
    weights, group = planted(sizes)
    labels = cluster_neurons(weights, len(sizes), seed=0)
    assert labels.dtype == np.int64
    assert labels.tolist() == numbered_by_appearance(group)


@pytest.mark.parametrize("seed", range(5))
def test_two_clusters_are_the_normalised_laplacian_s_partition(seed: int) -> None:
    """Shi and Malik: the sign of the second eigenvector of I - D^-1/2 S D^-1/2."""
    weights, _ = planted([14, 14], seed)
    rows = weights.reshape(28, -1)
    similarity = np.zeros((28, 28))
    for i in range(28):
        for j in range(28):
            lengths = np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])
            similarity[i, j] = (1 + rows[i] @ rows[j] / lengths) / 2
    degree = similarity.sum(1)
    laplacian = np.eye(28) - similarity / np.sqrt(degree[:, None] * degree[None])
    second = np.linalg.eigh(laplacian)[1][:, 1] / np.sqrt(degree)
    expected = numbered_by_appearance(second > 0)
    assert cluster_neurons(weights, 2, seed=seed).tolist() == expected


def test_the_same_seed_gives_the_same_clusters() -> None:
    weights = np.random.default_rng(0).normal(size=(40, 18))
    first = cluster_neurons(weights, 3, seed=7)
    np.testing.assert_array_equal(first, cluster_neurons(weights, 3, seed=7))
    assert first[0] == 0
    assert set(first.tolist()) == {0, 1, 2}


def test_the_length_of_a_weight_vector_does_not_matter() -> None:
    weights, _ = planted([15, 15])
    scale = np.random.default_rng(1).uniform(0.01, 100, (30, 1, 1, 1))
    np.testing.assert_array_equal(
        cluster_neurons(weights, 2, seed=0), cluster_neurons(weights * scale, 2, seed=0)
    )


def test_neurons_without_weights_do_not_disturb_the_others() -> None:
    weights, group = planted([15, 15])
    weights[[3, 11]] = 0
    labels = cluster_neurons(weights, 2, seed=0)
    alive = np.setdiff1d(np.arange(30), [3, 11])
    assert numbered_by_appearance(labels[alive]) == numbered_by_appearance(group[alive])


def test_opposite_directions_are_two_clusters() -> None:
    weights = np.vstack([np.ones((6, 3)), -np.ones((6, 3))])
    weights += 0.01 * np.random.default_rng(0).normal(size=weights.shape)
    assert cluster_neurons(weights, 2, seed=0).tolist() == [0] * 6 + [1] * 6


def test_one_cluster_holds_all() -> None:
    assert cluster_neurons(np.ones((4, 2)), 1, seed=0).tolist() == [0] * 4


def test_more_clusters_than_neurons_are_refused() -> None:
    with pytest.raises(OpamError, match=r"alignment\.clusters: 5 clusters of 4 neurons"):
        cluster_neurons(np.ones((4, 2)), 5, seed=0)


def test_contrast_by_loops() -> None:
    responses = np.random.default_rng(0).random((3, 2, 5)).astype(np.float32)
    vectors = contrast(responses)
    assert vectors.shape == (5, 6)
    for neuron in range(5):
        for photograph in range(3):
            both = responses[photograph, :, neuron].astype(float)
            for part in range(2):
                expected = both[part] - (both[0] + both[1]) / 2
                assert vectors[neuron, 2 * photograph + part] == pytest.approx(expected)


def test_contrast_tells_parts_apart_where_like_weights_do_not() -> None:
    """Neurons for heads and for bodies, in two colours: weights are alike within a colour."""
    rng = np.random.default_rng(0)
    body, colour = np.repeat([0, 1, 0, 1], 8), np.repeat([0, 1], 16)
    weights = np.eye(2)[colour] + 0.05 * rng.normal(size=(32, 2))
    assert cluster_neurons(weights, 2, seed=0).tolist() == colour.tolist()
    # Each photograph has a colour, to which neurons of that colour respond more, and shows the
    # head in its first or in its second part.
    photographs = rng.integers(0, 2, 100)
    first = rng.integers(0, 2, 100)
    what = np.stack([first, 1 - first], 1)
    seen = 0.5 + (photographs[:, None, None] == colour)
    responses = seen * (what[:, :, None] == body) + 0.1 * rng.random((100, 2, 32))
    clusters = cluster_neurons(contrast(responses), 2, seed=0)
    assert clusters.tolist() == body.tolist()
    assigned = np.stack([assign_parts(each, clusters) for each in responses])
    np.testing.assert_array_equal(assigned, what)


def test_one_part_has_no_contrast() -> None:
    with pytest.raises(OpamError, match=r"parts\.n_parts is 1"):
        contrast(np.ones((3, 1, 5)))


def test_photographs_whose_parts_are_one_box_can_be_clustered() -> None:
    assert set(cluster_neurons(contrast(np.ones((3, 2, 6))), 2, seed=0).tolist()) <= {0, 1}


def literal_sums(activations: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    sums = np.zeros((len(activations), int(clusters.max()) + 1))
    for part in range(len(activations)):
        for neuron, group in enumerate(clusters):
            sums[part, group] += activations[part, neuron]
    return sums


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 4), st.integers(4, 12), st.integers(0, 10_000))
def test_the_paper_s_rule_where_it_is_one_to_one(groups: int, neurons: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    activations = rng.random((groups, neurons))
    clusters = np.concatenate([np.arange(groups), rng.integers(0, groups, neurons - groups)])
    sums = literal_sums(activations, clusters)
    np.testing.assert_allclose(group_activations(activations, clusters), sums)
    assigned = assign_parts(activations, clusters)
    assert sorted(assigned.tolist()) == list(range(groups))
    taken = [int(sums[:, group].argmax()) for group in range(groups)]
    if len(set(taken)) == groups:
        assert [int(assigned[part]) for part in taken] == list(range(groups))


def test_two_groups_that_want_one_part_are_settled_by_shares() -> None:
    # Part 0 excites both groups most; it holds 0.6 of group 0 and 0.9 of group 1.
    activations = np.array([[6.0, 90.0], [4.0, 10.0]])
    assert assign_parts(activations, np.array([0, 1])).tolist() == [1, 0]


def test_more_parts_than_groups_leave_each_group_one_part_and_the_rest_their_best() -> None:
    activations = np.array([[5.0, 1.0], [9.0, 2.0], [1.0, 8.0]])
    assert assign_parts(activations, np.array([0, 1])).tolist() == [0, 0, 1]


def test_fewer_parts_than_groups_take_different_groups() -> None:
    activations = np.array([[5.0, 1.0, 1.0], [1.0, 7.0, 1.0]])
    assert assign_parts(activations, np.array([0, 1, 2])).tolist() == [0, 1]


@pytest.mark.parametrize(
    "activations", [np.zeros((2, 4)), -np.ones((2, 4)), np.array([[-3.0, 1, 2, -1], [0, -2, 5, 1]])]
)
def test_silent_and_negative_neurons_still_give_each_part_a_group(activations: np.ndarray) -> None:
    assigned = assign_parts(activations, np.array([0, 0, 1, 1]))
    assert sorted(assigned.tolist()) == [0, 1]
