"""Check that parameters fit each other and the backbone, before anything is computed.

Run by itself: ``python stages/check_params.py``.
"""

from pathlib import Path

from opam.app.check_params import check, check_networks, check_outside
from opam.pipeline.artifacts import write_json
from opam.pipeline.params import params_path
from opam.pipeline.stage import run

CHECKS = Path("data/checks.json")


def main() -> None:
    """Write data/checks.json, which says that all is well and is never anything else."""
    path = params_path()
    params = check(path)
    check_outside(params)
    check_networks(params, path)
    write_json(CHECKS, {"passed": True})


if __name__ == "__main__":
    run(main)
