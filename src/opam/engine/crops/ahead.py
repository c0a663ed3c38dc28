"""What is made ahead of the network, by threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2

Made = TypeVar("Made")
AHEAD = 1 << 30
"""Bytes that wait ahead of the network, at most."""


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
