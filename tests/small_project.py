"""A copy of the project with so few drawn birds that all stages run in a minute."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
KEPT = {".gitignore", "package", "timm", "none"}
"""Files of data/photographs and data/weights that git keeps."""
PYTHON = os.environ.get("WARM_PYTHON", sys.executable)
"""Starts at once (`warm`), where pytest has started it."""
DECODED = "decoded.txt"
DECODING = "src/opam/photographs/decoding/images.py"
COUNTER = f"""

_decode_photograph = decode_photograph


def decode_photograph(content: bytes, name: str, side: int | None = None) -> Photograph:
    with open("{DECODED}", "a") as file:
        file.write(name + "\\n")
    return _decode_photograph(content, name, side)
"""
"""What a copy of the project decodes it writes down, a line each time."""
BASELINES = ("finetune", "bcnn")
STAGES = [
    stage
    for name in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in ([f"{name}@{each}" for each in BASELINES] if name == "train_baseline" else [name])
]
MEASURED = {"time.json", "comparison.csv", "comparison.json", "index.html"}
"""Artifacts that hold seconds, or the commit (the report): no two runs agree in them."""


@dataclass
class Undisturbed:
    """A finished run: where, a copy that no test changes, hashes of artifacts, stages' seconds."""

    folder: Path
    untouched: Path
    digests: dict[str, str]
    seconds: dict[str, float]


def preset(name: str) -> dict:
    """The parameters that a preset makes of the defaults."""
    # Here: where only tests of a GPU run, there is no ruamel.yaml.
    from opam.pipeline.presets import laid_over

    presets = ROOT / "presets"
    return yaml.safe_load(laid_over(presets / "defaults.yaml", presets / f"{name}.yaml"))


def leaves(content: Any, prefix: str = "") -> dict[str, Any]:
    """Each parameter by its dotted name."""
    if not isinstance(content, dict):
        return {prefix: content}
    found = {}
    for key, value in content.items():
        found |= leaves(value, f"{prefix}.{key}" if prefix else key)
    return found


def small_params() -> dict:
    params = preset("defaults")
    params["dataset"]["synthetic_birds"] |= {"train_per_class": 4, "test_per_class": 2}
    params["prepare"]["val_fraction"] = 0.5
    params["backbone"] = {"name": "test_efficientnet", "weights": "none"}
    params["proposals"] |= {"mode": "single", "max_side": 96, "max_boxes": 10}
    params["fusion"]["folds"] = 2
    params["filter"]["threshold"] = 0.05
    params["execution"] |= {"shard_size": 4, "batch_size": 8, "workers": 0, "threads": 1}
    params["training"] |= {"epochs": 1, "input_size": 64, "resize": 72}
    for network in ("filternet", "classnet", "objectnet", "partnet"):
        params[network] |= {"epochs": 3}
    params["baselines"] = {name: params["baselines"][name] for name in BASELINES}
    params["baselines"]["bcnn"]["classifier_training"] |= {"epochs": 1}
    params["alignment"]["similarity"] = "contrast"
    params["probes"] |= {"input_size": 64, "part_size": 48, "views": 2}
    params["saliency"] |= {"input_size": 64}
    params["colocalization"] |= {"layer": None, "input_size": 64}
    return params


def copy_outside(folder: Path) -> None:
    """The folders for photographs and weights, as git has them."""
    for name in ("photographs", "weights"):
        shutil.copytree(
            ROOT / "data" / name,
            folder / "data" / name,
            ignore=lambda _at, names: set(names) - KEPT,
        )


def project(folder: Path) -> Path:
    """A copy of the project's own files, as a git repository with small params."""
    copy_outside(folder)
    for name in (
        "src",
        "stages",
        ".dvc",
        ".dvcignore",
        "dvc.yaml",
        ".gitignore",
        "requirements.lock",
    ):
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns(
                "cache", "tmp", "__pycache__", "*.egg-info", "config.local"
            )
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    with (folder / DECODING).open("a") as file:
        file.write(COUNTER)
    (folder / "params.yaml").write_text(yaml.safe_dump(small_params(), sort_keys=False))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    git_commit(folder)
    return folder


def use_workers(folder: Path, workers: int) -> None:
    """None elsewhere: they would only wait for the tests beside this one."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["execution"]["workers"] = workers
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def git_commit(folder: Path) -> None:
    """Everything as it is."""
    # At one time, so that the same files are the same commit: artifacts name it.
    dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2026-01-01T00:00:00Z")
    for command in (["add", "-A"], ["commit", "-qm", "as it is"]):
        identity = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run([*identity, *command], cwd=folder, check=True, env={**os.environ, **dates})


def script(stage: str) -> list[str]:
    """The command of a stage without DVC."""
    name, *entry = stage.split("@")
    if name.startswith("train_") and not entry:
        name, entry = "network_by_training", [name.removeprefix("train_")]
    return [PYTHON, f"stages/{name}.py", *entry]


def scripts(stages: Sequence[str]) -> list[str]:
    """The command of stages without DVC, one after the other in one Python."""
    asked = ["@".join(script(stage)[1:]) for stage in stages]
    return [PYTHON, str(Path(__file__).with_name("one_by_one.py")), *asked]


def environment(folder: Path) -> dict[str, str]:
    folders = dict.fromkeys(str(Path(each).parent) for each in (PYTHON, sys.executable))
    paths = os.pathsep.join([*folders, os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": paths,
        "PYTHONPATH": str(folder / "src"),
        "PYTHONUNBUFFERED": "1",
    }


def call(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )


def dvc(folder: Path, *arguments: str) -> str:
    done = call(folder, PYTHON, "-m", "dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    """Of every artifact; a killed write's ``.tmp`` is none, the file's next write removes it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "data").rglob("*"))
        if path.is_file() and path.suffix != ".tmp" and path.name not in {".gitignore", *MEASURED}
    }


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, its output in one pipe."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_undisturbed(folder: Path) -> Undisturbed:
    """All stages once, under DVC."""
    use_workers(project(folder), 2)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPAM_CACHE", str(folder.with_name("copies")))
        process = start(folder, PYTHON, "-m", "dvc", "repro")
    assert process.stdout is not None
    started, output = {}, []
    for line in process.stdout:
        output.append(line)
        if found := re.match("Running stage '(.*)'", line):
            started[found[1]] = time.monotonic()
    assert process.wait() == 0, "".join(output)
    assert list(started) == STAGES
    use_workers(folder, 0)
    ends = [*list(started.values())[1:], time.monotonic()]
    seconds = {name: end - started[name] for name, end in zip(STAGES, ends, strict=True)}
    untouched = folder.with_name("untouched")
    shutil.copytree(folder, untouched, ignore=shutil.ignore_patterns(".git", ".dvc"))
    return Undisturbed(folder, untouched, digests(folder), seconds)
