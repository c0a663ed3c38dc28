"""What the drawn data sets paint with."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike

SPLITS = ("train", "test")
OVERSAMPLING = 2
"""Pixels of the canvas a side of a pixel of the photograph."""


def to_draw(classes: int, train: int, test: int) -> Iterator[tuple[int, str, int]]:
    """Class, split and number within both of each photograph, given how many a class has."""
    for split, count in zip(SPLITS, (train, test), strict=True):
        for label in range(classes):
            for number in range(count):
                yield label, split, number


def generator(seed: int, label: int, split: str, number: int) -> np.random.Generator:
    """A photograph's own, so that neither order nor workers change anything."""
    return np.random.default_rng([seed, label, SPLITS.index(split), number])


def fill(canvas: np.ndarray, points: np.ndarray, colour: ArrayLike) -> None:
    """Fill a polygon of the canvas.

    Args:
        canvas: uint8 H x W or H x W x 3.
        points: float N x 2, x and y in pixels.
        colour: a value for each channel, 0..255.
    """
    fixed = np.rint(np.asarray(points) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], np.asarray(colour, dtype=float).tolist(), cv2.LINE_AA, shift=4)


def ellipse(centre: ArrayLike, axes: ArrayLike, angle: float = 0.0) -> np.ndarray:
    """Float64 40 x 2: an outline, turned by ``angle`` radians."""
    (x, y), (a, b) = np.asarray(centre, dtype=float), np.asarray(axes, dtype=float)
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack(
        [
            x + a * np.cos(t) * cos - b * np.sin(t) * sin,
            y + a * np.cos(t) * sin + b * np.sin(t) * cos,
        ],
        axis=1,
    )


def vary(colour: Sequence[int], rng: np.random.Generator, spread: float = 14) -> np.ndarray:
    """Float64 3, 0..255: a colour near ``colour``."""
    return np.clip(np.asarray(colour) + rng.normal(0, spread, 3), 0, 255)


def smooth_noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """Float32 H x W: noise of unit variance in ``cells`` x ``cells``, interpolated."""
    grid = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)
