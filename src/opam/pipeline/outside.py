"""What a project takes from outside: the photographs and the weights that parameters name.

DVC looks at both (the dependencies ``${dataset.path}`` and ``${backbone.weights}`` of dvc.yaml), so
that a photograph replaced, or another file under the same name, runs again what depends on it. DVC
takes a path as it is written, from the project's top folder, and stops with little to say where
nothing is there. So this is looked at first.
"""

import os
from pathlib import Path

import yaml

from opam.pipeline.errors import OpamError

PHOTOGRAPHS = Path("data/photographs")
"""Where photographs are looked for that ``dataset.path`` does not place elsewhere."""

WEIGHTS = Path("data/weights")
"""Where a weights file lies that is given by its name alone."""

WORDS = ("package", "timm", "none")
"""What ``backbone.weights`` may say instead of a file; DVC finds a file of that name, too."""

EXPERIMENTS = "/.dvc/tmp/exps/"
"""DVC runs ``dvc exp run --temp`` and ``--queue`` in a folder below this one of the project."""


def given_photographs(path: str) -> Path | None:
    """The folder or archive that ``dataset.path`` names; None where it was left as it comes.

    That is `PHOTOGRAPHS` with nothing in it.
    """
    source = Path(path).expanduser()
    if source == PHOTOGRAPHS and not any(each.name != ".gitignore" for each in _children(source)):
        return None
    return source


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def weights_file(weights: str) -> Path:
    """The file that ``backbone.weights`` names: of `WEIGHTS` by its name, or any by its path."""
    path = Path(weights).expanduser()
    return WEIGHTS / path if (WEIGHTS / path).is_file() else path


def check_photographs_path(path: str, made: Path) -> None:
    """Check ``dataset.path``.

    Args:
        path: the parameter.
        made: what the photographs became; where it is there (restored from a team's remote), they
            need not be.

    Raises:
        OpamError: DVC would find nothing there.
    """
    _check_spelling("dataset.path", path, Path())
    if Path.cwd().is_relative_to(Path(path).resolve()):
        raise OpamError(
            f"dataset.path: {path} holds this project; give the photographs' own folder"
        )
    if not Path(path).exists() and not (made.exists() and path in _made_from()):
        raise OpamError(f"dataset.path: {path} is not there; correct it")


def check_photographs(path: str) -> None:
    """Look for what DVC cannot read in the folder or archive of ``dataset.path``.

    Raises:
        OpamError: it is not there; or it holds names that are no text, links to nothing, pipes, or
            what may not be read.
    """
    if not Path(path).exists():
        raise OpamError(
            f"dataset.path: {path} is not there; correct it, or, where a colleague ran it, "
            "`dvc repro --pull` takes what it became from the team's remote"
        )

    def unreadable(error: OSError) -> None:
        raise OpamError(f"{error.filename}: cannot be read ({error.strerror}); correct it")

    if Path(path).is_file():
        return
    for folder, _, names in os.walk(path, onerror=unreadable, followlinks=True):
        for name in names:
            at = os.path.join(folder, name)
            if not name.isprintable() and not _is_text(name):
                raise OpamError(f"{at!a}: its name is not UTF-8 text; rename it")
            if not os.path.isfile(at):
                what = "links to nothing" if os.path.islink(at) else "is no file"
                raise OpamError(f"{at}: {what}; remove or restore it")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _made_from() -> set[str]:
    """What ``dvc.lock`` says that `fetch_data` was run with."""
    lock = Path("dvc.lock")
    content = yaml.safe_load(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    stage = content.get("stages", {}).get("fetch_data", {})
    return {dependency["path"] for dependency in stage.get("deps", [])}


def check_weights_path(name: str, weights: str, made: Path) -> None:
    """Check a parameter that names weights.

    Args:
        name: of the parameter; DVC looks at the file of ``backbone.weights``, wherever it lies, and
            for all others at `WEIGHTS`.
        weights: its value.
        made: where it is there, the file need not be.

    Raises:
        OpamError: DVC would find nothing there, or would not look there.
    """
    if weights in WORDS:
        return
    _check_spelling(name, weights, WEIGHTS)
    there = WEIGHTS / weights  # pathlib's way with an absolute path: that path
    if not there.is_file() and not made.exists():
        elsewhere = Path(weights)
        what = (
            f"DVC does not see whether it changes; write {elsewhere.resolve()}, or link it there"
            if elsewhere.is_file()
            else "correct it, or take package, timm or none"
        )
        raise OpamError(f"{name}: no file '{weights}' in {WEIGHTS}/: {what}")
    if name != "backbone.weights" and Path(weights).is_absolute():
        raise OpamError(
            f"{name}: {weights} lies where DVC does not see whether it changes; put it, or a link "
            f"to it, into {WEIGHTS}/ and write its name there"
        )


def _check_spelling(name: str, path: str, base: Path) -> None:
    if path.startswith("~"):
        raise OpamError(f"{name}: DVC takes '{path}' as it stands; write {Path(path).expanduser()}")
    if "://" in path:
        raise OpamError(
            f"{name}: {path} is no path of this machine; `dvc import-url {path}` fetches it and "
            "sees whether it changes, then write where it lies"
        )
    project, temporary, _ = f"{Path.cwd().as_posix()}/".partition(EXPERIMENTS)
    if temporary and not Path(path).is_absolute() and not (base / path).exists():
        raise OpamError(
            f"{name}: '{path}' is not there in the folder of its own in which DVC runs this "
            f"experiment; write -S {name}={(Path(project) / base / path).as_posix()}"
        )
