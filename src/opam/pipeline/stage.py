"""A stage script's frame: one at a time, and errors told in one line."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from opam.pipeline import errors
from opam.pipeline.environment import tell_other_versions
from opam.pipeline.errors import OpamError
from opam.pipeline.ranks import rank
from opam.pipeline.resume import RESUME

try:
    import fcntl
except ImportError:  # Windows: DVC's own locks must do
    fcntl = None  # type: ignore[assignment]


def run(main: Callable[[], None]) -> None:
    """Call ``main``; an `OpamError` becomes one line on stderr and exit code 1.

    A second process of the same stage in the same folder is refused: DVC does so by itself, but
    not while a stage still runs whose `dvc repro` was killed.
    """

    def alone() -> None:
        with _lock("@".join([Path(sys.argv[0]).stem, *sys.argv[1:]]).replace("/", "_")):
            tell_other_versions()
            try:
                main()
            except Exception as error:
                # By name, because a stage without networks must not load torch.
                if type(error).__name__ != "OutOfMemoryError":
                    raise
                raise OpamError(
                    "the GPU's memory is full; stop what else uses it, or set execution.device: cpu"
                ) from None

    errors.run(alone)


@contextmanager
def _lock(name: str) -> Iterator[None]:
    if fcntl is None or rank() > 0:  # the first holds it for all
        yield
        return
    RESUME.mkdir(exist_ok=True)
    with (RESUME / f"{name}.lock").open("a+") as file:
        try:
            # Of this process alone: its workers do not inherit it, and it ends when it is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise OpamError(
                f"stage {name} is running in this folder already (process {file.read().strip()}); "
                "wait for it, or stop it"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
