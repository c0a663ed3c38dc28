"""The systems beside OPAM: by name, built, written and read."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from opam.artifacts import atomic
from opam.config import Params, section_of
from opam.errors import OpamError, cause
from opam.models.backbones import Backbone

SYSTEMS = {
    "finetune": ("Finetune", "FinetuneParams"),
    "bcnn": ("BilinearCnn", "BcnnParams"),
    "nts_net": ("NavigatorTeacherScrutinizer", "NtsNetParams"),
    "mc_loss": ("MutualChannelNetwork", "McLossParams"),
    "ap_cnn": ("AttentionPyramidCnn", "ApCnnParams"),
}
"""Module of `opam.models`, its network, and the settings of its method."""


def method_params(system: str) -> type[Params]:
    """The type of a system's settings."""
    return getattr(_module(system), SYSTEMS[system][1])


def read_method(name: str, system: str, method: dict[str, Any], path: Path) -> Params:
    """The settings of a system's method.

    Args:
        name: of the entry under ``baselines``, for errors.
        system: a name of `SYSTEMS`.
        method: what differs from the system's defaults.
        path: of the parameter file, for errors.

    Raises:
        OpamError: a setting is unknown, of the wrong type or out of range.
    """
    content = {"baselines": {name: {"method": method}}}
    return section_of(content, f"baselines.{name}.method", method_params(system), path)


def create_system(system: str, backbone: Backbone, classes: int, method: Params) -> Any:
    """The network of a system: an ``nn.Module`` that gives a `Prediction` (see its module)."""
    return getattr(_module(system), SYSTEMS[system][0])(backbone, classes, method)


def _module(system: str) -> Any:
    # By name, so that a change in one system's code runs that system alone again.
    return import_module(f"opam.models.{system}")


def write_system(path: Path, network: nn.Module, settings: dict[str, Any]) -> None:
    """Save weights as safetensors.

    Args:
        path: of the file.
        network: what `create_system` made.
        settings: ``system, backbone, classes, method, input_size, resize``.
    """
    method = dict(settings["method"])
    if "second_weights" in method:
        method["second_weights"] = "none"  # they are among those saved
    settings = {**settings, "method": method}
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    metadata = {"opam": json.dumps(settings, sort_keys=True)}
    with atomic(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, metadata=metadata))


def read_system(path: Path) -> tuple[Any, dict[str, Any]]:
    """Load a network and its settings, in evaluation mode.

    Raises:
        OpamError: missing, damaged, or not written by `write_system`.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {})["opam"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        system = settings["system"]
        method = section_of(settings, "method", method_params(system), path)
        backbone = Backbone(settings["backbone"])
        network = create_system(system, backbone, settings["classes"], method)
        network.load_state_dict(state)
    except FileNotFoundError:
        raise OpamError(f"{path}: not found; run `dvc repro` to make it") from None
    except OpamError:
        raise
    except Exception as error:  # damaged files raise many types
        raise OpamError(
            f"{path}: not a system of this project ({cause(error)}); remove it and run `dvc repro`"
        ) from None
    return network.eval(), settings
