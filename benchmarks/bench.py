"""All benchmarks, or those named: one table, benchmarks/results.json, docs/performance.md.

Run: ``make bench``, or ``python benchmarks/bench.py memory``.
"""

import json
import os
import platform
import sys
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from opam.report.results import markdown_table

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[1] / "docs/performance.md"
BEGIN, END = "<!-- made by benchmarks/bench.py -->\n", "<!-- to here -->\n"
ASKED_FOR = ("architectures", "doubts", "gpu", "serving")
"""Run where they are named alone."""
BENCHMARKS = (
    "parts",
    "proposals",
    "scoring",
    "maps",
    "predict",
    "training",
    "overhead",
    "team",
    "memory",
)


def hardware() -> str:
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores ({platform.machine()}), {gpu}, Python {sys.version.split()[0]}"


def measured(results: dict[str, Any]) -> str:
    """The table of docs/performance.md."""
    rows = [
        [row["what"], f"`{name}`", *(str(row.get(key, "")) for key in ("value", "ratio", "goal"))]
        for name in BENCHMARKS + ASKED_FOR
        for row in results.get(name, {"rows": []})["rows"]
    ]
    on = sorted({f"{each['hardware']}, {each['day']}" for each in results.values()})
    table = markdown_table(["what", "command", "measured", "ratio", "goal"], rows)
    return f"On {'; '.join(on)}.\n\n{table}\n"


def page(text: str, results: dict[str, Any]) -> str:
    """The text of docs/performance.md with another table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + measured(results) + END + after


def main() -> None:
    """Measure, print, and write the results of this run beside those of others."""
    names = sys.argv[1:] or BENCHMARKS
    for name in names:
        if name not in BENCHMARKS + ASKED_FOR:
            known = ", ".join(BENCHMARKS + ASKED_FOR)
            sys.exit(f"error: no benchmark '{name}'; there are {known}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    table = Table(title=hardware())
    for column in ("benchmark", "what", "measured", "ratio"):
        table.add_column(column)
    for name in names:
        rows = import_module(name).measure()
        how = {"hardware": hardware(), "day": date.today().isoformat()}
        results[name] = {**how, "rows": rows}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        for row in rows:
            table.add_row(name, str(row["what"]), str(row["value"]), str(row["ratio"]))
    PAGE.write_text(page(PAGE.read_text(), results))
    Console(width=160 if not sys.stdout.isatty() else None).print(table)


if __name__ == "__main__":
    main()
