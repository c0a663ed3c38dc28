"""What each stage depends on, from its script's imports: tests hold dvc.yaml against it.

That is its script and every module of the package that it loads and that computes. The room
`opam.pipeline` says how a stage runs, and changes no byte of what it writes; the files that make
folders packages hold a few words.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import grimp

from opam.pipeline.environment import ENVIRONMENT, PACKAGES
from opam.pipeline.params import SECTIONS, UNTRACKED_SECTIONS
from opam.systems.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
ASSETS = (".html", ".css", ".js")
"""What a package may hold besides its modules, and reads when it is loaded or used."""

BASELINE = "train_baseline"
"""The one stage with an entry for each system under ``baselines``."""
CHECK = "check_params"
"""The one stage that writes the same whatever it loads: that all is well."""
PLUMBING = "opam.pipeline"
COMPUTES = {"record_environment": ["opam.pipeline.environment"]}
"""Modules of `PLUMBING` that are what a stage is for."""


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(
        "opam", cache_dir=None, include_external_packages=True, exclude_type_checking_imports=True
    )


def imported_modules(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules of ``known`` that the code imports, at any depth of nesting."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & known


def loaded(script: Path) -> set[str]:
    """Every module of the package that a script loads, directly or not, and that computes."""
    own = {module for module in graph().modules if module.startswith("opam.")}
    found: set[str] = set()
    if script.stem == CHECK:
        return found
    for module in imported_modules(ast.parse(script.read_text()), own):
        found |= {module} | graph().find_upstream_modules(module) & own
    if script.stem == BASELINE:
        systems = {f"opam.systems.{name}" for name in SYSTEMS}
        for each in systems:
            found |= graph().find_upstream_modules(each) & own
        found -= systems
    words = {module for module in own if _path(module).name == "__init__.py" and _only_says(module)}
    found = {module for module in found if not module.startswith(PLUMBING)} - words
    return found | {*COMPUTES.get(script.stem, [])}


def _only_says(module: str) -> bool:
    return len(ast.parse(_path(module).read_text()).body) <= 1


def _path(module: str) -> Path:
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def code(script: Path) -> set[str]:
    """Code dependencies of a stage, as they stand in dvc.yaml."""
    modules = loaded(script)
    paths = {_path(module) for module in modules}
    folders = {path.parent for path in paths}
    paths |= {path for folder in folders for path in folder.iterdir() if path.suffix in ASSETS}
    files = {path.relative_to(ROOT).as_posix() for path in (*paths, ROOT / "stages" / script.name)}
    return files | ({"src/opam/systems/${item.system}.py"} if script.stem == BASELINE else set())


def versions(script: Path) -> set[str]:
    """Entries of data/environment.json: the packages that a stage computes with."""
    if script.stem in (CHECK, *COMPUTES):
        return set()
    found = imported_modules(ast.parse(script.read_text()), {*PACKAGES})
    systems = {f"opam.systems.{name}" for name in SYSTEMS} if script.stem == BASELINE else set()
    for module in loaded(script) | systems:
        found |= graph().find_modules_directly_imported_by(module) & {*PACKAGES}
        found |= _through_libraries(module)
    return {f"versions.{package}" for package in found}


def _through_libraries(module: str) -> set[str]:
    return {
        name.name
        for node in ast.walk(ast.parse(_path(module).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "opam.pipeline.libraries"
        for name in node.names
    } & {*PACKAGES}


def sections(script: Path) -> set[str]:
    """Names that the script passes to ``read_params``, without `UNTRACKED_SECTIONS`."""
    if script.stem == CHECK:
        return {*SECTIONS} - {*UNTRACKED_SECTIONS}
    calls = [
        (getattr(node.func, "id", None), node.args)
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Call)
    ]
    names = {
        str(arguments[0].value)
        for name, arguments in calls
        if name == "read_params" and isinstance(arguments[0], ast.Constant)
    }
    if ("lineage", []) in calls:
        names |= {*SECTIONS} - {"baselines"}
    if ("tracked_params", []) in calls:
        names |= {*SECTIONS}
    if script.stem == "prepare":
        names.discard("fusion.folds")  # it is warned where val has too few groups; no byte changes
    parts = {name for name in names if "." in name and name.partition(".")[0] in names}
    return names - parts - {*UNTRACKED_SECTIONS}


def declared_params(stage: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Sections of params.yaml, and entries of data/environment.json."""
    own: set[str] = set()
    environment: set[str] = set()
    for each in stage.get("params", []):
        if isinstance(each, str):
            own.add(each)
            continue
        for file, names in each.items():
            (environment if file == ENVIRONMENT.as_posix() else own).update(names)
    return own, environment


def is_code(dependency: str) -> bool:
    """Whether a dependency is code and not data."""
    return dependency.replace("../", "").startswith(("src/", "stages/"))


__all__ = ["BASELINE", "code", "declared_params", "is_code", "sections", "versions"]
