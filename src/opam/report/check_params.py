"""Check a whole parameter file: every section, by the types of the steps that read them.

Run: ``python -m opam.report.check_params [FILE]``.
"""

import sys
from pathlib import Path
from typing import Any

from opam.alignment import SINGLE_PART, AlignmentParams
from opam.baselines import BaselineParams
from opam.colocalization import ColocalizationParams
from opam.config import SECTIONS, params_path, read_yaml, section_of
from opam.datasets import DatasetParams
from opam.device import ExecutionParams
from opam.errors import OpamError, run
from opam.filtering import FilterParams
from opam.fusion import FusionParams
from opam.metrics import EvaluationParams
from opam.models.backbones import BackboneParams
from opam.models.systems import read_method
from opam.objects import ObjectParams
from opam.parts import PartParams
from opam.preparation import PrepareParams
from opam.probes import ProbeParams
from opam.proposals import ProposalParams
from opam.saliency import SaliencyParams
from opam.scoring import Scoring
from opam.training import PatchTrainingParams, TrainingParams

TYPES: dict[str, Any] = {
    "seed": int,
    "execution": ExecutionParams,
    "dataset": DatasetParams,
    "prepare": PrepareParams,
    "backbone": BackboneParams,
    "proposals": ProposalParams,
    "filternet": TrainingParams,
    "scoring": Scoring,
    "filter": FilterParams,
    "classnet": PatchTrainingParams,
    "saliency": SaliencyParams,
    "colocalization": ColocalizationParams,
    "objects": ObjectParams,
    "parts": PartParams,
    "alignment": AlignmentParams,
    "objectnet": TrainingParams,
    "partnet": TrainingParams,
    "probes": ProbeParams,
    "mirrored": bool,
    "fusion": FusionParams,
    "evaluation": EvaluationParams,
    "baselines": dict[str, BaselineParams],
}


def check(path: Path) -> None:
    """Read every section of ``path``.

    Raises:
        OpamError: naming everything that is wrong, a line each.
    """
    problems = []
    content = read_yaml(path)
    found: dict[str, Any] = {}
    for section in SECTIONS:
        try:
            found[section] = section_of(content, section, TYPES[section], path)
            if section == "baselines":
                for name, baseline in found[section].items():
                    read_method(name, baseline.system, baseline.method, path)
        except OpamError as error:
            problems.append(str(error))
    if {"parts", "alignment"} <= found.keys():
        alignment = found["alignment"]
        single = found["parts"].n_parts == 1
        if single and alignment.clusters > 1 and alignment.similarity == "contrast":
            problems.append(f"{path}: {SINGLE_PART}")
    if problems:
        raise OpamError("\n       ".join(dict.fromkeys(problems)))


def main() -> None:
    """Check the file named on the command line, or the project's."""
    check(Path(sys.argv[1]) if len(sys.argv) > 1 else params_path())


if __name__ == "__main__":
    run(main)
