"""The page as text: its template, style sheet, script and data in one file."""

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from opam.report.page import figures

HERE = "opam.report.page"


def compact_json(content: Any) -> str:
    """JSON without spaces, ASCII only, and harmless inside a page or a script.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    """The text of a file beside this module."""
    return files(HERE).joinpath(name).read_text(encoding="utf-8")


def render(content: dict[str, Any], data: dict[str, Any]) -> str:
    """The page as HTML; all text of ``content`` and ``data`` is escaped.

    Args:
        content: the names that page.html uses.
        data: what page.js reads.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = figures.percent
    environment.globals |= {
        "interval_bar": figures.interval_bar,
        "range_bar": figures.range_bar,
        "histogram": figures.histogram,
        "reliability": figures.reliability,
        "confusion_matrix": figures.confusion_matrix,
    }
    return environment.from_string(asset("page.html")).render(
        **content,
        style=Markup(asset("page.css")),
        script=Markup(asset("page.js")),
        data=Markup(compact_json(data)),
    )
