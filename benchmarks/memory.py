"""Peak memory of every stage at 1,000 and at 4,000 photographs."""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from PIL import Image
from project import ROOT, copy_project, environment

SIZES = (1000, 4000)
DRAWN = 10
"""Different photographs a class; the data set repeats them."""


def params() -> dict:
    """Small crops and a small network: how memory grows does not depend on them."""
    content = yaml.safe_load((ROOT / "presets/imagefolder.yaml").read_text())
    content["backbone"] = {"name": "mobilenetv3_small_050", "weights": "none"}
    content["proposals"] |= {"mode": "single", "max_side": 96, "max_boxes": 10}
    content["filter"]["threshold"] = 0.0
    for network in ("filternet", "classnet", "objectnet", "partnet"):
        content[network] |= {"epochs": 1, "input_size": 32, "resize": 36, "rate": 0.001}
    content["classnet"]["patches_per_image"] = 1
    content["saliency"] |= {"input_size": 64}
    content["colocalization"] |= {"layer": None, "input_size": 64}
    content["alignment"]["convolution"] = None
    content["baselines"] = {"finetune": content["baselines"]["finetune"]}
    content["baselines"]["finetune"]["training"] |= {"epochs": 1, "input_size": 32, "resize": 36}
    return content


def lay_out(folder: Path, photographs: int) -> None:
    """Class folders of drawn birds, each bird linked as often as needed."""
    from opam.datasets import synthetic_birds

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


def peak(folder: Path, *script: str) -> float:
    """Peak MB of a stage's largest process."""
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
    return int(done.stdout) / 1024


def measure() -> list[dict[str, object]]:
    """A row per stage: MB at both sizes, and their ratio."""
    stages = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    found: dict[str, list[float]] = {stage: [] for stage in stages}
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
    rows = []
    for stage, (small, large) in found.items():
        rows.append(
            {
                "what": f"{stage}, peak memory",
                "value": f"{small:.0f} MB at {SIZES[0]}, {large:.0f} MB at {SIZES[1]} photographs",
                "ratio": round(large / small, 2),
            }
        )
    return rows


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for row in measure():
        print(row)
