"""Crops cut where the photographs lie: in a GPU's memory, a batch in one call.

Each side of a crop is a weighted mean of the photograph's pixels along it, by `cutting.cut`'s
rule: with weights ``rows`` (S x h) and ``columns`` (S x w) of a window of the photograph,

    crop = rows . window . columns^T

which is two matrix products for a whole batch, whatever the sizes of its boxes.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from opam.engine.crops.cutting import Read, whole_pixels
from opam.photographs.decoding.images import Photographs

FREE = 0.5
"""Share of a GPU's free memory that photographs take at most: networks need the rest."""
AT_ONCE = 1 << 25
"""Pixels of windows that are gathered at once: less than a gigabyte with all that is made of
them."""

Cuts = Sequence[tuple[str, np.ndarray, np.ndarray | None]]
"""For each photograph its path, its boxes in pixels, and which crops are mirrored."""


class OnDevice:
    """Photographs in a device's memory, each brought there when its first crop is cut.

    Args:
        read: the photographs, of known sizes.
        device: that holds them.

    Raises:
        torch.cuda.OutOfMemoryError: it cannot.
    """

    def __init__(self, read: Photographs, device: torch.device) -> None:
        self.read = read
        self.sizes = read.sizes
        ends = np.cumsum([width * height for width, height in self.sizes.values()])
        self.starts = dict(zip(self.sizes, [0, *ends.tolist()], strict=False))
        self.pixels = torch.empty(int(ends[-1]), 3, dtype=torch.uint8, device=device)
        self.here: set[str] = set()

    def bring(self, path: str) -> int:
        """Where a photograph's first pixel lies; from two threads at once it is the same bytes."""
        start, (width, height) = self.starts[path], self.sizes[path]
        if path not in self.here:
            own = torch.from_numpy(np.array(self.read(path))).view(-1, 3)
            self.pixels[start : start + width * height] = own.to(self.pixels.device)
            self.here.add(path)
        return start

    def cut(self, cuts: Cuts, size: int) -> torch.Tensor:
        """The crops that `cutting.cut` cuts, but for less than a level of 255 on average.

        Args:
            cuts: photographs and boxes.
            size: side of a crop in pixels, S.

        Returns:
            uint8 B x 3 x S x S on the device, channels last in memory.
        """
        corners, places, mirrors = [], [], []
        for path, boxes, mirrored in cuts:
            width, height = self.sizes[path]
            corners.append(whole_pixels(boxes, width, height))
            places.append(np.tile([self.bring(path), width], (len(boxes), 1)))
            mirrors.append(np.zeros(len(boxes), bool) if mirrored is None else mirrored)
        table = np.hstack([np.vstack(corners), np.vstack(places), np.concatenate(mirrors)[:, None]])
        sides = table[:, 2:4] - table[:, :2]
        most = max(1, AT_ONCE // int(sides.max(0).prod()))
        on_device = torch.from_numpy(table.astype(np.int64)).to(self.pixels.device)
        found = [
            self._cut(on_device[own], size, *sides[own].max(0).tolist())
            for own in (slice(first, first + most) for first in range(0, len(table), most))
        ]
        return torch.cat(found).contiguous(memory_format=torch.channels_last)

    def _cut(self, table: torch.Tensor, size: int, width: int, height: int) -> torch.Tensor:
        """Of rows ``x0, y0, x1, y1, start, stride, mirrored``, no side over width and height."""
        x0, y0, x1, y1, start, stride, mirrored = table.unbind(1)
        down = torch.arange(height, device=table.device)
        across = torch.arange(width, device=table.device)
        # What lies behind a box's end weighs nothing; its last pixel stands there.
        y = torch.minimum(y0[:, None] + down, y1[:, None] - 1)
        x = torch.minimum(x0[:, None] + across, x1[:, None] - 1)
        window = self.pixels[(start[:, None] + y * stride[:, None])[:, :, None] + x[:, None]]
        # 0 to 255 are exact in half precision.
        kind = torch.float16 if table.device.type == "cuda" else torch.float32
        rows = side_weights(y1 - y0, size, height).to(kind)
        columns = side_weights(x1 - x0, size, width).to(kind)
        columns = torch.where(mirrored[:, None, None] > 0, columns.flip(1), columns)
        strips = rows @ window.to(kind).flatten(2)  # B x S x (w * 3)
        strips = strips.view(-1, size, width, 3).transpose(1, 2).flatten(2)  # B x w x (S * 3)
        crops = (columns @ strips).view(-1, size, size, 3)  # B x S across x S down x 3
        return crops.round().clamp(0, 255).to(torch.uint8).permute(0, 3, 2, 1)


def side_weights(sides: torch.Tensor, size: int, longest: int) -> torch.Tensor:
    """What each pixel of a side weighs in each of the ``size`` that are made of it.

    Where a side shrinks, the area that is common to both; where it grows, bilinear.

    Args:
        sides: int B, lengths in pixels.
        size: pixels that are made of each.
        longest: at least the longest of ``sides``.

    Returns:
        float32 B x size x longest; each row sums to 1.
    """
    step = (sides / size)[:, None, None]
    made = torch.arange(size, device=sides.device)[None, :, None]
    pixel = torch.arange(longest, device=sides.device)
    first = made * step
    common = torch.minimum(first + step, pixel + 1) - torch.maximum(first, pixel)
    middle = torch.minimum(((made + 0.5) * step - 0.5).clamp(min=0), sides[:, None, None] - 1)
    bilinear = 1 - (middle - pixel).abs()
    return torch.where(step > 1, common / step, bilinear).clamp(min=0)


def on_device(read: Read, device: torch.device, gigabytes: float) -> OnDevice | None:
    """The photographs of a stage in the memory of its GPU.

    Args:
        read: the photographs.
        device: where the network is.
        gigabytes: of its memory, at most.

    Returns:
        None on the CPU, where they do not fit, or where ``read`` knows no sizes.
    """
    if device.type != "cuda" or not isinstance(read, Photographs):
        return None
    return _held(read, device, gigabytes)


@lru_cache(maxsize=1)
def _held(read: Photographs, device: torch.device, gigabytes: float) -> OnDevice | None:
    needed = 3 * sum(width * height for width, height in read.sizes.values())
    free, _ = torch.cuda.mem_get_info(device)
    return OnDevice(read, device) if 0 < needed <= min(gigabytes * 1e9, FREE * free) else None
