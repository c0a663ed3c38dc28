"""Part alignment (paper, section III-D): which of a photograph's parts show the same thing.

Neurons u, v of the penultimate convolution are alike as their weights w are,

    S(u, v) = w_u . w_v / (|w_u| |w_v|),

and fall into m clusters by spectral clustering on S. A part belongs to the cluster of the greatest
sum of activations.

>>> clusters = cluster_neurons(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), 2, seed=0)
>>> clusters.tolist()
[0, 0, 1]
>>> activations = np.array([[0.1, 0.2, 0.9], [0.8, 0.7, 0.1]])  # of two parts
>>> assign_parts(activations, clusters).tolist()
[1, 0]
"""

from typing import Literal

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from opam.pipeline.errors import OpamError
from opam.pipeline.params import Params


class AlignmentParams(Params):
    """Clusters of neurons, which give parts their meaning."""

    clusters: int = Field(2, ge=1, description="clusters of neurons, m in the paper")
    convolution: str | None = Field(
        None,
        description="the convolution, or linear layer of a transformer, whose neurons are "
        "clustered; null: the penultimate one",
    )
    similarity: Literal["weights", "contrast"] = Field(
        "weights",
        description="neurons are alike that have like weights, as in the paper, or, contrast, that "
        "prefer the same one of a photograph's parts, which tells the parts apart more often",
    )


SINGLE_PART = (
    "alignment.similarity: contrast compares the parts of a photograph, and parts.n_parts is 1; "
    "set alignment.clusters to 1, or similarity to weights"
)
"""What is wrong where there is nothing to compare."""


def contrast(responses: np.ndarray) -> np.ndarray:
    """Which of a photograph's parts each neuron prefers, and by how much.

    Weights say what a neuron looks for, not where that is found: neurons for one class's head and
    another's wing may have like weights. Clusters of contrasts are those that tell the parts of a
    photograph apart.

    Args:
        responses: float N x P x C, spatial mean of each neuron on the P parts of N photographs.

    Returns:
        float64 C x (N P): how far a neuron's response to each part is from its mean over the
        parts of the same photograph; a row a neuron, for `cluster_neurons`.

    Raises:
        OpamError: one part a photograph, which no neuron can prefer.
    """
    if responses.shape[1] == 1:
        raise OpamError(SINGLE_PART)
    responses = np.asarray(responses, dtype=np.float64)
    return (responses - responses.mean(1, keepdims=True)).reshape(-1, responses.shape[2]).T


def cosine_similarity(weights: np.ndarray) -> np.ndarray:
    """Cosine similarity of every pair of neurons' vectors; 0 with a zero vector.

    Args:
        weights: float C_out x ...; every row is one neuron's weights, or its `contrast`.

    Returns:
        float64 C_out x C_out, -1..1.
    """
    vectors = np.asarray(weights, dtype=np.float64).reshape(len(weights), -1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return np.clip(unit @ unit.T, -1, 1)


def cluster_neurons(weights: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Group neurons by spectral clustering on the cosine similarity of their vectors.

    Similarities are shifted from -1..1 to 0..1: cutting the negative ones off instead would
    leave neurons without any neighbour, and such a graph falls apart into its loners.

    Args:
        weights: float C_out x ...; every row is one neuron's weights, or its `contrast`.
        n_clusters: number of groups m.
        seed: of the clustering.

    Returns:
        int64 C_out, 0..m-1, numbered in order of first appearance.

    Raises:
        OpamError: more clusters than neurons.
    """
    from sklearn.cluster import SpectralClustering

    if n_clusters > len(weights):
        raise OpamError(
            f"alignment.clusters: {n_clusters} clusters of {len(weights)} neurons; lower it"
        )
    if n_clusters == 1:
        return np.zeros(len(weights), dtype=np.int64)
    clustering = SpectralClustering(n_clusters, affinity="precomputed", random_state=seed)
    labels = clustering.fit_predict((1 + cosine_similarity(weights)) / 2)
    _, first = np.unique(labels, return_index=True)
    order = np.argsort(np.argsort(first))
    return order[np.unique(labels, return_inverse=True)[1]].astype(np.int64)


def group_activations(activations: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """float64 P x m: for each part, the sum over each group's neurons of their spatial means."""
    groups = clusters.max() + 1
    return np.asarray(activations, dtype=np.float64) @ np.eye(groups)[clusters]


def assign_parts(activations: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Give each part its group.

    In the paper each group takes the part that excites it most. Where two groups ask for the
    same part, that leaves another one without a group; so here parts and groups are matched
    one to one, by the greatest sum of shares, a part's share of a group being its activation
    over that of all parts. Where each group already asks for another part, no matching has a
    greater sum, and the result is the paper's. Parts beyond the number of groups go to the
    group of their greatest share.

    Args:
        activations: float P x C, spatial mean of each neuron on each part, not negative.
        clusters: int C, group of each neuron.

    Returns:
        int64 P, group of each part.
    """
    sums = group_activations(activations, clusters)
    sums = sums - np.minimum(sums.min(0), 0)
    totals = sums.sum(0)
    shares = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
    assigned = shares.argmax(1)
    parts, groups = linear_sum_assignment(shares, maximize=True)
    assigned[parts] = groups
    return assigned.astype(np.int64)
