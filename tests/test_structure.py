"""The project's shape: import directions, and dvc.yaml against the imports."""

import ast
from pathlib import Path

import grimp
import pytest
import yaml

from opam.models.systems import SYSTEMS
from opam.stage_deps import BASELINE, code_deps, computed_with, is_code, stage_code, stage_params

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "stages").glob("*.py"))
STEPS = {
    "opam." + name
    for name in (
        [
            "preparation",
            "proposals",
            "filtering",
            "saliency",
            "colocalization",
            "objects",
            "parts",
            "alignment",
            "probes",
            "fusion",
            "metrics",
            "baselines",
        ]
    )
}
FACES = {
    "opam.report",
    "opam.stage_deps",
    "opam.classifier",
    "opam.predict",
    "opam.serve",
    "opam.onnx_export",
    "opam.cli",
}


@pytest.fixture(scope="module")
def stages() -> dict[str, dict[str, list[str]]]:
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in content.items()}


def test_every_script_is_a_stage_and_every_stage_a_script(stages: dict) -> None:
    assert {script.stem for script in SCRIPTS} == set(stages)
    for name, stage in stages.items():
        key = " ${key}" if name == BASELINE else ""
        first = "cd ../.. && " if "wdir" in stage else ""
        assert stage["cmd"] == f"{first}python stages/{name}.py{key}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_code_dependencies_are_what_the_script_loads(
    script: Path, stages: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    declared = {dep.replace("../", "") for dep in stages[script.stem]["deps"] if is_code(dep)}
    loaded = set(stage_code(script.relative_to(ROOT)))
    hint = f"stage {script.stem}; `make deps` corrects dvc.yaml"
    assert not loaded - declared, f"dvc.yaml lacks {sorted(loaded - declared)} in {hint}"
    assert not declared - loaded, f"dvc.yaml has {sorted(declared - loaded)} too much in {hint}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_params_are_what_the_script_reads(
    script: Path, stages: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    declared = stages[script.stem].get("params", [])
    if "wdir" in stages[script.stem]:
        [(file, declared)] = declared[0].items()
        assert file == "../../params.yaml"
    assert declared == stage_params(script.relative_to(ROOT)), (
        f"params of stage {script.stem} differ; `make deps` corrects dvc.yaml"
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_artifacts_are_what_the_script_names(script: Path, stages: dict) -> None:
    """Every data path that a script spells out as one string is an input or output of it."""
    stage = stages[script.stem]
    declared = [path for path in stage["deps"] + stage["outs"] if path.startswith("data/")]
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            path = node.value
            if path.startswith("data/") and " " not in path and "\n" not in path:
                assert any(each.startswith(path) or path.startswith(each) for each in declared), (
                    path
                )


def test_an_entry_depends_on_its_own_system_alone(stages: dict) -> None:
    declared = stages[BASELINE]["deps"]
    assert "src/opam/models/${item.system}.py" in declared
    for name in SYSTEMS:
        assert f"src/opam/models/{name}.py" not in declared
    assert "src/opam/models/regions.py" in declared
    *sections, environment = stages[BASELINE]["params"]
    assert sections == ["backbone", "baselines.${key}", "mirrored", "seed"]
    assert environment["data/environment.json"][-1] == "weights.baselines.${key}"


def test_a_stage_depends_on_the_packages_that_it_computes_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    proposing = computed_with(Path("stages/propose_patches.py"))
    assert "versions.cv2" in proposing
    assert "versions.torch" not in proposing
    training = computed_with(Path("stages/train_classnet.py"))
    assert {"versions.torch", "versions.timm", "weights.shared"} <= {*training}
    assert "versions.sklearn" in computed_with(Path("stages/align_parts.py"))


def test_a_module_that_is_not_declared_is_found(tmp_path: Path) -> None:
    script = tmp_path / "new.py"
    script.write_text("def main():\n    from opam.parts import select_parts\n")
    files = code_deps(script)
    assert "src/opam/parts.py" in files
    assert "src/opam/__init__.py" in files
    assert "src/opam/fusion.py" not in files


def test_imports_point_one_way() -> None:
    graph = grimp.build_graph("opam", cache_dir=None, exclude_type_checking_imports=True)
    for module in graph.modules:
        imported = graph.find_modules_directly_imported_by(module)
        if module in STEPS:
            assert not imported & STEPS, f"{module} imports another step"
        if module not in STEPS and not any(module.startswith(face) for face in FACES):
            assert not imported & STEPS, f"foundation {module} imports a step"
        if not any(module.startswith(face) for face in FACES):
            upward = [m for m in imported if any(m.startswith(face) for face in FACES)]
            assert not upward, f"{module} imports {upward}, which only draws or reports"


def test_there_are_no_import_cycles() -> None:
    graph = grimp.build_graph("opam", cache_dir=None, exclude_type_checking_imports=True)
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            assert not graph.chain_exists(imported, module), f"{module} <-> {imported}"


def test_steps_know_no_paths_and_no_dvc() -> None:
    for step in STEPS:
        source = (ROOT / "src" / Path(*step.split("."))).with_suffix(".py").read_text()
        names = {
            name.name if isinstance(node, ast.Import) else node.module
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in node.names
        }
        assert not {"pathlib", "dvc", "yaml"} & names, step
