"""The documentation: every command in it runs, and it names what there is."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from small_project import PYTHON, ROOT, Undisturbed, small_params

from opam.systems.systems import SYSTEMS

README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
}
COLOURS = {"blue": (60, 80, 200), "green": (60, 170, 80), "red": (200, 70, 60)}

RUN = """
make repro-all
make repro
export OMP_WAIT_POLICY=PASSIVE
python -m opam.app.check_params
python -m opam.app.mend
dvc repro export_bundle draw_examples doubt_labels
python -m opam.report.summary
python stages/prepare.py
python stages/report.py
make results
make figures
make stages
opam show train/heath_warbler/0040.jpg --out docs/method.jpg
.venv/bin/opam show test/elm_warbler/0001.jpg
opam show test/heath_warbler/0001.jpg --system finetune --out docs/systems/finetune.jpg
opam show test/heath_warbler/0001.jpg --system bcnn --out docs/systems/bcnn.jpg
.venv/bin/opam doctor
.venv/bin/opam params
opam params parts
dvc remote add --default team s3://BUCKET/opam
dvc remote modify --local team access_key_id KEY
dvc remote modify --local team secret_access_key SECRET
dvc remote modify team endpointurl URL
rm .dvc/config.local
dvc remote remove team
dvc remote add --default team ssh://USER@HOST/srv/opam
dvc remote remove team
dvc remote add --default team /mnt/share/opam
dvc remote modify team shared group
dvc push --run-cache
git add .dvc/config dvc.lock params.yaml data/looks.csv
git commit -m "Share the artifacts"
git push
git tag --annotate opam@v1.0.0
git push --tags
dvc artifacts get REPOSITORY opam
dvc exp run -S objects.threshold=0.35
dvc exp show --only-changed --drop '(data|src|stages)/.*'
dvc metrics diff
make changes BASE=origin/main
dvc plots show
git clone REPOSITORY opam
cd opam
make pull
dvc status
dvc repro
dvc repro train_baseline@finetune
dvc repro train_baseline@bcnn
dvc repro --pull
dvc push
dvc cache dir /mnt/share/opam-cache
dvc config cache.shared group
dvc checkout
make preset NAME=...
""".strip().splitlines()
"""In an order in which they can be run."""

OWN = ["Your own photographs", "Label the next photographs"]
"""Sections whose first commands are followed by a test of their own."""

ELSEWHERE = {
    "make test": "this is it",
    "python3 -m venv .venv": "make",
    ". .venv/bin/activate": "make",
    "python -m pip install --quiet --require-hashes -r requirements.lock": "make",
    "python -m pip install --quiet --no-deps --no-build-isolation --editable .": "make",
    "ruff format --check . && ruff check . && mypy && pytest": "make",
    "python -m pip install --editable '.[ssh]'": "an extra",
    ".venv/bin/python -m pip install --editable '.[serve]'": "an extra",
    ".venv/bin/opam serve": "test_serve.py",
    "docker build --target serve --tag opam-serve .": "wants Docker; test_contributing.py",
    "docker run --rm --stop-timeout 30 --publish 127.0.0.1:8000:8000 "
    '--volume "$PWD/data/bundle:/bundle:ro" opam-serve': "wants Docker; test_contributing.py",
    "python benchmarks/serving.py": "two minutes; test_serve.py",
    "opam --install-completion": "test_cli.py",
    "opam export-onnx": "test_onnx_export.py",
    ".venv/bin/opam export data/opam.onnx": "wants discriminants; test_graph.py",
    ".venv/bin/opam export data/opam-int8.onnx --calibrate photographs/": "test_graph.py",
    "python benchmarks/export.py": "half an hour; test_graph.py",
    "python benchmarks/bench.py doubts": "half an hour; test_doubts.py",
    "make ablation": "hours; test_ablation.py",
    "sbatch --nodes 8 --ntasks-per-node 1 --cpus-per-task 32 docs/ray.sbatch": "wants Slurm",
    "srun --nodes 2 --ntasks-per-node 1 python stages/network_by_training.py classnet": (
        "test_distributed.py"
    ),
    "dvc commit train_classnet": "with the line before",
    "dvc import-url": "wants a server",
    "dvc exp run -S training.rate=0.02": "trains every network; test_pipeline.py",
    "dvc exp run -S +classnet.rate=0.02": "the same for one network",
    "dvc exp run --queue -S objects.threshold=0.25,0.3,0.35": "three runs",
    "dvc queue start": "with the line before",
    "dvc queue status": "with the line before",
    "dvc exp run --temp": "test_outside.py",
    "python -m pip install --editable '.[heic]'": "an extra",
    "python -m pip install --editable '.[mlflow]'": "an extra; test_trackers.py",
    "ray start --head --port 6379": "test_cluster.py",
    "ray start --address HEAD:6379": "test_cluster.py",
    "RAY_ADDRESS=HEAD:6379 dvc repro": "test_cluster.py",
    "make bench": "half an hour",
    "python benchmarks/bench.py NAME": "minutes each",
    "python benchmarks/bench.py team": "minutes",
    "python benchmarks/bench.py training": "a minute",
    "python benchmarks/bench.py memory": "minutes",
    "python benchmarks/bench.py gpu": "wants a GPU",
    "python benchmarks/presets.py": "an hour; test_results.py",
    "python benchmarks/unknown.py": "minutes, and other photographs; test_familiarity.py",
    **{
        command.format(name): "trains it, minutes; test_baselines.py, test_show.py"
        for name in ("mc_loss", "nts_net", "ap_cnn")
        for command in (
            "dvc repro train_baseline@{0}",
            "opam show test/heath_warbler/0001.jpg --system {0} --out docs/systems/{0}.jpg",
        )
    },
    ".venv/bin/opam predict photographs/ --out results.csv --sure 0.95": "test_classifier.py",
    "dvc repro doubt_labels": "with the line of README; test_doubts.py",
}
"""What no test of this file runs, and why, or where it is run."""


def blocks(text: str) -> list[list[str]]:
    """The lines of each block of shell commands."""
    return [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]


def commands(text: str) -> set[str]:
    """Every line of a block, and every command in a sentence."""
    found = {line for block in blocks(text) for line in block}
    sentences = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " ")
    for quoted in re.findall(r"`([^`]+)`", sentences):
        if re.match(r"(\.venv/bin/)?(make|dvc|opam|python|git) [a-z.-]", quoted):
            found.add(quoted)
    return found


def first_block(heading: str) -> list[str]:
    """The first block of commands below a heading of the README."""
    return blocks(README.split(f"# {heading}\n", 1)[1])[0]


def test_every_command_is_run_or_said_why_not() -> None:
    written = {each for text in PAGES.values() for each in commands(text)}
    followed = {line for heading in OWN for line in first_block(heading)}
    ours = {"rm .dvc/config.local", "dvc remote remove team"}  # before the next way to share
    assert ours <= set(RUN)
    known = {*RUN, *ELSEWHERE}
    unnamed = {"opam show", "opam predict"}  # without their arguments
    assert written - known - followed - unnamed == set(), (
        "add them to RUN, or to ELSEWHERE with the reason"
    )
    assert known - ours - written == set(), "no page has them any more"


def test_by_hand_is_what_make_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    by_hand = next(block for block in blocks(README) if block[0].startswith("python3 -m venv"))
    for line in by_hand:
        for command in line.removeprefix("python3 ").removeprefix("python ").split(" && "):
            variable = command.removeprefix("export ").split("=")[0]
            if command != ". .venv/bin/activate":
                assert command in makefile or f"export {variable} ?=" in makefile


def test_extras_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"'\.\[(\w+)\]'", " ".join(PAGES.values()))
    assert set(named) <= set(extras["optional-dependencies"])
    assert len(named) >= 2


def test_links_lead_somewhere() -> None:
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if "://" not in target:
                file, _, heading = target.partition("#")
                page = (ROOT / name).parent / file if file else ROOT / name
                assert page.exists(), f"{name}: {target}"
                if heading:
                    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
                    assert heading in {each.lower().replace(" ", "-") for each in found}, target


def test_every_system_has_a_page_with_a_figure_of_its_own() -> None:
    assert {name for name in PAGES if "/systems/" in name} == {
        f"docs/systems/{system}.md" for system in SYSTEMS
    }
    for system in SYSTEMS:
        page = PAGES[f"docs/systems/{system}.md"]
        assert len(page.splitlines()) <= 45
        assert f"]({system}.jpg)" in page
        assert f"dvc repro train_baseline@{system}\n" in page
        assert (ROOT / f"docs/systems/{system}.jpg").stat().st_size < 60_000


def draw(path: Path, colour: tuple[int, int, int], rng: np.random.Generator) -> None:
    """A disc of the class's colour, with a darker eye, on a grey and noisy ground."""
    pixels = rng.integers(110, 150, (90, 120, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:90, :120]
    x, y, radius = rng.integers(45, 75), rng.integers(35, 55), rng.integers(20, 30)
    pixels[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = colour
    pixels[(columns - x - 8) ** 2 + (rows - y + 6) ** 2 < 20] = 20
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def use_environment(folder: Path) -> None:
    """Give a clone the environment of this test, as newer than what it is installed from.

    Its Python, and DVC, start as those of `warm`.
    """
    tools = folder / ".venv/bin"
    tools.mkdir(parents=True)
    (folder / ".venv/.installed").touch()
    for tool in (Path(sys.prefix) / "bin").iterdir():
        (tools / tool.name).symlink_to(PYTHON if tool.name == "python" else tool)
    (tools / "dvc").unlink()
    (tools / "dvc").write_text(f'#!/bin/sh\nexec {shlex.quote(PYTHON)} -m dvc "$@"\n')
    (tools / "dvc").chmod(0o755)
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(folder / name, (0, 0))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone of the files as they are, beside the environment that runs this test."""
    if not (Path(sys.prefix) / ".installed").exists():
        pytest.skip("the environment is not what `make` installs")
    folder = tmp_path / "clone"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():  # not what is deleted and not committed yet
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for command in (
        ["init", "-q", "--bare", "-b", "main", str(tmp_path / "repository")],
        ["init", "-q", "-b", "main"],
        ["config", "user.name", "t"],
        ["config", "user.email", "t@t"],
        ["add", "-A"],
        ["commit", "-qm", "start"],
        ["remote", "add", "origin", str(tmp_path / "repository")],
        ["push", "-q", "-u", "origin", "main"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    use_environment(folder)
    return folder


def run(command: str, folder: Path) -> str:
    """Run it as a shell would with the environment active; what it prints."""
    tools = {
        **os.environ,
        "PATH": os.pathsep.join([str(folder / ".venv/bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(folder / "src"),
        "GIT_EDITOR": "echo first >",
    }
    done = subprocess.run(
        command, shell=True, cwd=folder, env=tools, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_every_command_runs(clone: Path, tmp_path: Path, undisturbed: Undisturbed) -> None:
    params = yaml.safe_dump(small_params(), sort_keys=False)
    (clone / "params.yaml").write_text(params)
    # As for a colleague: what another test ran with these params is not run again.
    shutil.copytree(undisturbed.folder / ".dvc/cache", clone / ".dvc/cache")
    share = tmp_path / "share"
    share.mkdir()
    folder = clone
    shown = {}
    for line in RUN:
        command = line.replace("/mnt/share", shlex.quote(str(share)))
        command = command.replace("REPOSITORY", shlex.quote(str(tmp_path / "repository")))
        command = command.replace("0040.jpg", "0000.jpg").replace("NAME=...", "NAME=imagefolder")
        if command == "cd opam":
            folder = folder / "opam"
            use_environment(folder)
        else:
            shown[line] = run(command, folder)
        if line == "make stages":
            drawn = (clone / "docs/stages.md").read_text()
            assert drawn == PAGES["docs/stages.md"], "`make stages` draws docs/stages.md anew"
    assert "Fusion weights" in shown["make repro"]
    assert "object_maps.parquet" not in shown["make pull"]
    assert "Running stage" not in shown["dvc repro"]
    assert (clone / "docs/results.md").exists()
    assert (clone / "data/report/index.html").exists()


@pytest.mark.slow
def test_from_class_folders_to_labelled_photographs(clone: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(14):
            draw(tmp_path / f"mine/{name}/{number}.png", colour, rng)
        draw(clone / f"photographs/{name}.png", colour, rng)
    shown = ""
    for line in [line for heading in OWN for line in first_block(heading)]:
        shown += run(line.replace("/where/the/photographs/are", str(tmp_path / "mine")), clone)
    assert "Fusion weights" in shown
    labelled = pd.read_csv(clone / "results.csv")
    assert len(labelled) == len(COLOURS)
    assert set(labelled["class"]) <= set(COLOURS)
    assert len(list((clone / "drawn").iterdir())) == len(COLOURS)
    assert len(list((clone / "why").iterdir())) == 2 * len(COLOURS)
    shutil.copy(clone / "photographs/red.png", clone / "bird.jpg")
    python = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert python
    for script in python:
        run(f"python -c {shlex.quote(script)}", clone)
