"""Shards on a Ray cluster: the work of one machine spread over several, with the same results."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pandas as pd

from opam.pipeline.errors import OpamError
from opam.pipeline.progress import progress

RETRIES = 10
"""So often a shard is computed anew when its worker or its machine dies."""


def shards_on_ray(
    pieces_from: Callable[[int], Iterable[pd.DataFrame]],
    starts: Sequence[int],
    size: int,
    cpus: int,
    device: str | None,
    description: str,
) -> Iterator[pd.DataFrame]:
    """Yield shards in order, computed wherever the cluster has room.

    The cluster is that of ``RAY_ADDRESS``, or one that runs on this machine, or else this machine
    alone. Its machines see the working directory under the same path.

    Args:
        pieces_from: computes the pieces from a given one on, in order; sent to the machines.
        starts: first piece of each shard.
        size: pieces a shard.
        cpus: that a shard takes.
        device: ``execution.device`` for work that a GPU does where there is one, else None.
        description: shown with the progress.

    Raises:
        OpamError: Ray is not installed; no machine has so many CPUs, or none a GPU; a shard
            failed, or was lost more than `RETRIES` times.
    """
    try:
        import ray
    except ImportError:
        raise OpamError(
            "execution.engine: ray is not installed; `python -m pip install 'opam[cluster]'`, or "
            "set local"
        ) from None
    folder = os.getcwd()

    def shard(work: Callable[[int], Iterable[pd.DataFrame]], start: int) -> pd.DataFrame:
        os.chdir(folder)
        return pd.concat(islice(work(start), size), ignore_index=True)

    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    try:
        slots, gpus = _slots(ray.nodes(), cpus, device)  # type: ignore[no-untyped-call]
        task = ray.remote(shard).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
        work = ray.put(pieces_from)
        shards = _in_order((task.remote(work, start) for start in starts), 2 * slots, ray.get)
        yield from progress(shards, len(starts), description, "shards")
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, OpamError) else error) from None
    except ray.exceptions.RayError as error:
        raise OpamError(f"{description}: Ray lost a shard for good ({error})") from None
    finally:
        ray.shutdown()


def _slots(nodes: list[dict[str, Any]], cpus: int, device: str | None) -> tuple[int, int]:
    """How many shards run at a time, and the GPUs that each takes."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    with_gpu = [each for each in resources if each.get("GPU")]
    gpus = int(device == "cuda" or (device == "auto" and bool(with_gpu)))
    usable = with_gpu if gpus else resources
    slots = sum(
        int(min(each.get("CPU", 0) // cpus, each["GPU"] if gpus else float("inf")))
        for each in usable
    )
    if slots == 0:
        wanted = f"{cpus} CPUs" + (" and a GPU" if gpus else "")
        raise OpamError(
            f"execution.engine: ray: none of {len(resources)} machines has {wanted}; start others, "
            "or lower execution.threads or set execution.device: cpu"
        )
    return slots, gpus


def _in_order(
    references: Iterable[Any], ahead: int, get: Callable[[Any], pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    """Results in the order of their tasks, so many tasks under way that nobody waits."""
    waiting: deque[Any] = deque()
    for reference in references:
        waiting.append(reference)
        if len(waiting) > ahead:
            yield get(waiting.popleft())
    while waiting:
        yield get(waiting.popleft())
