import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image
from small_project import Undisturbed, run_undisturbed
from warm import Warm

ROOT = Path(__file__).parents[1]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # for stages that load torch before opam


WARM = pytest.StashKey[Warm]()


def pytest_configure(config: pytest.Config) -> None:
    """Start the Python that stages and DVC are run with, once for all workers.

    What they keep of photographs lies beside it: neither taken from nor left to whoever tests.
    """
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        config.stash[WARM] = Warm()
        os.environ["WARM_PYTHON"] = str(config.stash[WARM].folder / "python")
        os.environ["OPAM_CACHE"] = str(config.stash[WARM].folder / "kept")


SLOWEST = (
    *("test_docs", "test_pipeline", "test_cluster", "test_faults", "test_team", "test_fuzz"),
    *("test_families", "test_end_to_end", "test_report", "test_leakage", "test_distributed"),
)
"""Files that take a minute and more, the slowest first: none is begun when all else is done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST)

    items.sort(key=place)


def pytest_unconfigure(config: pytest.Config) -> None:
    if WARM in config.stash:
        config.stash[WARM].close()


@pytest.fixture
def photographs(tmp_path: Path) -> pd.DataFrame:
    """A manifest of twelve small photographs of two classes: mostly red, mostly green."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        label = number % 2
        pixels = rng.integers(0, 120, (60, 80, 3), dtype=np.uint8)
        pixels[..., label] += 100
        path = tmp_path / f"{number:02}.png"
        Image.fromarray(pixels).save(path)
        rows.append((path.name, str(path), label, "train" if number < 8 else "val", 80, 60))
    columns = ["image_id", "path", "label", "split", "width", "height"]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """All stages on a few drawn birds, once for all workers."""
    together = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        together = together.parent
    told = together / "undisturbed.json"
    with FileLock(together / "undisturbed.lock"):
        if not told.exists():
            found = run_undisturbed(together / "undisturbed")
            told.write_text(json.dumps(asdict(found), default=str))
    found = json.loads(told.read_text())
    folders = {name: Path(found[name]) for name in ("folder", "untouched")}
    return Undisturbed(**found | folders)


@pytest.fixture
def system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The folders that are searched for fonts: none, until a test appends some."""
    from opam.report import fonts

    caches = (fonts._own_letters, fonts._font_with, fonts._first_font)
    caches += (fonts._system_fonts, fonts._tell_once)
    folders: list[Path] = []
    monkeypatch.setattr(fonts, "font_folders", lambda: folders)
    for each in caches:
        each.cache_clear()
    yield folders
    for each in caches:
        each.cache_clear()
