"""Selective search: every core busy, and the same boxes with any number of workers."""

import os
import time

import cv2
import numpy as np
from joblib import Parallel, delayed

from opam.method.proposals import ProposalParams, propose

PHOTOGRAPHS = 24
PARAMS = ProposalParams.model_validate({"max_side": 256})


def photograph(seed: int) -> np.ndarray:
    """Coloured blobs of several sizes, uint8 375 x 500 x 3."""
    generator = np.random.default_rng(seed)
    layers = [
        cv2.resize(generator.random((side, side, 3), dtype=np.float32), (500, 375))
        for side in (4, 12, 48)
    ]
    return (np.mean(layers, axis=0) * 255).astype(np.uint8)


def measure() -> list[dict[str, object]]:
    """One row: the speed with a worker a core over that of one worker times the cores."""
    cores = os.cpu_count() or 1
    images = [photograph(seed) for seed in range(PHOTOGRAPHS)]
    speeds, found = [], []
    for workers in (1, cores):
        pool = Parallel(n_jobs=workers)
        pool(delayed(propose)(image, PARAMS) for image in images[:cores])  # starts the workers
        started = time.perf_counter()
        found.append(pool(delayed(propose)(image, PARAMS) for image in images))
        speeds.append(PHOTOGRAPHS / (time.perf_counter() - started))
    for one, many in zip(*found, strict=True):
        np.testing.assert_array_equal(one, many)
    return [
        {
            "what": f"selective search, {cores} workers; 1 worker",
            "value": f"{speeds[1]:.1f} photographs a second; {speeds[0]:.1f}",
            "ratio": round(speeds[1] / speeds[0] / cores, 2),
            "goal": 0.9,
        }
    ]


if __name__ == "__main__":
    for row in measure():
        print(row)
