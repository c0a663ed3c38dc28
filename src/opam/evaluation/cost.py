"""What an answer costs."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from opam.pipeline.libraries import without_compiler


def gflops(work: Callable[[], object]) -> float:
    """Billions of floating-point operations of ``work`` (a multiply and an add are two)."""
    with without_compiler(), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9
