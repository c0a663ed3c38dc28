"""The sheet of drawn birds in docs/photographs.md.

Run: ``python -m opam.report.sample_sheet FILE.jpg``.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from opam.photographs.datasets.synthetic_birds import SPECIES, draw_bird
from opam.pipeline.artifacts import atomic
from opam.pipeline.errors import OpamError, run


def contact_sheet(seed: int, samples: int = 4) -> np.ndarray:
    """A row for each species with its name: uint8 H x W x 3."""
    height, width, margin = 180, 240, 24
    sheet = np.full((len(SPECIES) // 2 * (height + margin), 2 * samples * width, 3), 255, np.uint8)
    for species, name in enumerate(SPECIES):
        top = species // 2 * (height + margin)
        left = species % 2 * samples * width
        place = (left + 6, top + margin - 7)
        text = name.replace("_", " ")
        cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        for sample in range(samples):
            drawing = draw_bird(species, np.random.default_rng([seed, species, 2, sample]))
            tile = cv2.resize(drawing.image, (width, height), interpolation=cv2.INTER_AREA)
            x = left + sample * width
            sheet[top + margin : top + margin + height, x : x + width] = tile
    return sheet


def main() -> None:
    """Write the sheet to the file named on the command line."""
    if len(sys.argv) != 2:
        raise OpamError("usage: python -m opam.report.sample_sheet FILE.jpg")
    with atomic(Path(sys.argv[1])) as temporary:
        Image.fromarray(contact_sheet(seed=0)).save(temporary, format="JPEG", quality=88)


if __name__ == "__main__":
    run(main)
