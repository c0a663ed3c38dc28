"""Work shared out to processes of this machine."""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any

from joblib import Parallel


def in_processes(jobs: Iterable[Any], processes: int) -> Iterator[Any]:
    """Yield what the jobs return, in their order; some are computed ahead.

    Args:
        jobs: calls, made by `joblib.delayed`.
        processes: as many at a time; one, and no process is started.
    """
    wanted = True
    results = Parallel(n_jobs=processes, return_as="generator")(takewhile(lambda _: wanted, jobs))
    try:
        # No `yield from`: it would close them before what is under way has ended.
        for result in results:  # noqa: UP028
            yield result
    finally:
        # Otherwise joblib kills its processes, and complains below the error that a person reads.
        wanted = False
        for _ in results:
            pass
