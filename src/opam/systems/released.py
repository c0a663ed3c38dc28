"""Weights that a system's authors released, for a network of this project."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from opam.networks.backbones.pretrained import State, listed, read_states, unwrapped
from opam.pipeline.errors import OpamError
from opam.pipeline.ranks import rank


@dataclass(frozen=True)
class Release:
    """What the authors' checkpoint calls what a network has.

    Attributes:
        names: how names begin here, and there; the longest that fits counts.
        class_layers: how names of layers begin here that have an output a class.
        rearranged: weights that stand in another order there, by their names here; given the
            network and the authors' weights, each function gives them as they are here.
    """

    names: dict[str, str]
    class_layers: tuple[str, ...]
    rearranged: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = field(default_factory=dict)

    def name(self, here: str) -> str:
        """What the checkpoint calls the tensor ``here``."""
        start = max((each for each in self.names if here.startswith(each)), key=len, default="")
        return self.names.get(start, "") + here.removeprefix(start)


def released_state(network: Any, release: Release, path: Path, parameter: str) -> tuple[State, int]:
    """Read the authors' checkpoint; nothing in it is ever run.

    Args:
        network: what `opam.systems.systems.create_system` made; it may be without memory.
        release: of its system.
        path: a file that `opam.networks.backbones.pretrained.read_states` can read.
        parameter: that names it, for errors.

    Returns:
        Weights by the names of ``network``, float32, and the number of classes in the file. Where
        it is not the network's, layers with an output a class are not among the weights.

    Raises:
        OpamError: missing or damaged; or a tensor is missing, of another shape, not finite, or
            of a larger network; the first is named.
    """
    states = [
        {unwrapped(name): value.detach() for name, value in state.items()}
        for state in read_states(path, parameter)
    ]
    own = {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")  # older versions of torch wrote none
    }
    state = min(states, key=lambda each: len(_misfits(each, own, release)))
    if misfits := _misfits(state, own, release):
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise OpamError(
            f"{parameter}: {path} is not this network: {misfits[0]}{more}; give the authors' file, "
            "and backbone and method as they had them"
        )
    classes = _classes(state, own, release)
    taken = {}
    for name, value in own.items():
        found = state[release.name(name)].float()
        if not found.isfinite().all():
            raise OpamError(
                f"{parameter}: {path} is not finite (NaN or infinite) in {release.name(name)}; "
                "give another"
            )
        if name.startswith(release.class_layers) and len(found) != len(value):
            continue
        found = found.reshape(value.shape)
        taken[name] = release.rearranged.get(name, _as_it_is)(network, found)
    _tell_left_out(state, own, release, f"{parameter}: {path}")
    return taken, classes


def _as_it_is(_network: Any, value: torch.Tensor) -> torch.Tensor:
    return value


def _classes(state: State, own: State, release: Release) -> int:
    """How many the checkpoint tells apart."""
    first = next(name for name in own if name.startswith(release.class_layers))
    return len(state[release.name(first)])


def _misfits(state: State, own: State, release: Release) -> list[str]:
    """What is wrong with a checkpoint, a tensor each."""
    found = []
    classes: int | None = None
    for name, value in own.items():
        there = release.name(name)
        if there not in state:
            found.append(f"it lacks {there}")
            continue
        shape, wanted = list(state[there].shape), list(value.shape)
        if name.startswith(release.class_layers) and shape:
            classes = shape[0] if classes is None else classes
            wanted[0] = classes
        # A linear layer may be a convolution of one cell there.
        same = shape[: len(wanted)] == wanted and set(shape[len(wanted) :]) <= {1}
        if not same or not state[there].is_floating_point():
            kind = "" if state[there].is_floating_point() else " whole numbers"
            found.append(f"{there} is {_size(shape)}{kind} in it, {_size(wanted)} here")
    known = {release.name(name) for name in own}
    modules = {name.partition(".")[0] for name in known}
    found += [
        f"it has {name}, too" for name in _beyond(state, known) if name.partition(".")[0] in modules
    ]
    return found


def _beyond(state: State, known: set[str]) -> list[str]:
    return [
        name for name in state if name not in known and not name.endswith("num_batches_tracked")
    ]


def _size(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) or "a single value"


def _tell_left_out(state: State, own: State, release: Release, source: str) -> None:
    left_out = _beyond(state, {release.name(name) for name in own})
    if left_out and rank() == 0:
        print(f"{source}: left out {listed(left_out)}", file=sys.stderr)
