"""What people expect of a repository says what is so."""

import hashlib
import json
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import yaml
from rooms import ORDER, ROOT, diagram, imports
from typer.main import get_command

from opam.app.cli import app

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
PROSE = re.sub(r"```.*?```", "", CONTRIBUTING, flags=re.DOTALL)
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = [
    line
    for line in (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    if line and not line.startswith("#")
]
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt."""


def test_the_licence_is_apaches() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert PROJECT["license"] == "Apache-2.0"


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["title"].lower() in " ".join(README.split()).replace("*", "").lower()


def test_the_changelog_has_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {"Unreleased", PROJECT["version"]} <= set(headings)


def test_the_table_of_rooms_is_the_package() -> None:
    house = CONTRIBUTING.split("## How the house is built")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", house, re.MULTILINE)
    assert tuple(listed) == ORDER
    assert set(listed) == {path.parent.name for path in ROOT.glob("src/opam/*/__init__.py")}


def test_a_room_imports_only_rooms_above_it() -> None:
    for room, imported in imports().items():
        assert imported <= set(ORDER[: ORDER.index(room)]), room
    assert "method" not in imports()["engine"]


def test_the_picture_of_the_rooms_is_drawn_from_the_imports() -> None:
    assert f"```mermaid\n{diagram()}\n```" in CONTRIBUTING, "`python tests/rooms.py` draws it"


def test_the_stages_that_only_show_and_pack_are_named() -> None:
    (sentence,) = re.findall(r"Of them only (.*?) import `report`", PROSE, re.DOTALL)
    showing = {
        script.stem
        for script in ROOT.glob("stages/*.py")
        if re.search(r"^ *(?:from|import) opam\.(?:report|app)\b", script.read_text(), re.MULTILINE)
    }
    assert set(re.findall(r"`(\w+)`", sentence)) == showing


def test_every_file_that_is_named_is_there() -> None:
    outputs = (ROOT / "dvc.yaml").read_text()
    named = {each for each in re.findall(r"`([\w.-]*/[\w./-]*)`", PROSE) if "NAME" not in each}
    assert len(named) > 20
    gone = {each for each in named if not (ROOT / each).exists()}
    made = {each for each in gone if each.rstrip("/") in outputs or each == ".resume/"}
    assert gone == made


def test_every_target_of_make_is_there() -> None:
    targets = set(re.findall(r"^([\w.-]+):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)(?: NAME=...)?[`\n]", CONTRIBUTING)) <= targets


def test_the_image_takes_the_readmes_steps() -> None:
    (tools,) = (line for line in DOCKERFILE if line.startswith("RUN apt-get"))
    packages = re.findall(r"apt-get install --yes ([\w -]*\w)", tools)
    assert packages == ["git make", "python3 python3-venv"]
    assert re.search(r"git, make and Python 3\.\d+", " ".join(README.split()))
    (installed,) = re.findall(r"^repro: (\S+)", MAKEFILE, re.MULTILINE)
    project = DOCKERFILE.index("FROM tools AS project")
    steps = ["WORKDIR /opam", "COPY . .", f"RUN make {installed}"]
    assert DOCKERFILE[project + 1 : project + 4] == steps
    assert DOCKERFILE[-2:] == ["FROM project", 'CMD ["make", "repro"]']
    assert "\nmake repro\n" in README


def test_the_image_that_serves_is_the_same_and_no_root() -> None:
    start, end = DOCKERFILE.index("FROM project AS serve"), DOCKERFILE.index("FROM project")
    steps = dict(line.split(" ", 1) for line in DOCKERFILE[start:end])
    assert steps["USER"] == "opam"
    assert steps["RUN"].endswith(f" {steps['USER']}")
    assert ".venv/bin/python" in steps["HEALTHCHECK"]  # which test_serve.py runs
    program, command, *options = json.loads(steps["ENTRYPOINT"])
    assert (program, command) == (".venv/bin/opam", "serve")
    known = {option for each in get_command(app).commands[command].params for option in each.opts}
    assert set(options[::2]) == {"--bundle", "--host"} <= known
    page = (ROOT / "docs/deployment.md").read_text()
    assert f":{options[1]}:ro" in page
    assert f":{steps['EXPOSE']} " in page


def test_the_development_container_is_built_from_it() -> None:
    folder = ROOT / ".devcontainer"
    container = json.loads((folder / "devcontainer.json").read_text())
    assert (folder / container["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert f"FROM ${{BASE}} AS {container['build']['target']}" in DOCKERFILE
    assert f"RUN {container['postCreateCommand']}" in DOCKERFILE


def test_the_image_gets_what_git_keeps() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert left_out(".venv/bin/python", rules)
    assert left_out("data/raw.zip", rules)
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        assert not left_out(name, rules), name


def left_out(name: str, rules: list[str]) -> bool:
    """Whether Docker leaves a file out: of the rules that match it or a folder of it, the last."""
    path, out = Path(name), False
    for rule in rules:
        pattern = rule.removeprefix("!")
        if any(fnmatch(each.as_posix(), pattern) for each in (path, *path.parents)):
            out = not rule.startswith("!")
    return out
