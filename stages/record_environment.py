"""Record what computes: versions of packages, content of the pretrained weights.

Run by itself: ``python stages/record_environment.py``.
"""

from pathlib import Path

from opam.artifacts import write_json
from opam.baselines import BaselineParams
from opam.config import read_params
from opam.environment import ENVIRONMENT, installed_versions, tell_other_pins
from opam.models.backbones import BackboneParams, create_backbone
from opam.models.weights import state_digest
from opam.stage import run


def weights_digest(params: BackboneParams) -> str:
    """SHA-256 of the pretrained weights; "none" where a network begins with random ones."""
    if params.weights == "none":
        return "none"
    return state_digest(create_backbone(params).body)


def main() -> None:
    """Write data/environment.json."""
    tell_other_pins(Path("requirements.lock"))
    backbone = read_params("backbone", BackboneParams)
    baselines = read_params("baselines", dict[str, BaselineParams])
    shared = weights_digest(backbone)
    of_baselines = {}
    for name, baseline in baselines.items():
        digests = [weights_digest(baseline.backbone) if baseline.backbone else shared]
        if second := baseline.method.get("second_backbone"):
            weights = baseline.method.get("second_weights", "package")
            digests.append(weights_digest(BackboneParams(name=second, weights=weights)))
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
