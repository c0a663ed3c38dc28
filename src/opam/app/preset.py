"""Lay a preset over the defaults: ``python -m opam.app.preset NAME`` writes params.yaml."""

import sys

from opam.app.check_params import check
from opam.pipeline.artifacts import atomic
from opam.pipeline.errors import OpamError, run
from opam.pipeline.params import params_path
from opam.pipeline.presets import DEFAULTS, PRESETS, laid_over


def main() -> None:
    """Write params.yaml, if it would be right."""
    if len(sys.argv) != 2:
        raise OpamError("python -m opam.app.preset NAME: give the name of a file in presets/")
    preset = PRESETS / f"{sys.argv[1]}.yaml"
    text = laid_over(DEFAULTS, preset)
    with atomic(params_path()) as temporary:
        temporary.write_text(text, encoding="utf-8")
        try:
            check(temporary)
        except OpamError as error:
            told = str(error).replace(str(temporary), f"{preset} over the defaults")
            raise OpamError(told) from None
    print(f"{params_path()}: {preset} over the defaults")


if __name__ == "__main__":
    run(main)
