"""Filter patches: keep those that FilterNet gives to the photograph's own class.

Run by itself: ``python stages/filter_patches.py``.
"""

from pathlib import Path

from opam.artifacts import read_table, write_table
from opam.config import read_params
from opam.errors import run
from opam.filtering import FilterParams, keep

PATCH_SCORES = Path("data/patch_scores.parquet")
KEPT_PATCHES = Path("data/kept_patches.parquet")


def main() -> None:
    """Write data/kept_patches.parquet."""
    params = read_params("filter", FilterParams)
    scores = read_table(PATCH_SCORES, "patch_scores")
    kept = scores[keep(scores["confidence"].to_numpy(), params.threshold)]
    write_table(KEPT_PATCHES, "kept_patches", kept)
    print(f"kept {len(kept)} of {len(scores)} patches")


if __name__ == "__main__":
    run(main)
