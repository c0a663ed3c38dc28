"""Code and parameter dependencies of every stage, from its script's imports to dvc.yaml.

What a stage imports decides when it runs again. This module computes, for each script under
``stages/``, every module of the package that it loads and every section of params.yaml that
it reads; a test holds dvc.yaml against that, and

    python -m opam.stage_deps

writes it into dvc.yaml.
"""

import ast
from pathlib import Path
from typing import Any

import grimp
from ruamel.yaml import YAML

from opam.config import SECTIONS, UNTRACKED_SECTIONS
from opam.environment import ENVIRONMENT, PACKAGES
from opam.models.systems import SYSTEMS

DVC_FILE = Path("dvc.yaml")

ASSETS = (".html", ".css", ".js")
"""What a package may hold besides its modules, and reads when it is loaded or used."""

BASELINE = "train_baseline"
"""The one stage with an entry for each system under ``baselines``."""

CHECK = "check_params"
"""The one stage that reads every section, and every system's module."""

PLUMBING = {"opam.device", "opam.cluster", "opam.distributed"}
"""Modules that set packages up and compute nothing with them."""


def imported_modules(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules of ``known`` that the code imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & known


def code_deps(script: Path, source: Path = Path("src")) -> list[str]:
    """The script and the file of every package module it loads, packages' own files included."""
    graph = _graph()
    loaded: set[str] = set()
    for module in imported_modules(ast.parse(script.read_text()), graph.modules):
        loaded |= {module} | graph.find_upstream_modules(module)
    # Loading a module loads the packages around it first, and what those import.
    for module in sorted(loaded):
        for parent in _parents(module):
            loaded |= {parent} | graph.find_upstream_modules(parent)
    modules = {_file(module, source) for module in loaded}
    return [
        script.as_posix(),
        *sorted(path.as_posix() for path in modules | _assets(modules)),
    ]


def stage_code(script: Path) -> list[str]:
    """Code dependencies of a stage, as they stand in dvc.yaml.

    An entry of ``train_baseline`` depends on its own system's module and on none of the others.
    """
    code = code_deps(script)
    if script.stem == CHECK:
        return [code[0], *sorted({*code[1:], *(f"src/opam/models/{name}.py" for name in SYSTEMS)})]
    if script.stem != BASELINE:
        return code
    graph = _graph()
    systems = {f"opam.models.{name}" for name in SYSTEMS}
    loaded = {module for each in systems for module in graph.find_upstream_modules(each)}
    shared = {_file(module, Path("src")).as_posix() for module in loaded - systems}
    return [code[0], *sorted({*code[1:], *shared, "src/opam/models/${item.system}.py"})]


def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("opam", cache_dir=None, exclude_type_checking_imports=True)


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _file(module: str, source: Path) -> Path:
    path = source / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _assets(modules: set[Path]) -> set[Path]:
    """Files of `ASSETS` beside the modules that are packages."""
    folders = [path.parent for path in modules if path.name == "__init__.py"]
    return {path for folder in folders for path in folder.iterdir() if path.suffix in ASSETS}


def param_sections(script: Path) -> list[str]:
    """Names that the script passes to ``read_params``, without `UNTRACKED_SECTIONS`."""
    if script.stem == CHECK:
        return sorted(set(SECTIONS) - set(UNTRACKED_SECTIONS))
    calls = [
        (getattr(node.func, "id", None), node.args)
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Call)
    ]
    names = {
        arguments[0].value
        for name, arguments in calls
        if name == "read_params" and isinstance(arguments[0], ast.Constant)
    }
    if ("lineage", []) in calls:
        names |= set(SECTIONS) - {"baselines"}
    if script.stem == BASELINE:
        names.add("baselines.${key}")
    return sorted(str(name) for name in names if name not in UNTRACKED_SECTIONS)


def computed_with(script: Path) -> list[str]:
    """Entries of data/environment.json that a stage depends on: packages, pretrained weights."""
    if script.stem in (CHECK, "record_environment"):
        return []
    graph = grimp.build_graph(
        "opam", cache_dir=None, include_external_packages=True, exclude_type_checking_imports=True
    )
    files = stage_code(script)
    modules = {module for module in graph.modules if _file(module, Path("src")).as_posix() in files}
    loaded = imported_modules(ast.parse(script.read_text()), set(PACKAGES))
    for module in modules - PLUMBING:
        loaded |= graph.find_modules_directly_imported_by(module) & set(PACKAGES)
    entries = [f"versions.{package}" for package in sorted(loaded)]
    if script.stem == BASELINE:
        return [*entries, "weights.baselines.${key}"]
    return [*entries, *(["weights.shared"] if "backbone" in param_sections(script) else [])]


def stage_params(script: Path) -> list[Any]:
    """What a stage depends on besides code and data, as it stands in dvc.yaml."""
    entries = computed_with(script)
    return [*param_sections(script), *([{ENVIRONMENT.as_posix(): entries}] if entries else [])]


def is_code(dependency: str) -> bool:
    """Whether a dependency is code and not data."""
    return dependency.replace("../", "").startswith(("src/", "stages/"))


def main() -> None:
    """Rewrite code dependencies and params of every stage in dvc.yaml; all else stays."""
    yaml = YAML()
    yaml.width = 100
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(DVC_FILE)
    for name, stage in content["stages"].items():
        script = Path("stages") / f"{name}.py"
        stage = stage.get("do", stage)
        top = "../" * len(Path(stage.get("wdir", "")).parts)
        data = [dependency for dependency in stage.get("deps", []) if not is_code(dependency)]
        deps = stage["deps"]
        deps.clear()
        deps.extend([top + path for path in stage_code(script)] + data)
        params = stage_params(script)
        if top:  # DVC looks for params.yaml in the stage's own folder
            params = [{f"{top}params.yaml": params}]
        if params:
            stage["params"] = params
        else:
            stage.pop("params", None)
    yaml.dump(content, DVC_FILE)


if __name__ == "__main__":
    main()
