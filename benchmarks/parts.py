"""Part selection on one core: photographs a second, beside a plain loop over all pairs."""

import time
from collections.abc import Callable
from itertools import combinations

import cv2
import numpy as np

from opam.method.parts import PartParams, score_parts, select_parts

CANDIDATES = 200
HEIGHT, WIDTH = 375, 500
OBJECT = np.array([60, 50, 420, 330])
LOOPED = 300
"""Pairs that the plain loop scores; its time for all pairs is that times their number."""


def photograph(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth saliency map, and candidates that all qualify."""
    generator = np.random.default_rng(seed)
    coarse = generator.random((12, 12), dtype=np.float32)
    saliency = cv2.resize(coarse, (WIDTH, HEIGHT))
    saliency = (saliency - saliency.min()) / (saliency.max() - saliency.min())
    corner = generator.integers([60, 50], [300, 220], (CANDIDATES, 2))
    far = np.minimum(corner + generator.integers(100, 200, (CANDIDATES, 2)), OBJECT[2:])
    return saliency, np.concatenate([corner, far], axis=1)


def seconds(work: Callable[[], object], times: int) -> float:
    """Of one call; the best of three rounds."""
    rounds = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(times):
            work()
        rounds.append((time.perf_counter() - started) / times)
    return min(rounds)


def measure() -> list[dict[str, object]]:
    """Rows for 2, 3 and 4 parts; the ratio of the first is to the plain loop."""
    cv2.setNumThreads(1)
    least, inside = 0.05, PartParams.model_fields["min_inside"].default
    saliency, boxes = photograph(0)

    def select(parts: int) -> None:
        chosen = select_parts(saliency, OBJECT, boxes, parts, least, inside, CANDIDATES)
        assert chosen.fallback == "none"

    def loop() -> None:
        for first, second in list(combinations(range(CANDIDATES), 2))[:LOOPED]:
            score_parts(saliency, OBJECT, boxes[[first, second]].tolist())

    pairs = CANDIDATES * (CANDIDATES - 1) // 2
    two, plain = seconds(lambda: select(2), 20), seconds(loop, 1) / LOOPED * pairs
    rows: list[dict[str, object]] = [
        {
            "what": f"2 parts of {CANDIDATES} candidates; a plain loop over all pairs",
            "value": f"{1 / two:.0f} photographs a second; {plain:.0f} s a photograph",
            "ratio": round(plain / two),
            "goal": "300 a second; 100",
        }
    ]
    for parts in (3, 4):
        started = time.perf_counter()
        select(parts)
        taken = time.perf_counter() - started
        rows.append(
            {
                "what": f"{parts} parts of {CANDIDATES} candidates",
                "value": f"{taken:.2f} s a photograph",
                "ratio": round(taken / two),
            }
        )
    return rows


if __name__ == "__main__":
    for row in measure():
        print(row)
