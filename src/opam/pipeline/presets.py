"""Presets: what differs from presets/defaults.yaml, whose comments are kept."""

import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from opam.pipeline.errors import OpamError, cause

PRESETS = Path("presets")
DEFAULTS = PRESETS / "defaults.yaml"
TAG = "tag:yaml.org,2002:"
WIDTH = 1000
"""No line is broken: a section of one line is one parameter beside the other."""


def laid_over(defaults: Path, preset: Path) -> str:
    """The parameter file that ``preset`` makes of ``defaults``, as text.

    Raises:
        OpamError: one of the files is missing or no YAML.
    """
    yaml = YAML()
    yaml.width = WIDTH
    for kind, name in ((type(None), "null"), (float, "float")):
        yaml.representer.add_representer(
            kind, lambda to, value, name=name: to.represent_scalar(f"{TAG}{name}", _scalar(value))
        )
    content = _read(yaml, defaults)
    try:
        _lay_over(content, _read(YAML(typ="safe"), preset))
    except RecursionError:
        raise OpamError(f"{preset}: an anchor stands inside itself; write it out") from None
    # What stands at the top of a file says what it is for.
    if heading := _read(yaml, preset).ca.comment:
        content.ca.comment = [None, heading[1]]
    text = io.StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def _read(yaml: YAML, path: Path) -> Any:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.yaml")))
        raise OpamError(f"{path}: not found; there is {known or 'none beside it'}") from None
    except (OSError, ValueError, YAMLError) as error:
        raise OpamError(f"{path}: not valid YAML ({cause(error)}); correct the file") from None
    if not isinstance(content, dict):
        raise OpamError(f"{path}: expected sections such as 'dataset:', found none")
    return content


def _scalar(value: float | None) -> str:
    """As every YAML reader takes it: 1e-05 would be text to most."""
    return "null" if value is None else re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))


def _lay_over(content: CommentedMap, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if not isinstance(value, dict):
            content[name] = value
            continue
        if not isinstance(content.get(name), dict):
            content[name] = CommentedMap()
            if not any(isinstance(each, dict) for each in value.values()):
                content[name].fa.set_flow_style()  # one line
        _lay_over(content[name], value)
