"""Live curves of a training, for `dvc plots` and for TensorBoard."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from opam.pipeline.errors import OpamError
from opam.pipeline.ranks import rank
from opam.pipeline.resume import RESUME

CURVES = Path("data/curves")
TIME = "time.json"
"""Beside the curves: the seconds that training took."""


@contextmanager
def live_curves(
    name: str, folder: Path, history: list[dict[str, float]], tensorboard: bool
) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield a function that adds an epoch to the live curves, after those of ``history``."""
    live = None
    if rank() == 0 and importlib.util.find_spec("dvclive"):
        from dvclive.live import Live

        live = Live(str(folder), dvcyaml=None, report=None, save_dvc_exp=False)
    board = None
    if rank() == 0 and tensorboard:
        if not importlib.util.find_spec("tensorboard"):
            raise OpamError(
                "execution.tensorboard: not installed; `pip install tensorboard` or set false"
            )
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(str(RESUME / "tensorboard" / name))
    epoch = 0

    def log(row: dict[str, float]) -> None:
        nonlocal epoch
        for key, value in row.items():
            if live is not None:
                live.log_metric(key, value)
            if board is not None:
                board.add_scalar(f"{name}/{key}", value, epoch)
        if live is not None:
            live.next_step()
        epoch += 1

    for row in history:
        log(row)
    yield log
    if live is not None:
        live.end()
    if board is not None:
        board.close()
