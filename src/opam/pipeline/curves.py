"""Live curves of a training, for `dvc plots` and for a team's trackers."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opam.pipeline.ranks import rank
from opam.pipeline.trackers import Log, Tracker, tracked

CURVES = Path("data/curves")
TIME = "time.json"
"""Beside the curves: the seconds that training took."""


@contextmanager
def live_curves(
    name: str, folder: Path, history: list[dict[str, float]], trackers: Sequence[Tracker]
) -> Iterator[Log]:
    """Yield a function that adds an epoch to the live curves, after those of ``history``."""
    live = None
    if rank() == 0 and importlib.util.find_spec("dvclive"):
        from dvclive.live import Live

        live = Live(str(folder), dvcyaml=None, report=None, save_dvc_exp=False)
    with tracked(name, trackers) as send:

        def log(row: dict[str, Any]) -> None:
            if live is not None:
                for key, value in row.items():
                    live.log_metric(key, value)
                live.next_step()
            send(row)

        for row in history:
            log(row)
        yield log
    if live is not None:
        live.end()
