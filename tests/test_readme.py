"""What the README promises a newcomer, followed to the letter: from class folders to a CSV."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_project import ROOT

README = (ROOT / "README.md").read_text()
COLOURS = {"blue": (60, 80, 200), "green": (60, 170, 80), "red": (200, 70, 60)}

pytestmark = pytest.mark.slow


def commands(heading: str) -> list[str]:
    """The lines of the first block of shell commands below a heading."""
    below = README.split(f"# {heading}\n", 1)[1]
    found = re.search(r"```sh\n(.*?)```", below, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def draw(path: Path, colour: tuple[int, int, int], rng: np.random.Generator) -> None:
    """A disc of the class's colour, with a darker eye, on a grey and noisy ground."""
    pixels = rng.integers(110, 150, (90, 120, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:90, :120]
    x, y, radius = rng.integers(45, 75), rng.integers(35, 55), rng.integers(20, 30)
    pixels[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = colour
    pixels[(columns - x - 8) ** 2 + (rows - y + 6) ** 2 < 20] = 20
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone of the files as they are, beside the environment that runs this test."""
    environment = Path(sys.prefix)
    if not (environment / ".installed").exists():
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
    (folder / ".venv").symlink_to(environment)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    return folder


def test_from_class_folders_to_labelled_photographs(clone: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(14):
            draw(tmp_path / f"mine/{name}/{number}.png", colour, rng)
        draw(clone / f"photographs/{name}.png", colour, rng)
    tools = {
        **os.environ,
        "PATH": os.pathsep.join([str(clone / ".venv/bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(clone / "src"),
    }
    shown = ""
    for line in commands("Your own photographs") + commands("Label the next photographs"):
        command = line.replace("/where/the/photographs/are", str(tmp_path / "mine"))
        done = subprocess.run(
            command, shell=True, cwd=clone, env=tools, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
        shown += done.stdout
    assert "Fusion weights" in shown
    labelled = pd.read_csv(clone / "results.csv")
    assert len(labelled) == len(COLOURS)
    assert set(labelled["class"]) <= set(COLOURS)
    assert len(list((clone / "drawn").iterdir())) == len(COLOURS)
