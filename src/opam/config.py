"""Typed parameters: one section of params.yaml, read into the type it is given.

The types live with the steps that use them, so that a stage depends on the parameters
of its own steps and on no others.
"""

import os
import reprlib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from opam.errors import OpamError, cause

SECTIONS = (
    "seed",
    "execution",
    "dataset",
    "prepare",
    "backbone",
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


class Params(BaseModel):
    """Base of every parameter section: immutable, unknown keys refused, no type coercion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


T = TypeVar("T")


def params_path() -> Path:
    """``params.yaml`` of the working directory, or the file that ``OPAM_PARAMS`` names."""
    return Path(os.environ.get("OPAM_PARAMS", "params.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a parameter file into nested dicts.

    Raises:
        OpamError: the file is missing, is not YAML, or has an unknown top-level section.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
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
    for key in section.split("."):
        if not isinstance(content, dict) or key not in content:
            raise OpamError(f"{path}: '{section}' is missing; see presets/ for a full file")
        content = content[key]
    try:
        return TypeAdapter(kind).validate_python(content, strict=True)
    except ValidationError as error:
        raise OpamError(f"{path}: " + "; ".join(_lines(section, error))) from None


def _lines(section: str, error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        name = ".".join([section, *(str(part) for part in problem["loc"])])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown parameter '{name}'; remove it or correct its spelling")
        elif problem["type"] == "missing":
            lines.append(f"parameter '{name}' is missing; add it")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(
                f"parameter '{name}' is {reprlib.repr(problem['input'])}: {message}; correct it"
            )
    return lines
