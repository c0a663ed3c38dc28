"""Typed parameters: one section of params.yaml, read into the type it is given.

The types live with the steps that use them, so that a stage depends on the parameters
of its own steps and on no others.
"""

import os
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from opam.pipeline.errors import OpamError, cause

SECTIONS = (
    "seed",
    "execution",
    "dataset",
    "prepare",
    "backbone",
    "training",
    "proposals",
    "filternet",
    "scoring",
    "filter",
    "classnet",
    "saliency",
    "colocalization",
    "objects",
    "parts",
    "alignment",
    "objectnet",
    "partnet",
    "probes",
    "mirrored",
    "fusion",
    "evaluation",
    "baselines",
)

UNTRACKED_SECTIONS = ("execution",)
"""Sections that say how a stage runs and not what it computes."""


SHARED = "training"
"""What all networks share; the section of a network holds what differs, and goes first."""
NETWORKS = ("filternet", "classnet", "objectnet", "partnet")
STEPS = ("classifier_training", "training")
"""Of an entry under ``baselines``; the first is not always there."""


class Params(BaseModel):
    """Base of every parameter section: immutable, unknown keys refused, no type coercion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


T = TypeVar("T")


def params_path() -> Path:
    """``params.yaml`` of the working directory, or the file that ``OPAM_PARAMS`` names."""
    return Path(os.environ.get("OPAM_PARAMS", "params.yaml"))


class _Once(yaml.SafeLoader):
    """YAML in which no name stands twice: of two values people and programs may take either."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"'{name}' stands twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a parameter file into nested dicts.

    Raises:
        OpamError: the file is missing, is not YAML, or has an unknown top-level section.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Once)
    except FileNotFoundError:
        raise OpamError(f"{path}: not found; run from the project's top folder") from None
    except OSError as error:
        raise OpamError(f"{path}: cannot be read ({cause(error)}); correct it") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date, say
        raise OpamError(f"{path}: not valid YAML ({cause(error)}); correct the file") from None
    if not isinstance(content, dict):
        raise OpamError(f"{path}: expected sections such as 'dataset:', found none")
    for name in content:
        if name not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise OpamError(
                f"{path}: unknown parameter '{str(name)[:80]}'; known sections: {known}"
            )
    return content


def read_params(section: str, kind: type[T], path: Path | None = None) -> T:
    """Read one section of the parameter file into ``kind``.

    Args:
        section: top-level key, one of `SECTIONS`, or a dotted name below one.
        kind: a `Params` subclass, or a plain type such as ``int`` for a scalar section.
        path: parameter file; `params_path` when not given.

    Raises:
        OpamError: file or section missing, or a value unknown, of the wrong type or out of
            range; every such value is named by its dotted name.
    """
    path = path or params_path()
    return section_of(read_yaml(path), section, kind, path)


def section_of(content: Any, section: str, kind: type[T], path: Path) -> T:
    """One section of what `read_yaml` read from ``path``; else as `read_params`."""
    own = content
    for key in section.split("."):
        if not isinstance(own, dict) or key not in own:
            raise OpamError(f"{path}: '{section}' is missing; {_remedy(section)}")
        own = own[key]
    try:
        return TypeAdapter(kind).validate_python(_filled(section, own, content, path), strict=True)
    except ValidationError as error:
        lines = dict.fromkeys(_lines(section, error, content))  # what is shared is wrong once
        raise OpamError(f"{path}: " + "; ".join(lines)) from None


def resolved(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """What `read_yaml` read from ``path``, with `SHARED` in each section that it acts in."""
    return {
        name: _filled(name, own, content, path) for name, own in content.items() if name != SHARED
    }


def _remedy(section: str) -> str:
    if section == SHARED:
        return (
            "what all networks share stands there once: add the line `training: {}` to keep this "
            "file as it is, or see presets/defaults.yaml"
        )
    return "see presets/defaults.yaml for a full file"


def _filled(section: str, own: Any, content: Any, path: Path) -> Any:
    """What a section says, with what it leaves to `SHARED`."""
    first, *rest = section.split(".")
    if not isinstance(own, dict) or first not in (*NETWORKS, "baselines") or len(rest) > 1:
        return own
    shared = section_of(content, SHARED, dict, path)
    if first in NETWORKS:
        return {**shared, **own}
    if not rest:
        return {
            name: _filled(f"{section}.{name}", each, content, path) for name, each in own.items()
        }
    steps = {step: own.get(step, {}) for step in STEPS if own.get(step) or step == SHARED}
    return own | {
        step: {**shared, **each} if isinstance(each, dict) else each for step, each in steps.items()
    }


def _lines(section: str, error: ValidationError, content: Any) -> list[str]:
    lines = []
    for problem in error.errors():
        name = ".".join([section, *(str(part) for part in problem["loc"])])
        last = problem["loc"][-1] if problem["loc"] else ""
        if not _has(content, name) and last in content.get(SHARED, {}):
            name = f"{SHARED}.{last}"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown parameter '{name}'; remove it or correct its spelling")
        elif problem["type"] == "missing":
            lines.append(f"parameter '{name}' is missing; add it")
        elif isinstance(problem["input"], dict) and problem["type"] == "value_error":
            lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if isinstance(problem["input"], str) and re.fullmatch(r"-?\d+e-?\d+", problem["input"]):
                message += f" (to YAML it is text: write {problem['input'].replace('e', '.0e')})"
            lines.append(
                f"parameter '{name}' is {reprlib.repr(problem['input'])}: {message}; correct it"
            )
    return lines


def _has(content: Any, name: str) -> bool:
    for key in name.split("."):
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True
