"""A training's state after each epoch, so that one that was killed goes on and ends alike."""

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from opam.pipeline.artifacts import atomic
from opam.pipeline.ranks import rank
from opam.pipeline.resume import Fingerprint, say_thrown_away


def read_checkpoint(path: Path, inputs: Fingerprint) -> dict[str, Any] | None:
    """What `write_checkpoint` wrote; None where there is none, or one of other ``inputs``."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged checkpoint costs time, never the run
        print(f"{path}: unreadable, training starts anew", file=sys.stderr)
        return None
    before = saved.get("inputs") if isinstance(saved, dict) else None
    if before != inputs:
        if rank() == 0:
            say_thrown_away(path.stem, before, inputs)
        return None
    return saved


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values; ``content["inputs"]`` is the fingerprint to agree with."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    with atomic(path) as temporary, temporary.open("wb") as file:
        # Not through the buffer's memory, which a full disk would leave lent out.
        shutil.copyfileobj(buffer, file)
