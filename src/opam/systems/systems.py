"""The systems beside OPAM: by name, built, written and read."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opam.networks.backbones.backbone import Backbone
from opam.networks.backbones.weights import read_weights, write_weights
from opam.pipeline.params import Params, section_of
from opam.systems.released import Release

SYSTEMS = {
    "finetune": ("Finetune", "FinetuneParams"),
    "bcnn": ("BilinearCnn", "BcnnParams"),
    "nts_net": ("NavigatorTeacherScrutinizer", "NtsNetParams"),
    "mc_loss": ("MutualChannelNetwork", "McLossParams"),
    "ap_cnn": ("AttentionPyramidCnn", "ApCnnParams"),
}
"""Module of `opam.systems`, its network, and the settings of its method."""


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


def release_of(system: str) -> Release:
    """How to read what the authors of a system of `baselines.RELEASED` released."""
    return _module(system).RELEASED


def _module(system: str) -> Any:
    # By name, so that a change in one system's code runs that system alone again.
    return import_module(f"opam.systems.{system}")


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
    write_weights(path, network, {**settings, "method": method})


def read_system(path: Path) -> tuple[Any, dict[str, Any]]:
    """Load a network and its settings, in evaluation mode.

    Raises:
        OpamError: missing, damaged, or not written by `write_system`.
    """

    def build(settings: dict[str, Any], _state: dict[str, torch.Tensor]) -> Any:
        system = settings["system"]
        method = section_of(settings, "method", method_params(system), path)
        return create_system(system, Backbone(settings["backbone"]), settings["classes"], method)

    return read_weights(path, build, "system")
