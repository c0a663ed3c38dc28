"""Weights on disk: one safetensors file, with how to build the network in its header."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from opam.pipeline.artifacts import atomic
from opam.pipeline.errors import OpamError, cause

Build = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]


def write_weights(path: Path, network: nn.Module, settings: dict[str, Any]) -> None:
    """Save a network's weights, with ``settings`` (values that JSON has) in the header."""
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    # One entry only: safetensors does not keep the order of several.
    metadata = {"opam": json.dumps(settings, sort_keys=True)}
    with atomic(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, metadata=metadata))


def state_digest(network: nn.Module) -> str:
    """SHA-256 of a network's weights and buffers, whatever file or package they came from."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_weights(path: Path, build: Build, what: str) -> tuple[Any, dict[str, Any]]:
    """Load a network, in evaluation mode, and its settings.

    Args:
        path: of the file.
        build: the network without its weights, from settings and weights.
        what: the file should hold, for errors.

    Raises:
        OpamError: missing, damaged, or not written by `write_weights`.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {})["opam"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = build(settings, state)
        network.load_state_dict(state)
    except FileNotFoundError:
        raise OpamError(f"{path}: not found; run `dvc repro` to make it") from None
    except OpamError:
        raise
    except Exception as error:  # damaged files raise many types
        raise OpamError(
            f"{path}: not a {what} of this project ({cause(error)}); remove it and run `dvc repro`"
        ) from None
    return network.eval(), settings
