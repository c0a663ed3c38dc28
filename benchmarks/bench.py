"""All benchmarks, or those named: one table, and benchmarks/results.json.

Run: ``make bench``, or ``python benchmarks/bench.py memory``.
"""

import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results.json")
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


def main() -> None:
    """Measure, print, and write the results of this run beside those of others."""
    names = sys.argv[1:] or BENCHMARKS
    for name in names:
        if name not in BENCHMARKS:
            sys.exit(f"error: no benchmark '{name}'; there are {', '.join(BENCHMARKS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    table = Table(title=hardware())
    for column in ("benchmark", "what", "measured", "ratio"):
        table.add_column(column)
    for name in names:
        rows = import_module(name).measure()
        results[name] = {"hardware": hardware(), "rows": rows}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        for row in rows:
            table.add_row(name, str(row["what"]), str(row["value"]), str(row["ratio"]))
    Console(width=160 if not sys.stdout.isatty() else None).print(table)


if __name__ == "__main__":
    main()
