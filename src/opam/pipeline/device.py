"""Where the work runs: device, precision, threads, worker processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from opam.pipeline.errors import OpamError, cause
from opam.pipeline.params import Params
from opam.pipeline.trackers import Tracker, missing

if TYPE_CHECKING:
    import torch


class ExecutionParams(Params):
    """How a stage runs, not what it computes: no stage runs again when one of these changes."""

    engine: Literal["local", "ray"] = Field(
        "local",
        description="ray: a cluster computes proposals, scores, maps and parts; see docs/scale.md",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the GPU where there is one, else the CPU"
    )
    devices: int = Field(
        1,
        ge=1,
        le=64,
        description="processes of a machine that train a network together, a GPU each",
    )
    nodes: int = Field(
        1, ge=1, le=1024, description="machines that train together; see docs/scale.md"
    )
    threads: int = Field(
        2, ge=1, le=256, description="CPU threads of the networks; changes the last bits of scores"
    )
    workers: int = Field(
        2,
        ge=0,
        le=256,
        description="threads (proposals: processes) that decode photographs; results do not "
        "depend on it",
    )
    batch_size: int = Field(
        64,
        ge=1,
        le=4096,
        description="images a batch in scoring and maps; at most 1 GB of them wait for the network",
    )
    shard_size: int = Field(
        64,
        ge=1,
        description="batches (of proposals and parts: photographs) that are kept on disk together, "
        "for a run that is killed; results do not depend on it",
    )
    decoded_gigabytes: float = Field(
        20.0,
        ge=0,
        description="disk space on this machine for what is made of a photograph alone (pixels, "
        "proposals, features and maps of the pretrained backbone), in $OPAM_CACHE or "
        "~/.cache/opam; 0: nothing is added, all is made each time",
    )
    gpu_gigabytes: float = Field(
        16.0,
        ge=0,
        description="where the photographs take no more of a GPU's memory, and no more than half "
        "of what is free, they lie in it, and crops are cut there; else on the CPU",
    )
    deterministic: bool = Field(
        False, description="CUDA: only algorithms that give the same bits again; slower"
    )
    compile: bool = Field(
        False,
        description="torch.compile the backbone in training: a minute or more at first, then "
        "faster; needs a C++ compiler; changes the last bits",
    )
    trackers: list[Tracker] = Field(
        [],
        description="where curves, parameters and metrics of runs are sent, too; see docs/team.md",
    )

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, content: Any) -> Any:
        if isinstance(content, dict) and "tensorboard" in content:
            trackers = "[tensorboard]" if content["tensorboard"] else "[]"
            raise ValueError(
                f"in place of the line `tensorboard: {str(content['tensorboard']).lower()}` write "
                f"`trackers: {trackers}`"
            )
        return content

    @field_validator("trackers")
    @classmethod
    def _installed(cls, trackers: list[Tracker]) -> list[Tracker]:
        if absent := missing(trackers):
            extras = ",".join(absent)
            raise ValueError(
                f"{' and '.join(absent)} not installed; "
                f"`python -m pip install --editable '.[{extras}]'`, or leave out"
            )
        return trackers

    @property
    def processes(self) -> int:
        """Processes of work without a network; on a cluster its shards run beside each other."""
        return 1 if self.engine == "ray" else max(1, self.workers)

    def same_bits(self) -> dict[str, object]:
        """What the last bits of a network's outputs depend on; the device is the one there is."""
        import torch

        on_gpu = self.device != "cpu" and torch.cuda.is_available()
        found = self.model_dump(include={"threads", "batch_size", "deterministic"})
        return {**found, "device": "cuda" if on_gpu else "cpu"}


def prepare_device(params: ExecutionParams) -> torch.device:
    """Fix the number of CPU threads, keep freed memory at hand, and pick the device.

    NumPy's linear algebra gets one thread: between two batches its threads and those of torch
    wait for each other, which costs more than small matrices gain.

    Raises:
        OpamError: ``execution.device`` is cuda and there is none.
    """
    import torch

    torch.set_num_threads(params.threads)
    if params.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    _one_blas_thread()
    _keep_freed_memory()
    available = torch.cuda.is_available()
    if params.device == "cuda" and not available:
        raise OpamError("execution.device: cuda asked for, but torch finds none; set auto or cpu")
    if params.device == "cpu" or not available:
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda")


@cache  # it takes a hundredth of a second
def _one_blas_thread() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")


def _keep_freed_memory() -> None:
    """Ask glibc to hold on to freed memory; elsewhere nothing happens.

    By default it returns every large activation to the system and asks for it again in the
    next step: a quarter of the training time on a CPU.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, 2**31 - 1)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast on CUDA, full precision on the CPU."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextlib.contextmanager
def fits_memory(name: str, crops: int, side: int) -> Iterator[None]:
    """What torch cannot do with a batch, told as an `OpamError`.

    Args:
        name: of the parameter that says how many crops a batch has.
        crops: in the batch.
        side: of a crop, pixels.

    Raises:
        OpamError: the GPU's memory does not suffice, or the network cannot be compiled.
    """
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise OpamError(
            f"{name}: {crops} crops of {side} pixels do not fit the GPU's memory; lower it"
        ) from None
    except torch._dynamo.exc.TorchDynamoException as error:
        raise OpamError(f"execution.compile: torch cannot ({cause(error)}); set false") from None
