"""Training in several processes: each takes its share of every batch, torch averages gradients.

`torchrun` starts the processes and tells each its place by the environment. A batch is the same
as in one process, so that its gradient is, too, but for rounding.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.ranks import processes

PORT = 29_400
"""Of the machine ``MASTER_ADDR``, where those of several machines meet."""


def launch(execution: ExecutionParams) -> None:
    """Put `torchrun` in place of this process where ``execution`` asks for more than one.

    Each of the new processes runs the script from its start.

    Raises:
        OpamError: several machines are asked for, and ``MASTER_ADDR`` does not say where they meet.
    """
    if execution.devices * execution.nodes == 1 or "RANK" in os.environ:
        return
    options = [f"--nproc-per-node={execution.devices}", f"--nnodes={execution.nodes}"]
    if execution.nodes == 1:
        options.append("--standalone")
    elif "MASTER_ADDR" in os.environ:
        place = f"{os.environ['MASTER_ADDR']}:{PORT}"
        options += ["--rdzv-backend=c10d", f"--rdzv-endpoint={place}"]
    else:
        raise OpamError(
            f"execution.nodes: {execution.nodes} machines need to know where to meet; set "
            "MASTER_ADDR to the name of one of them, as in docs/scale.md"
        )
    os.environ["OMP_NUM_THREADS"] = str(execution.threads)
    command = [sys.executable, "-m", "torch.distributed.run", *options, *sys.argv]
    os.execv(sys.executable, command)


def join(device: torch.device) -> None:
    """Meet the other processes, once."""
    if processes() > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def added_up(*values: float, device: torch.device) -> list[float]:
    """Sums over all processes."""
    if processes() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def shared_out(step: torch.nn.Module) -> torch.nn.Module:
    """``step`` with gradients that are the mean of all processes'; as it is where there is one."""
    if processes() == 1:
        return step
    # Parts and layers that a batch does not reach have no gradient. Statistics: see below.
    return DistributedDataParallel(step, find_unused_parameters=True, broadcast_buffers=False)


def even_out_statistics(network: torch.nn.Module) -> None:
    """Give every process the mean of all processes' batch norm statistics."""
    if processes() == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= processes()
