"""What DVC and the stages cost where there is nothing to compute, on the run in ``data/``."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from project import ROOT, call

ROUNDS = 5
IMPORTS = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='imported')"


def fastest(folder: Path, *command: str) -> float:
    """Seconds of the fastest of several runs of a command."""
    found = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call(folder, *command)
        found.append(time.perf_counter() - started)
    return min(found)


def measure() -> list[dict[str, object]]:
    """A row for `dvc repro`, one for the stages' imports."""
    rows: list[dict[str, object]] = []
    if (Path("dvc.lock")).exists() and "Running" not in subprocess.run(
        ["dvc", "repro", "--dry"], capture_output=True, text=True, check=False
    ).stdout:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            call(folder, "dvc", "init", "--no-scm")
            (folder / "dvc.yaml").write_text(
                "stages:\n  one:\n    cmd: echo 1 > a\n    outs: [a]\n"
            )
            call(folder, "dvc", "repro")
            one_stage = fastest(folder, "dvc", "repro")
        whole = fastest(Path.cwd(), "dvc", "repro")
        rows.append(
            {
                "what": "dvc repro with nothing to do: the pipeline; a pipeline of one `echo`",
                "value": f"{whole:.2f} s; {one_stage:.2f} s",
                "ratio": f"{whole - one_stage:+.2f} s",
                "goal": "+1 s",
            }
        )
    else:
        needed = "not measured: wants a finished `dvc repro`"
        rows.append({"what": "dvc repro with nothing to do", "value": needed, "ratio": ""})
    nothing = fastest(Path.cwd(), sys.executable, "-c", "pass")
    imports = {
        script.stem: fastest(Path.cwd(), sys.executable, "-c", IMPORTS, f"stages/{script.name}")
        - nothing
        for script in sorted((ROOT / "stages").glob("*.py"))
    }
    torch = fastest(Path.cwd(), sys.executable, "-c", "import torch") - nothing
    slowest = max(imports, key=lambda name: imports[name])
    light = [seconds for seconds in imports.values() if seconds < torch / 2]
    rows.append(
        {
            "what": f"what a stage loads before it starts, {len(light)} stages without torch",
            "value": f"{min(light):.2f} to {max(light):.2f} s",
            "ratio": "",
        }
    )
    rows.append(
        {
            "what": f"the same, {len(imports) - len(light)} stages with torch; torch alone",
            "value": f"up to {imports[slowest]:.2f} s ({slowest}); {torch:.2f} s",
            "ratio": "",
        }
    )
    return rows
