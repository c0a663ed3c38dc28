"""What computes: the versions of the packages, and the content of the pretrained weights.

``data/environment.json`` holds both. DVC compares its entries, so that another version of OpenCV
runs again what OpenCV computes, and another weights file under the same name what starts from it.
"""

import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from opam.pipeline.artifacts import read_json
from opam.pipeline.errors import OpamError

ENVIRONMENT = Path("data/environment.json")

PACKAGES = {
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "sklearn": ("scikit-learn",),
    "PIL": ("pillow",),
    "cv2": ("opencv-contrib-python-headless", "opencv-contrib-python"),
    "selectivesearch": ("selectivesearch",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "timm": ("timm",),
}
"""Packages that artifacts are computed with: as code imports them, and as they are installed."""


@cache
def installed_versions() -> dict[str, str]:
    """The version of each of `PACKAGES`, without what names a build (``2.14.1+cpu``)."""
    return {module: _version(names).partition("+")[0] for module, names in PACKAGES.items()}


def _version(names: tuple[str, ...]) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def tell_other_versions() -> None:
    """Say on stderr where this machine's versions are not those that were recorded."""
    if not ENVIRONMENT.is_file():
        return
    try:
        recorded = read_json(ENVIRONMENT)["versions"]
    except (OpamError, KeyError, TypeError):
        return  # whoever reads it as an artifact says so
    remedy = "`dvc repro -f record_environment` records it, then `dvc repro` runs what it touches"
    _tell(ENVIRONMENT, recorded, remedy)


def tell_other_pins(lock: Path) -> None:
    """Say on stderr where what is installed is not what the lock file asks for."""
    lines = lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []
    pins = {}
    for line in lines:
        if re.match(r"[\w.-]+==", line):  # of other Pythons and systems, too
            pin = Requirement(line.rstrip(" \\"))
            if pin.marker is None or pin.marker.evaluate():
                pins[pin.name] = str(pin.specifier).removeprefix("==")
    wanted = {
        module: pins[name] for module, names in PACKAGES.items() for name in names if name in pins
    }
    _tell(lock, wanted, f"`python -m pip install --require-hashes -r {lock}` installs it")


def _tell(source: Path, versions: dict[str, str], remedy: str) -> None:
    for module, here in installed_versions().items():
        there = versions.get(module, here)
        if there != here:
            line = f"{source}: {module} {there}, but {here} computes on this machine; {remedy}"
            print(line, file=sys.stderr, flush=True)
