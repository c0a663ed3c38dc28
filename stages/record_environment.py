"""Record what computes: versions of packages, content of the pretrained weights.

Run by itself: ``python stages/record_environment.py``.
"""

import hashlib
from pathlib import Path
from typing import Any

from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.backbones.weights import state_digest
from opam.pipeline.artifacts import write_json
from opam.pipeline.environment import ENVIRONMENT, installed_versions, tell_other_pins
from opam.pipeline.errors import OpamError
from opam.pipeline.outside import weights_file
from opam.pipeline.params import params_path, read_params, section_of
from opam.pipeline.stage import run


def weights_digest(params: BackboneParams) -> str:
    """SHA-256 of the pretrained weights; "none" where a network begins with random ones."""
    if params.weights == "none":
        return "none"
    return state_digest(create_backbone(params).body)


def file_digest(parameter: str, weights: str) -> str:
    """SHA-256 of a file that ``parameter`` names."""
    path = weights_file(weights)
    if not path.is_file():
        raise OpamError(f"{parameter}: {path} is not a file; correct the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Write data/environment.json."""
    tell_other_pins(Path("requirements.lock"))
    backbone = read_params("backbone", BackboneParams)
    shared = weights_digest(backbone)
    of_baselines = {}
    for name, entry in read_params("baselines", dict[str, dict[str, Any]]).items():
        own, method = entry.get("backbone"), entry.get("method")
        if own:
            own = read_params(f"baselines.{name}.backbone", BackboneParams)
        digests = [weights_digest(own) if own else shared]
        if isinstance(method, dict) and method.get("second_backbone"):
            second = {
                "name": method["second_backbone"],
                "weights": method.get("second_weights", "package"),
            }
            of_second = section_of({"second": second}, "second", BackboneParams, params_path())
            digests.append(weights_digest(of_second))
        if entry.get("weights"):
            digests.append(file_digest(f"baselines.{name}.weights", entry["weights"]))
        of_baselines[name] = digests
    write_json(
        ENVIRONMENT,
        {
            "versions": installed_versions(),
            "weights": {"shared": shared, "baselines": of_baselines},
        },
    )


if __name__ == "__main__":
    run(main)
