"""Progress of long work: a bar with rate and time left, or plain lines without a terminal."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from opam.pipeline.ranks import rank

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 15.0


def progress(items: Iterable[T], total: int, description: str, unit: str = "images") -> Iterator[T]:
    """Yield ``items`` and show how far they are.

    Args:
        items: what to iterate over.
        total: how many items there will be.
        description: what is being done, shown before the bar.
        unit: what the items are, in the plural.
    """
    if rank() > 0:  # of processes that train together the first one shows
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=description, unit=f" {unit}", dynamic_ncols=True)
        return
    started = shown = time.monotonic()
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= SECONDS_BETWEEN_LINES:
            shown = now
            rate = done / (now - started)
            left = (total - done) / rate
            print(
                f"{description}: {done}/{total} {unit}, {rate:.1f}/s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
    seconds = time.monotonic() - started
    print(f"{description}: {done} {unit} in {seconds:.1f} s", file=sys.stderr, flush=True)
