"""Crops cut from decoded photographs, from the original pixels to the network's in one go.

A crop is a box of the photograph seen the way the paper sees a whole image: scaled to
``resize`` x ``resize`` pixels, of which ``input_size`` x ``input_size`` are shown, at random
in training and in the centre in test. Both steps are one here: the shown part of the box is
computed first, so that nothing is blurred twice.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import cv2
import numpy as np
import pandas as pd
import torch

from opam.photographs.decoding.images import Photographs, read_image
from opam.pipeline.artifacts import BOX
from opam.pipeline.kept import digest_of

Read = Callable[[Any], np.ndarray]
"""A photograph by its path, uint8 H x W x 3, RGB: `Photographs`, say."""
FloatBox = tuple[float, float, float, float]
Made = TypeVar("Made")
AHEAD = 1 << 30
"""Bytes that wait ahead of the network, at most."""
HELD = 8
"""Photographs whose pixels are held while their crops are cut."""


def shown_box(box: Sequence[float], fraction: float, across: float, down: float) -> FloatBox:
    """The part of ``box`` that a crop of ``fraction`` of its sides shows.

    Args:
        box: x0, y0, x1, y1.
        fraction: side of the shown part over side of the box, 0..1.
        across: horizontal place of the shown part, 0 (left) to 1 (right).
        down: vertical place, 0 (top) to 1 (bottom).
    """
    x0, y0, x1, y1 = box
    width, height = (x1 - x0) * fraction, (y1 - y0) * fraction
    left = x0 + across * (x1 - x0 - width)
    top = y0 + down * (y1 - y0 - height)
    return left, top, left + width, top + height


def cut(
    image: np.ndarray, boxes: np.ndarray, size: int, mirrored: Sequence[bool] | None = None
) -> torch.Tensor:
    """Cut boxes, rounded to whole pixels, and resample each to ``size`` x ``size``.

    Bilinear where a side grows, the mean over the pixels' areas where it shrinks.

    Args:
        image: uint8 H x W x 3.
        boxes: float N x 4, in pixels; what lies outside the image is left away.
        size: side of a crop in pixels.
        mirrored: which crops are mirrored; None: none.

    Returns:
        uint8 N x 3 x size x size, channels last in memory.
    """
    height, width = image.shape[:2]
    crops = np.empty((len(boxes), size, size, 3), dtype=np.uint8)
    ends = np.floor(np.asarray(boxes, dtype=np.float64) + 0.5).astype(np.int64)
    for crop, (x0, y0, x1, y1) in zip(crops, ends.tolist(), strict=True):
        left, top = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        part = image[top : max(min(y1, height), top + 1), left : max(min(x1, width), left + 1)]
        columns, rows = min(size, part.shape[1]), min(size, part.shape[0])
        if part.shape[:2] != (rows, columns):
            part = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
        cv2.resize(part, (size, size), dst=crop, interpolation=cv2.INTER_LINEAR)
    if mirrored is not None:
        chosen = np.asarray(mirrored, dtype=bool)
        crops[chosen] = crops[chosen, :, ::-1]
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


class TrainingCrops:
    """Crops of a sample table, each at random place and mirror, or centred.

    Every random choice comes from (seed, epoch, row), so that the number of workers changes
    nothing.

    Args:
        samples: columns ``path, x0, y0, x1, y1, label, head`` (see `samples`).
        input_size: side of a crop in pixels.
        resize: side the box is scaled to; at least ``input_size``.
        seed_and_epoch: drawn from in training; None centres every crop.
        min_area: area of a random crop, over that of ``input_size`` in ``resize``, at least;
            drawn evenly from here to 1.
        read: gives the photographs.
    """

    def __init__(
        self,
        samples: pd.DataFrame,
        input_size: int,
        resize: int,
        seed_and_epoch: tuple[int, int] | None,
        min_area: float = 1.0,
        read: Read = read_image,
    ) -> None:
        self.paths = samples["path"].tolist()
        self.boxes = samples[BOX].to_numpy(np.float64)
        self.labels = samples["label"].to_numpy(np.int64)
        self.heads = samples["head"].to_numpy(np.int64)
        self.input_size = input_size
        self.fraction = input_size / resize
        self.seed_and_epoch = seed_and_epoch
        self.min_area = min_area
        self.read = read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int, int]:
        across, down, mirror, fraction = 0.5, 0.5, False, self.fraction
        if self.seed_and_epoch is not None:
            generator = np.random.default_rng([*self.seed_and_epoch, row])
            across, down = generator.random(2)
            mirror = bool(generator.random() < 0.5)
            fraction *= math.sqrt(generator.uniform(self.min_area, 1.0))
        box = shown_box(self.boxes[row], fraction, across, down)
        crops = cut(self.read(self.paths[row]), np.array([box]), self.input_size, [mirror])
        return crops[0], int(self.labels[row]), int(self.heads[row])


class CropBatches:
    """Crops of many photographs in batches: item i is uint8 B x 3 x size x size, the last smaller.

    Batches run over the photographs' borders.

    Args:
        paths: one photograph an item, by whatever ``read`` takes.
        boxes: one N_i x 4 array an item, in pixels of the photograph; with ``unit``, in 0..1 of
            its sides. N_i may be 0.
        size: side of a crop in pixels.
        batch_size: crops a batch, B.
        mirrored: which of an item's crops are mirrored (same for all items), or None.
        unit: boxes are given in 0..1.
        fraction: shown part of each box's sides, centred.
        read: gives the photographs.
    """

    def __init__(
        self,
        paths: Sequence[Any],
        boxes: Sequence[np.ndarray],
        size: int,
        batch_size: int,
        mirrored: Sequence[bool] | None = None,
        unit: bool = False,
        fraction: float = 1.0,
        read: Read = read_image,
    ) -> None:
        self.paths = paths
        self.boxes = boxes
        self.size = size
        self.batch_size = batch_size
        self.mirrored = None if mirrored is None else np.asarray(mirrored, dtype=bool)
        self.unit = unit
        self.fraction = fraction
        self.read = read
        self.counts = np.array([len(each) for each in boxes], dtype=np.int64)
        self.before = np.r_[0, np.cumsum(self.counts)]
        self.chosen: Sequence[int] = range(int(self.before[-1]))

    def __len__(self) -> int:
        return math.ceil(len(self.chosen) / self.batch_size)

    def only(self, crops: Sequence[int]) -> "CropBatches":
        """Batches of some of the crops, by their number in all of them."""
        found = copy(self)
        found.chosen = crops
        return found

    def digests(self, photographs: Photographs, first: int, stop: int) -> list[str]:
        """Of each crop in batches ``first`` to ``stop`` a digest of what decides on its pixels."""
        found = []
        for number in range(first, stop):
            for item, row in zip(*self.rows(number), strict=True):
                box = np.asarray(self.boxes[item][row], dtype=np.float64).tolist()
                turned = self.mirrored is not None and bool(self.mirrored[row])
                shown = box, self.unit, self.fraction, turned, self.size
                found.append(digest_of(photographs.content(self.paths[item]), *shown))
        return found

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which holds photographs of its own."""
        return {name: value for name, value in vars(self).items() if name != "held"}

    @cached_property
    def held(self) -> Read:
        """``read``, but a photograph whose crops fill several batches is not read for each."""
        return lru_cache(maxsize=HELD)(self.read)

    def rows(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """For each crop of a batch its photograph's index, and its own within the photograph."""
        own = slice(number * self.batch_size, (number + 1) * self.batch_size)
        crops = np.asarray(self.chosen[own], dtype=np.int64)
        photograph = np.searchsorted(self.before[1:], crops, side="right")
        return photograph, crops - self.before[photograph]

    def __getitem__(self, number: int) -> torch.Tensor:
        photograph, row = self.rows(number)
        borders = np.flatnonzero(np.diff(photograph)) + 1
        crops = []
        for item, rows in zip(photograph[np.r_[0, borders]], np.split(row, borders), strict=True):
            image = self.held(self.paths[item])
            boxes = np.asarray(self.boxes[item], dtype=np.float64)[rows]
            if self.unit:
                boxes = boxes * np.tile(image.shape[1::-1], 2)
            mirrored = None if self.mirrored is None else self.mirrored[rows]
            crops.append(cut(image, centre_boxes(boxes, self.fraction), self.size, mirrored))
        return torch.cat(crops)


def centre_boxes(boxes: np.ndarray, fraction: float) -> np.ndarray:
    """The centred shown part of every box, as in test. float64 N x 4."""
    return np.array([shown_box(box, fraction, 0.5, 0.5) for box in boxes]).reshape(-1, 4)


def load_ahead(
    make: Callable[[int], Made], numbers: Iterable[int], workers: int, size: int = 0
) -> Iterator[Made]:
    """Yield what ``make`` makes of each number, in order and ahead of time.

    Threads, not processes: decoding and resizing run outside Python's lock, and what they give
    need not be copied from one process to another.

    Args:
        make: called with a number.
        numbers: in this order.
        workers: threads; 0: nothing is made ahead.
        size: bytes of what is made; not more than `AHEAD` of them wait, but for one.
    """
    cv2.setNumThreads(1)  # the threads share the cores already
    if workers == 0:
        yield from map(make, numbers)
        return
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Made]] = deque()
    most = max(1, min(2 * workers, AHEAD // max(1, size)))
    try:
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
