"""DVC's status, push and pull of a data set of 12,000 photographs."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from project import ROOT, call, copy_project

from opam.pipeline.artifacts import write_json
from opam.pipeline.environment import ENVIRONMENT, PACKAGES

PHOTOGRAPHS = 12_000
BYTES = 40_000
"""Of a photograph at 500 x 375 pixels, about."""

TABLES = {
    "data/proposals.parquet": 6_000,
    "data/patch_scores.parquet": 7_000,
    "data/kept_patches.parquet": 3_000,
    "data/saliency.parquet": 4_000,
    "data/object_maps.parquet": 800,
}
"""Bytes a photograph in the large tables."""


def write(path: Path, size: int) -> None:
    """Bytes that do not compress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for _ in range(size // 1_000_000):
            file.write(os.urandom(1_000_000))
        file.write(os.urandom(size % 1_000_000))


def photographs(folder: Path) -> None:
    """One file a photograph, as a comparison."""
    for number in range(PHOTOGRAPHS):
        write(folder / f"{number % 200:03}/{number:05}.jpg", BYTES)


def one_file(path: Path) -> None:
    """All photographs in one file, as `fetch_data` writes them."""
    write(path, PHOTOGRAPHS * BYTES)


def seconds(folder: Path, *command: str) -> float:
    """How long a command takes."""
    started = time.monotonic()
    call(folder, *command)
    return time.monotonic() - started


def times(folder: Path, raw: Callable[[Path], None]) -> dict[str, float]:
    """Write every output, commit it, and time what a team does with it."""
    content = yaml.safe_load((folder / "dvc.yaml").read_text())
    baselines = yaml.safe_load((folder / "params.yaml").read_text())["baselines"]
    write_json(
        folder / ENVIRONMENT,
        {
            "versions": dict.fromkeys(PACKAGES, "1"),
            "weights": {"shared": "1", "baselines": {key: ["1"] for key in baselines}},
        },
    )
    for stage in content["stages"].values():
        names = [
            os.path.normpath(f"{stage.get('wdir', '.')}/{name.replace('${key}', key)}")
            for name in stage.get("do", stage)["outs"]
            for key in (baselines if "foreach" in stage else [""])
        ]
        for out in names:
            if out == ENVIRONMENT.as_posix():
                continue
            if out == "data/raw.zip":
                raw(folder / out)
            elif out.startswith("data/models/"):
                write(folder / out, 14_000_000)
            elif Path(out).suffix:
                write(folder / out, TABLES.get(out, 10) * PHOTOGRAPHS)
            else:
                write(folder / out / "curve.tsv", 1000)
    call(folder, "dvc", "remote", "add", "-d", "team", str(folder / "remote"))
    call(folder, "dvc", "commit", "-f")
    found = {
        "status": seconds(folder, "dvc", "status"),
        "push": seconds(folder, "dvc", "push"),
    }
    for path in (folder / "data").iterdir():
        if path.name not in ("photographs", "weights"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder / ".dvc/cache")
    found["pull"] = seconds(folder, "dvc", "pull")
    return found


def measure() -> list[dict[str, object]]:
    """Rows of seconds, and how much longer it takes with one file a photograph.

    ``dvc status`` looks at the folder that ``dataset.path`` names, too: as many photographs.
    """
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    with tempfile.TemporaryDirectory() as outside:
        photographs(Path(outside) / "source")
        params["dataset"]["path"] = str(Path(outside) / "source")
        packed = times(copy_project(Path(outside) / "packed", params), one_file)
        single = times(copy_project(Path(outside) / "single", params), photographs)
    return [
        {
            "what": f"dvc {command}, {PHOTOGRAPHS} photographs, remote is a folder",
            "value": f"{packed[command]:.1f} s; {single[command]:.1f} s with a file a photograph",
            "ratio": round(single[command] / packed[command], 1),
        }
        for command in packed
    ]
