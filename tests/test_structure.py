"""The project's shape: rooms and what they import, dvc.yaml against the imports, sizes."""

import ast
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from rooms import ORDER
from stage_deps import BASELINE, code, declared_params, is_code, sections, versions

from opam.pipeline.params import NETWORKS
from opam.systems.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.stem: path for path in sorted((ROOT / "stages").glob("*.py"))}
CONTENT = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES: dict[str, dict[str, Any]] = {
    name: stage.get("do", stage) for name, stage in CONTENT.items()
}
TRAINED = {f"train_{name}": name for name in NETWORKS}

SHOWN = {"report", "app"}
"""Rooms that no stage that computes imports; these stages only pack, draw, compare or check."""
SHOWING = {"check_params", "draw_examples", "export_bundle", "compare", "report"}


WAYS = {"training": {"engine/forward", "photographs/folds"}, "discriminant": set[str]()}
"""How a network comes about, and the modules that only the other way reads: DVC's file can choose
a folder by a parameter, but not whether there is one."""


def scripts_of(stage: str) -> list[Path]:
    """One; of a network one for each of `WAYS`."""
    names = [f"network_by_{way}" for way in WAYS] if stage in TRAINED else [stage]
    return [SCRIPTS[name] for name in names]


def script_of(stage: str) -> Path:
    return scripts_of(stage)[0]


def way_of(stage: str) -> str:
    """The parameter that says how a network comes about, as dvc.yaml has it."""
    return f"${{{TRAINED[stage]}.by}}"


def named(path: str) -> str:
    """The file or folder of the project, as seen from its top."""
    return path.replace("../", "")


def expanded(paths: list[str]) -> set[str]:
    """Files, those of a folder each for itself, without the words that make folders packages."""
    found: set[str] = set()
    for path in map(named, paths):
        files = (ROOT / path).rglob("*") if (ROOT / path).is_dir() else [ROOT / path]
        for file in files:
            words = file.name == "__init__.py" and len(ast.parse(file.read_text()).body) <= 1
            if "__pycache__" not in file.parts and not file.is_dir() and not words:
                found.add(file.relative_to(ROOT).as_posix())
    return found


def test_every_script_is_a_stage_and_every_stage_a_script() -> None:
    assert {script.stem for stage in STAGES for script in scripts_of(stage)} == set(SCRIPTS)
    for name, stage in STAGES.items():
        first = "cd ../.. && " if "wdir" in stage else ""
        entry = " ${key}" if name == BASELINE else f" {TRAINED[name]}" if name in TRAINED else ""
        script = f"network_by_{way_of(name)}.py" if name in TRAINED else f"{name}.py"
        assert stage["cmd"] == f"{first}python stages/{script}{entry}"
        assert stage["desc"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_code_that_computes_for_it_and_on_no_other(name: str) -> None:
    for script, (way, others) in zip(scripts_of(name), WAYS.items(), strict=False):
        paths = [path for path in STAGES[name]["deps"] if is_code(path)]
        if name in TRAINED:
            paths = [path.replace(way_of(name), way) for path in paths]
        declared, loaded = expanded(paths), code(script)
        assert not loaded - declared, f"stage {name} in dvc.yaml lacks {sorted(loaded - declared)}"
        more = {f"src/opam/{module}.py" for module in others} if name in TRAINED else set()
        assert declared - loaded == more, f"stage {name} has others too much"


@pytest.mark.parametrize("name", STAGES)
def test_params_are_what_the_script_reads(name: str) -> None:
    own, environment = declared_params(STAGES[name])
    expected = set().union(*map(sections, scripts_of(name)))
    if name in TRAINED:
        expected |= {TRAINED[name], "training"}
        if TRAINED[name] in ("objectnet", "partnet"):  # they begin with ClassNet
            expected -= {"backbone"}
    if name == BASELINE:
        expected |= {"baselines.${key}", "training"}
    if name == "record_environment":
        expected |= {"training"}
    assert own == expected
    weights = {
        BASELINE: "weights.baselines.${key}",
        "export_bundle": "weights.shared",
        "report": "weights.shared",
    }
    if "backbone" in own and name not in ("check_params", "record_environment"):
        weights.setdefault(name, "weights.shared")
    used = versions(script_of(name))
    assert all(versions(script) == used for script in scripts_of(name))
    if "versions" in environment:  # all of them are told, or counted
        used = {"versions"}
    assert environment == used | {weights[name]} if name in weights else environment == used


@pytest.mark.parametrize("name", STAGES)
def test_artifacts_are_what_the_script_names(name: str) -> None:
    """Every data path that a script spells out as one string is an input or output of it."""
    if name in TRAINED:
        return
    stage = STAGES[name]
    declared = [path for path in stage["deps"] + stage["outs"] if path.startswith("data/")]
    for node in ast.walk(ast.parse(script_of(name).read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            path = node.value
            if path.startswith("data/") and " " not in path and "\n" not in path:
                assert any(each.startswith(path) or path.startswith(each) for each in declared), (
                    path
                )


def test_an_entry_depends_on_its_own_system_alone() -> None:
    declared = STAGES[BASELINE]["deps"]
    assert "src/opam/systems/${item.system}.py" in declared
    for name in SYSTEMS:
        assert f"src/opam/systems/{name}.py" not in declared


@pytest.mark.parametrize(
    ("stage", "package", "used"),
    [
        ("propose_patches", "cv2", True),
        ("propose_patches", "torch", False),
        ("network_by_training", "torch", True),
        ("network_by_discriminant", "timm", True),
        ("align_parts", "sklearn", True),
        ("select_parts", "torch", False),
    ],
)
def test_packages_that_a_stage_computes_with(stage: str, package: str, used: bool) -> None:
    assert (f"versions.{package}" in versions(SCRIPTS[stage])) == used


def test_a_module_that_is_not_declared_is_found(tmp_path: Path) -> None:
    script = tmp_path / "fuse.py"
    script.write_text("def main():\n    from opam.method.parts import select_parts\n")
    assert code(script) == {"stages/fuse.py", "src/opam/method/parts.py"}


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def test_rooms_import_only_those_before_them() -> None:
    graph = grimp.build_graph("opam", cache_dir=None, exclude_type_checking_imports=True)
    assert {room_of(module) for module in graph.modules} - {""} == set(ORDER)
    for module in graph.modules - {"opam"}:
        for imported in graph.find_modules_directly_imported_by(module) - {"opam"}:
            own, other = ORDER.index(room_of(module)), ORDER.index(room_of(imported))
            assert other <= own, f"{module} imports {imported}"
            assert {room_of(module), room_of(imported)} != {"method", "engine"}, module


def test_there_are_no_import_cycles() -> None:
    graph = grimp.build_graph("opam", cache_dir=None, exclude_type_checking_imports=True)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            assert not graph.chain_exists(imported, module), f"{module} <-> {imported}"


def imports(path: Path) -> set[str]:
    return {
        name.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }


def test_stages_that_compute_import_nothing_that_shows() -> None:
    for name, path in SCRIPTS.items():
        shown = {each for each in imports(path) if room_of(each) in SHOWN and "opam" in each}
        assert not shown or name in SHOWING, f"{name} imports {shown}"


def test_steps_know_no_paths_and_no_dvc_and_no_other_step() -> None:
    steps = sorted((ROOT / "src/opam/method").glob("*.py"))
    assert len(steps) > 8
    for step in steps:
        names = imports(step)
        assert not {"pathlib", "dvc", "yaml"} & names, step
        assert not [name for name in names if name.startswith("opam.method")], step


def test_rooms_say_what_lives_there() -> None:
    packages = [path for path in (ROOT / "src/opam").iterdir() if (path / "__init__.py").exists()]
    assert len(packages) <= 10
    for package in packages:
        assert "mport" in (
            ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
        )
    assert len([*(ROOT / "src/opam").glob("*.py")]) <= 3


def lines(path: str) -> int:
    return len((ROOT / path).read_text().splitlines())


def test_what_people_read_is_short() -> None:
    assert lines("dvc.yaml") <= 320
    assert lines("params.yaml") <= 90
    assert lines("README.md") <= 180
    for preset in (ROOT / "presets").glob("*.yaml"):
        assert lines(f"presets/{preset.name}") <= (90 if preset.stem == "defaults" else 40), preset
