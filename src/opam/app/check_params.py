"""Check a whole parameter file: every section by its type, and the sections against each other.

Run: ``python -m opam.app.check_params [FILE]``. The stage ``check_params`` also looks at what
the parameters name: photographs, weights, layers of the backbone.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from opam.engine.discriminant.fitting import ProbeParams
from opam.engine.scoring import Scoring
from opam.engine.training.freezing import freeze_until
from opam.engine.training.params import BoxNetworkParams, NetworkParams, PatchNetworkParams
from opam.evaluation.metrics import EvaluationParams
from opam.method.alignment import SINGLE_PART, AlignmentParams
from opam.method.colocalization import ColocalizationParams
from opam.method.filtering import FilterParams
from opam.method.fusion import FusionParams
from opam.method.objects import ObjectParams
from opam.method.parts import PartParams
from opam.method.proposals import ProposalParams
from opam.method.saliency import SaliencyParams
from opam.networks.backbones.backbone import Backbone, BackboneParams
from opam.networks.backbones.bodies import check_size, create_body
from opam.networks.cam_network import Pooled, penultimate_layer, pooled_features
from opam.photographs.datasets import DatasetParams
from opam.photographs.preparation import PrepareParams
from opam.pipeline.device import ExecutionParams
from opam.pipeline.environment import ENVIRONMENT
from opam.pipeline.errors import OpamError, run
from opam.pipeline.libraries import without_compiler, without_weights
from opam.pipeline.outside import (
    check_photographs,
    check_photographs_path,
    check_weights_path,
    weights_file,
)
from opam.pipeline.params import NETWORKS, SECTIONS, params_path, read_yaml, section_of
from opam.systems.baselines import BaselineParams
from opam.systems.released import released_state
from opam.systems.systems import create_system, read_method, release_of

TYPES: dict[str, Any] = {
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "execution": ExecutionParams,
    "dataset": DatasetParams,
    "prepare": PrepareParams,
    "backbone": BackboneParams,
    "training": dict,
    "proposals": ProposalParams,
    "filternet": NetworkParams,
    "scoring": Scoring,
    "filter": FilterParams,
    "classnet": PatchNetworkParams,
    "saliency": SaliencyParams,
    "colocalization": ColocalizationParams,
    "objects": ObjectParams,
    "parts": PartParams,
    "alignment": AlignmentParams,
    "objectnet": BoxNetworkParams,
    "partnet": BoxNetworkParams,
    "probes": ProbeParams,
    "mirrored": bool,
    "fusion": FusionParams,
    "evaluation": EvaluationParams,
    "baselines": dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], BaselineParams],
}

RAW = Path("data/raw.zip")


def check(path: Path) -> dict[str, Any]:
    """Read every section of ``path``.

    Returns:
        The sections by name, each of its type.

    Raises:
        OpamError: naming everything that is wrong, a line each.
    """
    content = read_yaml(path)
    found: dict[str, Any] = {}
    with told_together() as attempt:
        for section in SECTIONS:
            with attempt():
                found[section] = section_of(content, section, TYPES[section], path)
        for name, baseline in found.get("baselines", {}).items():
            with attempt():
                read_method(name, baseline.system, baseline.method, path)
        if {"prepare", "fusion", "probes", *NETWORKS} <= found.keys():
            with attempt():
                _check_ways(found, path)
        if {"parts", "alignment"} <= found.keys():
            with attempt():
                _check_clusters(found["parts"], found["alignment"], path)
    return found


Attempt = Callable[[], AbstractContextManager[None]]


@contextmanager
def told_together() -> Iterator[Attempt]:
    """Yield what collects the `OpamError` of a with-block; at the end one error tells them all."""
    problems: list[str] = []

    @contextmanager
    def attempt() -> Iterator[None]:
        try:
            yield
        except OpamError as error:
            problems.append(str(error))

    yield attempt
    if problems:
        raise OpamError("\n       ".join(dict.fromkeys(problems)))


def _check_ways(params: dict[str, Any], path: Path) -> None:
    """Fusion needs scores of photographs that no network has learned."""
    probes = params["probes"].enabled and params["fusion"].scores != "networks"
    if params["fusion"].scores == "probes" and not params["probes"].enabled:
        raise OpamError(
            f"{path}: fusion.scores is probes, and probes.enabled false; set it to networks"
        )
    trained = [name for name in NETWORKS[1:] if params[name].by == "training"]
    if params["prepare"].val_fraction == 0 and (trained or probes):
        which = f"{trained[0]}.by is training" if trained else "fusion asks probes, too"
        raise OpamError(
            f"{path}: prepare.val_fraction is 0, and {which}; raise it, for fusion weights of what "
            "is trained come from val"
        )


def _check_clusters(parts: PartParams, alignment: AlignmentParams, path: Path) -> None:
    if parts.n_parts == 1 and alignment.clusters > 1 and alignment.similarity == "contrast":
        raise OpamError(f"{path}: {SINGLE_PART}")
    if alignment.clusters > parts.n_parts:
        raise OpamError(
            f"{path}: alignment.clusters is {alignment.clusters}, and a photograph has "
            f"{parts.n_parts} parts (parts.n_parts); lower the one or raise the other"
        )


def check_outside(params: dict[str, Any]) -> None:
    """Look for the photographs and weights that parameters name.

    Args:
        params: what `check` read.

    Raises:
        OpamError: one is not there, or DVC would not see whether it changes; all, a line each.
    """
    weights = {"backbone.weights": params["backbone"].weights}
    for name, baseline in params["baselines"].items():
        if baseline.backbone is not None:
            weights[f"baselines.{name}.backbone.weights"] = baseline.backbone.weights
        if baseline.weights is not None:
            weights[f"baselines.{name}.weights"] = baseline.weights
        if second := baseline.method.get("second_weights"):
            weights[f"baselines.{name}.method.second_weights"] = second
    with told_together() as attempt:
        with attempt():
            check_photographs_path(params["dataset"].path, RAW)
        for name, value in weights.items():
            with attempt():
                check_weights_path(name, value, ENVIRONMENT)


def check_networks(params: dict[str, Any], path: Path) -> None:
    """Build every network without its weights: what parameters name in it must be there.

    Args:
        params: what `check` read.
        path: of the parameter file, for errors.

    Raises:
        OpamError: no such backbone, layer or convolution, or a system that the
            backbone cannot serve; all of them, a line each.
    """
    with told_together() as attempt:
        with attempt():
            name = params["backbone"].name
            with without_weights():
                backbone = Backbone(name).eval()
            for parameter, size in _sizes(params):
                with attempt():
                    check_size(name, size, parameter)
            with attempt(), torch.inference_mode(), without_compiler():
                backbone.shared_maps(_image(backbone), params["colocalization"].layer)
            for section in ("objectnet", "partnet", "probes"):
                with attempt():
                    _check_pooled(backbone, params[section].pooled, f"{section}.pooled")
            with attempt():
                penultimate_layer(backbone, params["alignment"].convolution)
            for network in NETWORKS:
                with attempt():
                    freeze_until(backbone, params[network].frozen_until, network)
                with attempt():
                    _check_drop_path(name, params[network].drop_path, network)
        for name, baseline in params["baselines"].items():
            with attempt():
                try:
                    _check_baseline(name, baseline, params["backbone"], path)
                except OpamError as error:
                    own = f"baselines.{name}"
                    if str(error).startswith(own):
                        raise
                    raise OpamError(
                        f"{own}: {error}; or give it a backbone of its own, or remove {own}"
                    ) from None


def _image(backbone: Backbone) -> torch.Tensor:
    """One without memory, of the size that the backbone is used to."""
    side = backbone.body.pretrained_cfg["input_size"][1]
    return torch.zeros(1, 3, side, side, dtype=torch.uint8, device="meta")


def _check_pooled(backbone: Backbone, pooled: Pooled, parameter: str) -> None:
    try:
        with torch.inference_mode(), without_compiler():
            pooled_features(backbone, _image(backbone), pooled)
    except OpamError as error:
        raise OpamError(f"{parameter}: {error}") from None


def _check_drop_path(backbone: str, share: float, section: str) -> None:
    with without_weights():
        create_body(backbone, share, f"{section}.drop_path")


def _sizes(params: dict[str, Any]) -> list[tuple[str, int]]:
    """Each side of what the shared backbone is shown, by the parameter that says it."""
    sections = (*NETWORKS, "saliency", "colocalization", "probes")
    return [
        *((f"{section}.input_size", params[section].input_size) for section in sections),
        ("probes.part_size", params["probes"].part_size),
    ]


def _check_baseline(
    name: str, baseline: BaselineParams, shared: BackboneParams, path: Path
) -> None:
    method = {**baseline.method}
    if baseline.system == "bcnn":
        method["second_weights"] = "none"
    settings = read_method(name, baseline.system, method, path)
    # AP-CNN runs its backbone to find stages; the others are built without memory.
    device = "cpu" if baseline.system == "ap_cnn" else "meta"
    with torch.device(device), without_compiler():
        backbone = Backbone((baseline.backbone or shared).name)
        system = create_system(baseline.system, backbone, 2, settings)
    released = None if baseline.weights is None else weights_file(baseline.weights)
    if released is not None and released.is_file():  # `check_outside` has looked for it
        at = f"baselines.{name}.weights"
        released_state(system, release_of(baseline.system), released, at)
    for step in ("classifier_training", "training"):
        training = getattr(baseline, step)
        if training is not None:
            at = f"baselines.{name}.{step}"
            check_size(backbone.name, training.input_size, f"{at}.input_size")
            freeze_until(system, training.frozen_until, at)
            _check_drop_path(backbone.name, training.drop_path, at)


def main() -> None:
    """Check the file named on the command line, or the project's and the photographs it names."""
    params = check(Path(sys.argv[1]) if len(sys.argv) > 1 else params_path())
    if len(sys.argv) == 1:  # DVC reads them before any stage runs, and says little
        check_photographs(params["dataset"].path)


if __name__ == "__main__":
    run(main)
