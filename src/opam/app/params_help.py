"""Every parameter explained, from the types that read it: ``opam params``."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from opam.app.check_params import TYPES
from opam.engine.training.params import TrainingParams
from opam.pipeline.errors import OpamError
from opam.pipeline.params import NETWORKS, SECTIONS, SHARED, STEPS, params_path, read_yaml
from opam.systems.systems import SYSTEMS, method_params

ANY = "NAME"
"""Stands for the name of an entry under ``baselines``."""

KINDS = TYPES | {SHARED: TrainingParams}
"""What each section holds; `SHARED` may leave out what every network's own section has."""

OPTIONAL = "section or null"

SCALARS = {
    "seed": "of order, augmentation, new layers, clustering and folds",
    "scoring": "exact: FilterNet sees each patch by itself; shared: it sees the photograph at two "
    "sizes, and patches share its feature maps, a fraction of the cost on a CPU (see "
    "docs/performance.md); auto: exact on a GPU, shared on a CPU",
    "mirrored": "photographs, objects and parts are scored with their mirror images, whose "
    "probabilities count as much; scoring takes twice as long",
}
"""Sections that are one value, which has no `Params` type to describe it."""


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        name: dotted, as ``dvc exp run -S`` takes it; an entry under ``baselines`` is ``NAME``.
        kind: its type, or the values that it may have.
        range: what a value must fulfil, such as ">= 1, <= 256"; or "".
        required: it has to be given; ``default`` means nothing then.
        default: as it would stand in the parameter file.
        description: or "".
    """

    name: str
    kind: str
    range: str
    required: bool
    default: Any
    description: str


def parameters() -> Iterator[Parameter]:
    """Every parameter of every section, in the order of `opam.pipeline.params.SECTIONS`."""
    for section in SECTIONS:
        kind = KINDS[section]
        if section in NETWORKS:
            yield from map(_shared, _fields(section, kind))
        elif section == "baselines":
            yield from map(_shared, _fields(f"{section}.{ANY}", get_args(kind)[1]))
            for system in SYSTEMS:
                for each in _fields(f"{section}.{ANY}.method", method_params(system)):
                    yield replace(each, description=f"of {system}: {each.description}")
        elif section in SCALARS:
            yield Parameter(section, type_name(kind), "", True, None, SCALARS[section])
        else:
            yield from _fields(section, kind)


def _shared(parameter: Parameter) -> Parameter:
    """What a network's section leaves out is that of `SHARED`."""
    section, _, leaf = parameter.name.rpartition(".")
    if section not in NETWORKS and not section.endswith(STEPS):
        return parameter
    if leaf not in TrainingParams.model_fields:
        return parameter
    return replace(parameter, required=False, default=f"{SHARED}.{leaf}")


def _fields(prefix: str, kind: type[BaseModel]) -> Iterator[Parameter]:
    for name, field in kind.model_fields.items():
        dotted = f"{prefix}.{name}"
        inner = _section(field.annotation)
        optional = inner is not None and NoneType in _alternatives(field.annotation)
        if inner is None or optional:
            yield Parameter(
                dotted,
                type_name(field.annotation),
                limits(field),
                field.is_required(),
                plain(field.default),
                field.description or "",
            )
        if inner is not None:
            yield from _fields(dotted, inner)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The type of a section below a section, which may be left out; of a plain value None."""
    kinds = [kind for kind in _alternatives(annotation) if kind is not NoneType]
    if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel):
        return kinds[0]
    return None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def type_name(annotation: Any) -> str:
    """A type in words of the parameter file: "whole number", "fast | quality", "text or null"."""
    words = {
        int: "whole number",
        float: "number",
        bool: "true | false",
        str: "text",
        NoneType: "null",
    }
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    found = []
    for kind in _alternatives(annotation):
        origin, inner = get_origin(kind), get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append("section")
        elif origin is Literal:
            found.append(" | ".join(map(str, inner)))
        elif origin is list:
            found.append("list")
        elif origin is dict:
            found.append("mapping")
        else:
            found.append(words.get(kind, str(getattr(kind, "__name__", kind))))
    return " or ".join(found)


def limits(field: FieldInfo) -> str:
    """What a value must fulfil, such as ">= 1, <= 256"; "" where nothing."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    lengths = {"min_length": "at least {} entries", "max_length": "at most {} entries"}
    found = []
    for limit in field.metadata:
        for name, sign in signs.items():
            if (value := getattr(limit, name, None)) is not None:
                found.append(f"{sign} {value}")
        for name, words in lengths.items():
            if (value := getattr(limit, name, None)) is not None:
                found.append(words.format(value))
    return ", ".join(found)


def plain(value: Any) -> Any:
    """A default as it would stand in the parameter file."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value


def current_values(name: str, content: Any) -> list[tuple[str, Any]]:
    """What the parameter file says.

    Args:
        name: dotted; where it holds ``NAME``, every entry that has the parameter is taken.
        content: of the file, nested dicts.

    Returns:
        The entry's name ("" where the name holds none) and the value; nothing where absent.
    """
    first, _, rest = name.partition(".")
    if not isinstance(content, dict):
        return []
    if first == ANY:
        below = ((entry, current_values(rest, inside)) for entry, inside in content.items())
        return [(str(entry), value) for entry, values in below for _, value in values]
    if first not in content:
        return []
    return current_values(rest, content[first]) if rest else [("", content[first])]


def as_text(value: Any) -> str:
    """A value as it stands in the parameter file."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_text, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_text(each)}" for key, each in value.items()) + "}"
    return str(value)


def chosen(section: str | None, found: list[Parameter]) -> list[Parameter]:
    """Those of a section, those below a dotted name, or all; an entry's own name may be in it.

    Raises:
        OpamError: there is no such section or parameter.
    """
    if section is None:
        return found
    own = re.sub(r"^baselines\.[^.]+", f"baselines.{ANY}", section)
    some = [each for each in found if f"{each.name}.".startswith(f"{own}.")]
    if not some:
        known = [*SECTIONS, *(each.name for each in found)]
        close = difflib.get_close_matches(section, known, 3) or SECTIONS
        raise OpamError(f"{section}: no such parameter; there is {', '.join(close)}")
    return some


def print_params(section: str | None, console: Console | None = None) -> None:
    """Print the parameters of a section, of a dotted name, or all.

    Raises:
        OpamError: there is no such section or parameter, or the parameter file is no YAML.
    """
    console = console or Console()
    path = params_path()
    content = read_yaml(path) if path.exists() else {}
    heading = ""
    for each in chosen(section, list(parameters())):
        top = each.name.partition(".")[0]
        if top != heading:
            console.print(_heading(top, path))
            heading = top
        # What an optional section holds is told parameter by parameter.
        values = [] if each.kind == OPTIONAL else current_values(each.name, content)
        for line in explained(each, values):
            console.print(line)


def _heading(section: str, path: Path) -> Text:
    kind = KINDS[section]
    described = kind.__doc__ if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    if section == SHARED:
        described = "What all networks share; a network's own section goes first."
    if section == "baselines":
        described = f"Systems beside OPAM, an entry each; {ANY} is the entry's in {path.name}."
    text = Text(f"\n{section}", "bold")
    return text.append(f"  {described.splitlines()[0]}" if described else "", "not bold dim")


def explained(parameter: Parameter, current: list[tuple[str, Any]]) -> Iterator[Padding]:
    """A parameter's lines: name and type; default and value; description."""
    about = ", ".join(filter(None, (parameter.kind, parameter.range)))
    yield Padding(Text.assemble((parameter.name, "cyan"), f"  {about}"), (0, 0, 0, 2), expand=False)
    default = as_text(parameter.default)
    values = Text("must be given" if parameter.required else f"default {default}")
    for entry, value in current:
        changed = parameter.required or value != parameter.default
        values.append(f"; {entry}: " if entry else "; now ")
        values.append(as_text(value), "bold" if changed else "")
    yield Padding(values, (0, 0, 0, 6), expand=False)
    if parameter.description:
        yield Padding(Text(parameter.description, "dim"), (0, 0, 0, 6), expand=False)
