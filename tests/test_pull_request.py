"""The workflow of pull requests: against GitHub's schema, and its steps run here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_project import PYTHON, ROOT, git_commit

FILE = ROOT / ".github/workflows/pull-request.yml"
WORKFLOW = yaml.safe_load(FILE.read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([^\s:=]+):(?!=)", MAKEFILE, re.MULTILINE)
REPRODUCE: list[dict[str, Any]] = WORKFLOW["jobs"]["reproduce"]["steps"]
SCRIPTS = [step for step in REPRODUCE if "run" in step]

MEASURE = (
    "import json; json.dump({'accuracy': int(open('x').read()) / 8}, open('metrics.json', 'w'))"
)
DRAWN = "dataset:\n  name: synthetic_birds\n"
GIVEN = "dataset:\n  name: imagefolder\n"


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    command = ["check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(file)]
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )


def test_it_is_what_github_takes(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    done = validate(FILE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(FILE.read_text().replace("runs-on:", "run-on:"))
    assert validate(wrong).returncode == 1


def test_it_may_read_and_comment_and_nothing_else() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    jobs = WORKFLOW["jobs"]
    assert {name for name, job in jobs.items() if "permissions" in job} == {"reproduce"}
    assert jobs["reproduce"]["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    for job in jobs.values():
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/none@v0"))
            # What a pull request says is in no script: it would be run.
            assert "${{" not in step.get("run", "")
        checkout, _, cache = job["steps"][:3]
        assert checkout["with"]["persist-credentials"] is False
        assert "hashFiles('requirements.lock')" in cache["with"]["key"]


def test_its_commands_are_the_projects() -> None:
    lines = [
        line.strip()
        for job in WORKFLOW["jobs"].values()
        for step in job["steps"]
        for line in step.get("run", "").splitlines()
    ]
    assert "make test" in lines
    for line in lines:
        if line.startswith("make "):
            assert line.split()[1] in TARGETS
    (reproduce,) = [line for line in lines if line.startswith("dvc repro")]
    assert reproduce.replace(" --pull", "") in MAKEFILE
    secrets = re.findall(r"secrets\.(\w+)", FILE.read_text())
    page = (ROOT / "docs/team.md").read_text()
    assert secrets
    assert all(name in page for name in secrets)


def small_repository(folder: Path, params: str) -> Path:
    """A DVC project with the Makefile and the stages' names, cloned by whoever asks for a change.

    Its `gh` keeps what it is given.
    """
    origin = folder / "origin"
    origin.mkdir()
    shutil.copy(ROOT / "Makefile", origin)
    for name in ("requirements.lock", "pyproject.toml"):
        (origin / name).touch()
    (origin / ".gitignore").write_text("/.venv\n/metrics.json\n/report.md\n/drawn\n/doubts\n")
    (origin / "measure.py").write_text(MEASURE)
    (origin / "params.yaml").write_text(f"{params}rate: 1\n")
    (origin / "x").write_text("4")
    others = {
        name: {"cmd": f"echo {name} > {out}", "outs": [out]}
        for name, out in {"draw_examples": "drawn", "doubt_labels": "doubts"}.items()
    }
    measured = {"cmd": f"{PYTHON} measure.py", "deps": ["x"], "outs": ["metrics.json"]}
    content = {
        "stages": {"export_bundle": {**measured, "params": ["rate"]}, **others},
        "metrics": ["metrics.json"],
    }
    (origin / "dvc.yaml").write_text(yaml.safe_dump(content))
    for command in (["git", "init", "-q", "-b", "main"], [PYTHON, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=origin, check=True)
    git_commit(origin)
    return origin


def clone(origin: Path, folder: Path) -> Path:
    subprocess.run(["git", "clone", "-q", origin, folder], check=True)
    tools = folder / ".venv/bin"
    tools.mkdir(parents=True)
    (folder / ".venv/.installed").touch()
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(folder / name, (0, 0))
    scripts = {
        "dvc": f'exec {shlex.quote(PYTHON)} -m dvc "$@"',
        "gh": 'echo "$@" > .venv/commented && cat report.md >> .venv/commented',
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    return folder


def run_steps(folder: Path) -> str:
    """The scripts of the job, as the runner would: each in a shell of its own; what they print."""
    files = {name: folder / f".venv/{name}" for name in ("path", "output", "summary")}
    for file in files.values():
        file.write_text("")
    shown = ""
    for step in SCRIPTS:
        if "if" in step:
            output, value = step["if"].rpartition(".")[2], files["output"].read_text()
            if f"{output}=true" not in value:
                continue
        variables = {
            **os.environ,
            "PATH": os.pathsep.join([*files["path"].read_text().split(), os.environ["PATH"]]),
            "GITHUB_PATH": str(files["path"]),
            "GITHUB_OUTPUT": str(files["output"]),
            "GITHUB_STEP_SUMMARY": str(files["summary"]),
            "GITHUB_BASE_REF": "main",
            "NUMBER": "7",
        }
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{step['name']}: {done.stdout}{done.stderr}"
        shown += done.stdout
    return shown


def rows(comment: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    table = comment.split(f"## {heading}\n")[1].split("\n##")[0].strip()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


@pytest.mark.slow
def test_with_a_remote_what_others_ran_is_fetched_and_the_rest_compared(tmp_path: Path) -> None:
    origin = small_repository(tmp_path, GIVEN)
    for arguments in (
        ["remote", "add", "--default", "team", str(tmp_path / "remote")],
        ["repro"],
        ["push", "--run-cache"],
    ):
        subprocess.run([PYTHON, "-m", "dvc", *arguments, "-q"], cwd=origin, check=True)
    git_commit(origin)
    change = clone(origin, tmp_path / "change")
    (change / "params.yaml").write_text(f"{GIVEN}rate: 2\n")
    (change / "x").write_text("6")
    git_commit(change)
    shown = run_steps(change)
    assert shown.count("Running stage") == 1
    assert "Running stage 'export_bundle'" in shown
    comment = (change / ".venv/commented").read_text()
    assert comment.startswith("pr comment 7 --body-file report.md\n")
    assert rows(comment, "Metrics") == [["metrics.json", "accuracy", "0.5", "0.75", "0.25"]]
    assert rows(comment, "Parameters") == [["params.yaml", "rate", "1", "2"]]
    assert (change / ".venv/summary").read_text() == (change / "report.md").read_text()


@pytest.mark.slow
def test_without_a_remote_the_drawn_birds_are_run(tmp_path: Path) -> None:
    change = clone(small_repository(tmp_path, DRAWN), tmp_path / "change")
    assert run_steps(change).count("Running stage") == 3
    comment = (change / ".venv/commented").read_text()
    assert rows(comment, "Metrics") == [["metrics.json", "accuracy", "-", "0.5", "-"]]


@pytest.mark.slow
def test_without_a_remote_other_photographs_are_left_alone_and_it_is_said(tmp_path: Path) -> None:
    change = clone(small_repository(tmp_path, GIVEN), tmp_path / "change")
    shown = run_steps(change)
    assert "::notice::No DVC remote" in shown
    assert "Running stage" not in shown
    assert not (change / ".venv/commented").exists()


def test_the_drawn_birds_stand_where_the_workflow_looks() -> None:
    assert "\n  name: synthetic_birds\n" in (ROOT / "params.yaml").read_text()
