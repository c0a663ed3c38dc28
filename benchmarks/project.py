"""A copy of the project to measure in."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from opam.pipeline.outside import given_photographs
from opam.pipeline.params import NETWORKS
from opam.pipeline.presets import laid_over

ROOT = Path(__file__).parents[1]
STAGES = (
    "check_params",
    "record_environment",
    "fetch_data",
    "prepare",
    "propose_patches",
    "filternet",
    "score_patches",
    "filter_patches",
    "classnet",
    "extract_saliency",
    "colocalize",
    "extract_objects",
    "select_parts",
    "align_parts",
    "objectnet",
    "partnet",
    "fit_probes",
    "score_images",
    "fuse",
    "evaluate",
)
"""All stages up to the figures, in order; networks by their names."""


def params_of(preset: str, shared: dict[str, Any], seed: int) -> dict[str, Any]:
    """Of a preset on the photographs, and on the machine, of ``shared``."""
    text = laid_over(ROOT / "presets/defaults.yaml", ROOT / f"presets/{preset}.yaml")
    params: dict[str, Any] = yaml.safe_load(text)
    return {**params, "dataset": shared["dataset"], "execution": shared["execution"], "seed": seed}


def copy_project(folder: Path, params: dict[str, Any]) -> Path:
    """The project's code and dvc.yaml with other params, without git."""
    ignored = shutil.ignore_patterns("cache", "tmp", "__pycache__", "*.egg-info", "config.local")
    for name in ("src", "stages", ".dvc"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("dvc.yaml", ".dvcignore", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "data/weights", folder / "data/weights", symlinks=True)
    (folder / "data/photographs").mkdir()
    if given_photographs(params["dataset"]["path"]) is not None:  # they stay where they are
        path = str(ROOT / params["dataset"]["path"])
        params = {**params, "dataset": {**params["dataset"], "path": path}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    if shutil.which("dvc", path=environment(folder)["PATH"]):  # stages run without it, too
        call(folder, "dvc", "config", "core.no_scm", "true")
    return folder


def run_stages(
    folder: Path, params: dict[str, Any], names: Sequence[str] = STAGES
) -> dict[str, float]:
    """Seconds that each stage takes by itself, its start included; DVC is not needed."""
    found = {}
    for name in names:
        script = [f"stages/{name}.py"]
        if name in NETWORKS:
            script = [f"stages/network_by_{params[name]['by']}.py", name]
        started = time.monotonic()
        subprocess.run([sys.executable, *script], cwd=folder, env=environment(folder), check=True)
        found[name] = time.monotonic() - started
    return found


def seconds(work: Callable[[], Any]) -> float:
    """How long ``work`` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def environment(folder: Path) -> dict[str, str]:
    """Commands of the running Python's environment, the package of ``folder``."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": tools, "PYTHONPATH": str(folder / "src")}


def call(folder: Path, *command: str) -> None:
    """Run a command; what it says is shown only if it fails."""
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
