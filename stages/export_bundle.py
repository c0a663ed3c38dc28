"""Export the bundle: all that it takes to classify the next photograph, in one folder.

Run by itself: ``python stages/export_bundle.py``.
"""

from pathlib import Path

from opam.app.bundle import BUNDLE, FORMAT, KNOWN, WEIGHTS
from opam.evaluation.lineage import lineage
from opam.method.colocalization import ColocalizationParams
from opam.method.objects import ObjectParams
from opam.method.parts import PartParams
from opam.method.proposals import ProposalParams
from opam.method.saliency import SaliencyParams
from opam.networks.backbones.backbone import BackboneParams
from opam.pipeline.artifacts import atomic, read_json, write_json
from opam.pipeline.params import Params, read_params
from opam.pipeline.stage import run
from opam.report.model_card import model_card

DATA = Path("data")
OUT = DATA / "bundle"


def main() -> None:
    """Write data/bundle/."""
    backbone = read_params("backbone", BackboneParams)
    steps: dict[str, Params] = {
        "proposals": read_params("proposals", ProposalParams),
        "saliency": read_params("saliency", SaliencyParams),
        "colocalization": read_params("colocalization", ColocalizationParams),
        "objects": read_params("objects", ObjectParams),
        "parts": read_params("parts", PartParams),
    }
    fusion = read_json(DATA / "fusion.json")
    content = {
        "format": FORMAT,
        "classes": read_json(DATA / "classes.json"),
        "fusion": {name: fusion[name] for name in ("rule", "weights")},
        "alignment": read_json(DATA / "neuron_clusters.json"),
        "common": read_json(DATA / "common_component.json"),
        "params": {
            **{name: params.model_dump() for name, params in steps.items()},
            "mirrored": read_params("mirrored", bool),
            "max_side": read_params("prepare.max_side", int),
        },
        "lineage": lineage(),
    }
    files = {f"{name}.safetensors": DATA / "models" / f"{name}.safetensors" for name in WEIGHTS}
    for name, path in {**files, KNOWN: DATA / KNOWN}.items():
        with atomic(OUT / name) as temporary:
            temporary.write_bytes(path.read_bytes())
    write_json(OUT / BUNDLE, content)
    card = model_card(content, backbone.name, read_json(DATA / "metrics.json"))
    with atomic(OUT / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


if __name__ == "__main__":
    run(main)
