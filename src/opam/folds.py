"""Stratified folds for cross-validation, whatever the number of images of a class."""

import numpy as np


def fold_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A stratified fold 0..folds-1 for each image: classes are dealt out in turn, shuffled."""
    order = np.random.default_rng(seed).permutation(len(labels))
    dealt = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[dealt] = np.arange(len(labels)) % folds
    return fold
