"""Filter patches: keep those that FilterNet gives to the photograph's own class.

Run by itself: ``python stages/filter_patches.py``.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from opam.method.filtering import FilterParams, keep
from opam.pipeline.artifacts import read_batches, write_table_in_pieces
from opam.pipeline.params import read_params
from opam.pipeline.stage import run

PATCH_SCORES = Path("data/patch_scores.parquet")
KEPT_PATCHES = Path("data/kept_patches.parquet")


def main() -> None:
    """Write data/kept_patches.parquet."""
    params = read_params("filter", FilterParams)
    seen = kept = 0

    def kept_rows() -> Iterator[pd.DataFrame]:
        nonlocal seen, kept
        for scores in read_batches(PATCH_SCORES, "patch_scores"):
            rows = scores[keep(scores["confidence"].to_numpy(), params.threshold)]
            seen, kept = seen + len(scores), kept + len(rows)
            yield rows

    write_table_in_pieces(KEPT_PATCHES, "kept_patches", kept_rows())
    print(f"kept {kept} of {seen} patches")


if __name__ == "__main__":
    run(main)
