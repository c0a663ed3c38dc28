"""Which crops a batch has: drawn anew each epoch in training, in order for scores and maps."""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch

from opam.engine.crops.cutting import Read, centre_boxes, cut, shown_box
from opam.photographs.decoding.images import Photographs, read_image
from opam.pipeline.artifacts import BOX
from opam.pipeline.kept import digest_of

HELD = 8
"""Photographs whose pixels are held while their crops are cut."""


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

    def shown(self, row: int) -> tuple[str, np.ndarray, np.ndarray]:
        """The photograph of a crop, the box that is shown, 1 x 4, and whether it is mirrored."""
        across, down, mirror, fraction = 0.5, 0.5, False, self.fraction
        if self.seed_and_epoch is not None:
            generator = np.random.default_rng([*self.seed_and_epoch, row])
            across, down = generator.random(2)
            mirror = bool(generator.random() < 0.5)
            fraction *= math.sqrt(generator.uniform(self.min_area, 1.0))
        box = shown_box(self.boxes[row], fraction, across, down)
        return self.paths[row], np.array([box]), np.array([mirror])

    def __getitem__(self, row: int) -> torch.Tensor:
        path, boxes, mirrored = self.shown(row)
        return cut(self.read(path), boxes, self.input_size, mirrored)[0]


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

    def shown(
        self, number: int, size_of: Callable[[Any], tuple[int, int]]
    ) -> Iterator[tuple[Any, np.ndarray, np.ndarray | None]]:
        """Of a batch each photograph, its boxes that are shown, and which crops are mirrored.

        Args:
            number: of the batch.
            size_of: width and height of a photograph.
        """
        photograph, row = self.rows(number)
        borders = np.flatnonzero(np.diff(photograph)) + 1
        for item, rows in zip(photograph[np.r_[0, borders]], np.split(row, borders), strict=True):
            boxes = np.asarray(self.boxes[item], dtype=np.float64)[rows]
            if self.unit:
                boxes = boxes * np.tile(size_of(self.paths[item]), 2)
            mirrored = None if self.mirrored is None else self.mirrored[rows]
            yield self.paths[item], centre_boxes(boxes, self.fraction), mirrored

    def __getitem__(self, number: int) -> torch.Tensor:
        every = self.shown(number, lambda path: self.held(path).shape[1::-1])
        return torch.cat([cut(self.held(path), own, self.size, to) for path, own, to in every])
