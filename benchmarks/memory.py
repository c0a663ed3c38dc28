"""Peak memory of every stage, and time a photograph of the map stages, at three sizes."""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from project import ROOT, copy_project, environment

from opam.pipeline.presets import laid_over

SIZES = (250, 1000, 4000)
MAPS = ("propose_patches", "score_patches", "extract_saliency", "select_parts")
"""Stages that do the same for each photograph."""
DRAWN = 10
"""Different photographs a class; the data set repeats them."""


def params() -> dict[str, Any]:
    """Small crops and a small network: how memory grows does not depend on them."""
    presets = ROOT / "presets"
    text = laid_over(presets / "defaults.yaml", presets / "imagefolder.yaml")
    content: dict[str, Any] = yaml.safe_load(text)
    content["backbone"] = {"name": "mobilenetv3_small_050", "weights": "none"}
    content["training"] |= {"epochs": 1, "input_size": 32, "resize": 36, "rate": 0.001}
    content["proposals"] |= {"mode": "single", "max_side": 96, "max_boxes": 10}
    content["filter"]["threshold"] = 0.0
    for network in ("filternet", "classnet", "objectnet", "partnet"):
        content[network] = {}
    content["classnet"] = {"patches_per_image": 1}
    content["saliency"] |= {"input_size": 64}
    content["colocalization"] |= {"layer": None, "input_size": 64}
    content["alignment"]["convolution"] = None
    content["baselines"] = {"finetune": content["baselines"]["finetune"]}
    return content


def lay_out(folder: Path, photographs: int) -> None:
    """Class folders of drawn birds, each bird linked as often as needed."""
    from opam.photographs.datasets import synthetic_birds

    drawn = folder.with_name("drawn")
    if not drawn.exists():
        birds = synthetic_birds.SyntheticBirdsParams(
            seed=0, train_per_class=DRAWN, test_per_class=1
        )
        synthetic_birds.fetch(drawn, birds)
        for path in drawn.rglob("*.jpg"):
            image = Image.open(path)
            image.resize((image.width // 3, image.height // 3)).save(path)
    for species in sorted((drawn / "images/train").iterdir()):
        (folder / species.name).mkdir(parents=True)
        for number in range(photographs // 8):
            source = species / f"{number % DRAWN:04}.jpg"
            os.link(source, folder / species.name / f"{number:05}.jpg")


# A process counts what it was forked from: a small one starts the stage and is asked.
START = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def peak(folder: Path, *script: str) -> tuple[float, float]:
    """Peak MB of a stage's largest process, and the seconds it took."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", START, *script],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{script}:\n{done.stderr}")
    return int(done.stdout) / 1024, time.monotonic() - started


def measure() -> list[dict[str, object]]:
    """A row per stage: MB at the sizes; a row per map stage: time of one more photograph."""
    stages = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    found: dict[str, list[tuple[float, float]]] = {stage: [] for stage in stages}
    with tempfile.TemporaryDirectory() as outside:
        for size in SIZES:
            photographs = Path(outside) / f"photographs{size}"
            lay_out(photographs, size)
            content = params()
            content["dataset"]["path"] = str(photographs)
            folder = copy_project(Path(outside) / f"project{size}", content)
            for stage in stages:
                entry = ["finetune"] if stage == "train_baseline" else []
                found[stage].append(peak(folder, f"stages/{stage}.py", *entry))
    rows: list[dict[str, object]] = []
    for stage, measured in found.items():
        megabytes = [each[0] for each in measured]
        rows.append(
            {
                "what": f"{stage}, peak memory at {', '.join(map(str, SIZES))} photographs",
                "value": ", ".join(f"{each:.0f} MB" for each in megabytes),
                "ratio": round(megabytes[-1] / megabytes[-2], 2),
            }
        )
    few, some, many = SIZES
    for stage in MAPS:
        seconds = [each[1] for each in found[stage]]
        early = (seconds[1] - seconds[0]) / (some - few)
        late = (seconds[2] - seconds[1]) / (many - some)
        rows.append(
            {
                "what": f"{stage}, one more photograph, from {some} to {many} and {few} to {some}",
                "value": f"{1000 * late:.1f} ms; {1000 * early:.1f} ms",
                "ratio": round(late / early, 2),
                "goal": "0.9 to 1.1",
            }
        )
    return rows


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for row in measure():
        print(row)
