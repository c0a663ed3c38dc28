"""A device at work: crops cut there, training, scoring and maps over the network alone, all stages.

Run: ``python benchmarks/bench.py gpu``. It wants neither DVC nor a network, so the project's folder
can be carried to a machine that has a GPU: with it the photographs that params.yaml names, the
weights if ``backbone.weights`` names a file, and wheels of what that machine lacks of
pyproject.toml's dependencies without dvc and opencv's other builds (beside torch, torchvision and
timm some 40 MB; pydantic is the one that is most often missing). Preset ``cub-small-cpu`` is run on
these photographs, stage after stage, in a folder of its own. On a machine without a GPU the same
code is measured with the CPU in its place; give it few photographs there.
"""

import os
import tempfile
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import maps
import torch
import training
import yaml
from architectures import crops_of, rate, rates
from project import ROOT, copy_project, params_of, run_stages

from opam.engine.crops.cutting import cut
from opam.engine.crops.on_device import OnDevice
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, read_table
from opam.pipeline.device import ExecutionParams, prepare_device
from opam.pipeline.params import read_params

LAST_BEFORE = "propose_patches"
"""Up to here networks have nothing to do."""
BATCH = 256
"""Crops a batch, for scores and maps on a GPU."""
CROPS = 512
FULL = (5_994, 11_788)
"""Photographs of the whole of CUB-200-2011, for training and in all."""
PROPOSALS = 1_000
CENTS = 400
"""What an hour of such a GPU costs, about; put in your own price."""


def cutting(device: torch.device) -> list[dict[str, object]]:
    """Crops cut on the device, over crops cut by one thread of the CPU."""
    manifest = read_table(Path("data/manifest.parquet"), "manifest")
    proposals = read_table(Path("data/proposals.parquet"), "proposals")
    chosen = proposals.sample(min(CROPS, len(proposals)), random_state=0).sort_values("image_id")
    read = Photographs(manifest, 20.0)
    there, path_of = OnDevice(read, device), manifest.set_index("image_id")["path"]
    cuts = [(path_of[one], rows[BOX].to_numpy(), None) for one, rows in chosen.groupby("image_id")]
    images = [read(path) for path, *_ in cuts]
    rows: list[dict[str, object]] = []
    for size in (224, 448):

        def on_cpu(size: int) -> None:
            for image, (_, boxes, _) in zip(images, cuts, strict=True):
                cut(image, boxes, size)

        own = rate(partial(there.cut, cuts, size), len(chosen), device)
        plain = rate(partial(on_cpu, size), len(chosen), torch.device("cpu"))
        rows.append(
            {
                "what": f"crops of {size} pixels cut in the memory of {device.type}; by one thread "
                "of the CPU",
                "value": f"{own:.0f}; {plain:.0f} a second",
                "ratio": round(own / plain, 2),
            }
        )
    return rows


def whole_cub(device: torch.device, full: dict[str, Any]) -> list[dict[str, object]]:
    """From the rates of ResNet-50 at 448 pixels, what all of CUB-200-2011 takes: a product.

    Args:
        device: that is measured.
        full: parameters, of whose epochs and crops it is.
    """
    trained, looked = rates("resnet50", 448, 64 if device.type == "cuda" else 2, device)
    trains, looks = crops_of(full, *FULL)
    minutes = (trains / trained + looks / looked) / 60
    return [
        {
            "what": "ResNet-50, 448 pixels, random weights: trained; looked at",
            "value": f"{trained:.1f}; {looked:.1f} photographs a second",
            "ratio": "",
        },
        {
            "what": f"from these, all of CUB-200-2011: {trains} crops trained, {looks} looked at "
            f"({PROPOSALS} proposals each, exact); at {CENTS / 100:.2f} USD an hour",
            "value": f"{minutes:.0f} minutes, {minutes * CENTS / 6000:.2f} USD",
            "ratio": "",
        },
    ]


def measure() -> list[dict[str, object]]:
    """Rows of the benchmark table."""
    shared = yaml.safe_load((ROOT / "params.yaml").read_text())
    params = {**params_of("cub-small-cpu", shared, shared["seed"]), "backbone": shared["backbone"]}
    if torch.cuda.is_available():
        params["execution"] = {**params["execution"], "batch_size": BATCH, "workers": 8}
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["OPAM_CACHE"] = str(Path(temporary, "kept"))
        folder = copy_project(Path(temporary) / "project", params)
        took = run_stages(folder, params)
        with chdir(folder):
            device = prepare_device(read_params("execution", ExecutionParams))
            count = len(read_table(Path("data/manifest.parquet"), "manifest"))
            found = [*cutting(device), *training.measure(), *maps.measure()]
    names = [*took]
    behind = names[names.index(LAST_BEFORE) + 1 :]
    whole = f"all stages behind the proposals, {count} photographs, starts included"
    seconds = {whole: sum(took[name] for name in behind), **{name: took[name] for name in behind}}
    rows: list[dict[str, object]] = [
        {"what": name, "value": f"{each:.1f} s", "ratio": ""} for name, each in seconds.items()
    ]
    full = params_of("cub200-resnet50", shared, 0)
    full["proposals"]["max_boxes"] = PROPOSALS
    return [*rows, *found, *whole_cub(device, full)]


if __name__ == "__main__":
    for row in measure():
        print(row)
