"""synthetic_shelves: shelves full of one of eight products that differ in three small marks.

Where there is no one object: every photograph is filled with rows of the same carton, edge to edge.
Its stripe, its cap and its dots each have one of four forms; each form occurs in two products, and
two products share one mark at most. Everything else (colours of carton and shelf, scale, light,
gaps, what is cut off) is drawn without looking at the product, and the price tags have the marks'
colours. There is no true box.
"""

from pathlib import Path

import cv2
import numpy as np
from joblib import delayed
from PIL import Image

from opam.photographs.datasets.drawing import (
    OVERSAMPLING,
    ellipse,
    fill,
    generator,
    smooth_noise,
    to_draw,
    vary,
)
from opam.photographs.datasets.synthetic_birds import MARK_COLOURS, SyntheticBirdsParams
from opam.pipeline.artifacts import atomic
from opam.pipeline.processes import in_processes
from opam.pipeline.progress import progress

# Stripe, cap and dots; form // 2 is the shape, form % 2 the colour.
PRODUCTS = {
    "apricot_tea": (0, 0, 0),
    "barley_tea": (0, 1, 1),
    "cherry_tea": (1, 2, 3),
    "dandelion_tea": (1, 3, 2),
    "elder_tea": (2, 2, 0),
    "fennel_tea": (2, 3, 1),
    "ginger_tea": (3, 0, 3),
    "hibiscus_tea": (3, 1, 2),
}
STRIPES, CAPS, DOTS = ((36, 84, 200), (206, 28, 36)), ((236, 130, 22), (58, 66, 92)), (20, 240)
CARTONS = ((196, 178, 140), (150, 176, 158), (178, 160, 178), (164, 172, 186), (188, 188, 164))
BOARDS = ((126, 110, 92), (150, 152, 156), (96, 96, 102), (190, 182, 170))
GAP = 0.06
"""Of the places, where a carton is missing."""


def draw_shelf(product: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one photograph of a shelf.

    Args:
        product: 0..7, position in `PRODUCTS`.
        rng: source of everything that varies.

    Returns:
        uint8 H x W x 3, RGB.
    """
    marks = list(PRODUCTS.values())[product]
    height, width = (int(v) for v in rng.integers((216, 272), (260, 341)))
    shape = (height * OVERSAMPLING, width * OVERSAMPLING)
    board = vary(BOARDS[rng.integers(len(BOARDS))], rng)
    canvas = np.full((*shape, 3), (0.35 * board).round(), dtype=np.uint8)
    carton = vary(CARTONS[rng.integers(len(CARTONS))], rng, 10)
    tall = shape[0] / rng.uniform(1.8, 3.6)
    wide = tall * rng.uniform(0.55, 0.75)
    bottom = rng.uniform(0.6, 1.0) * tall
    while bottom - tall < shape[0]:
        right = -rng.uniform(0, wide)
        while right < shape[1]:
            if rng.random() > GAP:
                corner = (right + rng.uniform(0, 0.03) * wide, bottom - rng.uniform(0.95, 1) * tall)
                _carton(canvas, corner, (0.96 * wide, tall), carton, marks, rng)
            right += wide
        thick = rng.uniform(0.08, 0.12) * tall
        _rectangle(canvas, (0, bottom), (shape[1], thick), board)
        for _ in range(rng.integers(2, 5)):
            tag = vary(MARK_COLOURS[rng.integers(len(MARK_COLOURS))], rng)
            place = (rng.uniform(0, shape[1]), bottom + 0.15 * thick)
            _rectangle(canvas, place, (rng.uniform(0.1, 0.3) * wide, 0.7 * thick), tag)
        bottom += tall + thick
    angle, centre = rng.normal(0, 1.5), (shape[1] / 2, shape[0] / 2)
    turn = cv2.getRotationMatrix2D(centre, angle, 1.08)
    turned = cv2.warpAffine(canvas, turn, shape[::-1], borderMode=cv2.BORDER_REFLECT)
    light = rng.uniform(0.75, 1.15) + 0.1 * smooth_noise(shape, 3, rng)
    lit = turned * light[..., None].astype(np.float32)
    image: np.ndarray = cv2.resize(lit, (width, height), interpolation=cv2.INTER_AREA)
    image += 5 * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _rectangle(
    canvas: np.ndarray, corner: tuple[float, float], size: tuple[float, float], colour: np.ndarray
) -> None:
    (x, y), (w, h) = corner, size
    fill(canvas, np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)]), colour)


def _carton(
    canvas: np.ndarray,
    corner: tuple[float, float],
    size: tuple[float, float],
    colour: np.ndarray,
    marks: tuple[int, int, int],
    rng: np.random.Generator,
) -> None:
    """One carton: its front between two darker edges, a label, and the three marks."""
    stripe, cap, dots = marks
    own = np.clip(colour * rng.uniform(0.88, 1.06), 0, 255)

    def rectangle(x: float, y: float, w: float, h: float, colour: np.ndarray) -> None:
        place = corner[0] + x * size[0], corner[1] + y * size[1]
        _rectangle(canvas, place, (w * size[0], h * size[1]), colour)

    rectangle(0, 0.08, 1, 0.92, 0.6 * own)
    rectangle(0.04, 0.08, 0.92, 0.92, own)
    rectangle(0.15, 0.3, 0.7, 0.45, np.clip(own * 0.5 + 120, 0, 255))
    for line in range(3):
        rectangle(0.22, 0.5 + 0.07 * line, rng.uniform(0.3, 0.55), 0.025, 0.4 * own)
    # Stripe: one broad, or two narrow.
    striped = vary(STRIPES[stripe % 2], rng, 8)
    for y, h in ((0.34, 0.07),) if stripe // 2 else ((0.33, 0.03), (0.39, 0.03)):
        rectangle(0.15, y, 0.7, h, striped)
    # Cap: in the middle, or at the side.
    rectangle(0.62 if cap // 2 else 0.38, 0.0, 0.24, 0.09, vary(CAPS[cap % 2], rng, 8))
    # Dots: three in a row, or in a triangle.
    at = (
        ((0.3, 0.86), (0.5, 0.86), (0.7, 0.86))
        if dots // 2
        else ((0.4, 0.9), (0.6, 0.9), (0.5, 0.83))
    )
    for x, y in at:
        centre = corner[0] + x * size[0], corner[1] + y * size[1]
        fill(canvas, ellipse(centre, (0.05 * size[0],) * 2), np.full(3, DOTS[dots % 2]))


def fetch(raw: Path, params: SyntheticBirdsParams, workers: int = 2) -> Path:
    """Draw the data set as class folders and return its folder, ``raw``.

    Args:
        raw: an existing or new folder.
        params: seed and numbers.
        workers: processes.
    """
    jobs = [
        (raw, params.seed, *each)
        for each in to_draw(len(PRODUCTS), params.train_per_class, params.test_per_class)
    ]
    drawn = in_processes((delayed(_write)(*job) for job in jobs), workers)
    for _ in progress(drawn, len(jobs), "drawing shelves", "shelves"):
        pass
    return raw


def _write(raw: Path, seed: int, product: int, split: str, number: int) -> None:
    rng = generator(seed, product, split, number)
    with atomic(raw / split / list(PRODUCTS)[product] / f"{number:04}.jpg") as temporary:
        Image.fromarray(draw_shelf(product, rng)).save(temporary, format="JPEG", quality=92)
