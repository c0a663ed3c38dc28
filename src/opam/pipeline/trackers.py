"""Where a team keeps its runs: TensorBoard, MLflow, Weights & Biases, each by its own client.

``execution.trackers`` names them. A run is one training, or what `evaluate` or `compare` found; the
runs of one commit with one set of parameters are a group. A tracker changes no artifact, and one
that fails stops no stage. Without a word from the clients' own environment variables nothing leaves
the machine: all is written below `RUNS`.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from opam.pipeline.errors import cause
from opam.pipeline.outside import EXPERIMENTS
from opam.pipeline.ranks import rank
from opam.pipeline.revision import commit, configuration, tracked_params

RUNS = "runs"
"""Folder of the project, outside git and DVC."""

Tracker = Literal["tensorboard", "mlflow", "wandb"]
Log = Callable[[dict[str, Any]], None]


class Client(NamedTuple):
    """An open run of a tracker: what sends the figures of a step, and what ends it."""

    log: Callable[[dict[str, float], int], None]
    end: Callable[[bool], None]


@dataclass(frozen=True)
class Run:
    """What a tracker is told at first.

    Attributes:
        name: of the training, or of the stage that measures.
        group: commit and digest of the parameters (as in ``data/looks.csv``), the same for all
            stages of one `dvc repro`.
        project: the name of the project's folder.
        folder: `RUNS` of the project; of an experiment that DVC runs in a folder of its own, too.
        commit: as `opam.pipeline.revision.commit`.
        params: every parameter that a result may depend on, by its dotted name.
    """

    name: str
    group: str
    project: str
    folder: Path
    commit: str
    params: dict[str, Any]


def missing(trackers: Sequence[str]) -> list[str]:
    """Those whose client is not installed."""
    return [name for name in trackers if not _installed(name)]


def _installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a folder of that name is no package


@contextmanager
def tracked(name: str, trackers: Sequence[Tracker]) -> Iterator[Log]:
    """Open a run with each tracker; a training's first process alone does.

    What a tracker raises is told once on stderr, and the work goes on without it.

    Args:
        name: of the run.
        trackers: as in ``execution.trackers``.

    Yields:
        What sends figures, nested or not, by their dotted names. Each call is a step; what is no
        number is left out.
    """
    clients: dict[Tracker, Client] = {}

    def attempt(tracker: Tracker, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # each client has errors of its own
            clients.pop(tracker, None)
            line = f"{tracker}: {cause(error)}; {name} goes on and is not sent there"
            print(line, file=sys.stderr, flush=True)

    if trackers and rank() == 0:
        run = _run(name)
        for tracker in dict.fromkeys(trackers):
            if client := attempt(tracker, partial(CLIENTS[tracker], run)):
                clients[tracker] = client
    steps = count()

    def log(figures: dict[str, Any]) -> None:
        step = next(steps)
        row = {key: each for key, each in dotted(figures).items() if isinstance(each, int | float)}
        for tracker, client in [*clients.items()]:
            attempt(tracker, partial(client.log, row, step))

    failed = True
    try:
        yield log
        failed = False
    finally:
        for tracker, client in [*clients.items()]:
            attempt(tracker, partial(client.end, failed))


def dotted(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Each value of nested dicts by its dotted name."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        nested = isinstance(value, dict)
        found |= dotted(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _run(name: str) -> Run:
    # DVC runs `dvc exp run --temp` and --queue in a folder that it removes.
    project = Path(Path.cwd().as_posix().partition(EXPERIMENTS)[0])
    found = commit() or "no commit"
    group = f"{found.partition(',')[0]}-{configuration()}".replace(" ", "-")
    params = dotted(tracked_params())
    return Run(name, group, project.name, project / RUNS, found, params)


def _tensorboard(run: Run) -> Client:
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(run.folder / "tensorboard" / run.group / run.name))
    lines = [f"    {name}: {value}" for name, value in run.params.items()]
    board.add_text("params", "\n".join([f"    commit: {run.commit}", *lines]))

    def log(row: dict[str, float], step: int) -> None:
        for key, value in row.items():
            board.add_scalar(key, value, step)

    return Client(log, lambda _failed: board.close())


def _mlflow(run: Run) -> Client:
    # The light client has no other store on disk, and MLflow opens one of files only when told to.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server that is away holds a stage up for seconds; by default it would for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or _store(run.folder / "mlflow"))
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
    experiment = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if not experiment:
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
    tags = {"group": run.group, "commit": run.commit, "mlflow.source.name": run.name}
    ident = client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
    params = [Param(name, str(value)) for name, value in run.params.items()]
    for first in range(0, len(params), 100):  # no more at once
        client.log_batch(ident, params=params[first : first + 100])

    def log(row: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        client.log_batch(ident, metrics=[Metric(key, row[key], now, step) for key in row])

    def end(failed: bool) -> None:
        client.set_terminated(ident, "FAILED" if failed else "FINISHED")

    return Client(log, end)


def _store(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return folder.as_uri()


def _wandb(run: Run) -> Client:
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
    import wandb

    run.folder.mkdir(parents=True, exist_ok=True)
    live = wandb.init(
        project=os.environ.get("WANDB_PROJECT") or run.project,
        group=os.environ.get("WANDB_RUN_GROUP") or run.group,
        dir=os.environ.get("WANDB_DIR") or str(run.folder),
        name=run.name,
        config={"commit": run.commit, **run.params},
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True),
    )

    def end(failed: bool) -> None:
        live.finish(exit_code=int(failed))

    return Client(lambda row, step: live.log(row, step=step), end)


CLIENTS: dict[Tracker, Callable[[Run], Client]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
