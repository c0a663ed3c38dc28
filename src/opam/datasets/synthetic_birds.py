"""synthetic_birds: drawn birds of eight species that differ in bill, crown, wing bar and tail.

Every species has one of two forms of each of the four parts, and any two species differ in at
least two parts: no single part tells a species, and parts of both ends of the bird are needed.
Everything else (body colours, pose, size, place, light, what stands in front and behind) is
drawn without looking at the species. The clutter behind the bird has the very colours of the
parts, so colours anywhere in the picture mislead, and the parts do not.

Run ``python -m opam.datasets.synthetic_birds FILE.jpg`` for a sheet of samples.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from PIL import Image
from pydantic import Field

from opam.artifacts import GT_BOX, atomic, write_csv
from opam.config import Params
from opam.datasets.dataset import Dataset, below, dataset, existing
from opam.errors import OpamError, run
from opam.progress import progress

# Species: forms of bill, crown, wing bar and tail. Even numbers of ones: every two species
# differ in two parts or in all four.
SPECIES = {
    "amber_warbler": (0, 0, 0, 0),
    "brook_warbler": (0, 0, 1, 1),
    "cedar_warbler": (0, 1, 0, 1),
    "dune_warbler": (0, 1, 1, 0),
    "elm_warbler": (1, 0, 0, 1),
    "fen_warbler": (1, 0, 1, 0),
    "glade_warbler": (1, 1, 0, 0),
    "heath_warbler": (1, 1, 1, 1),
}

ORANGE, SLATE = (236, 130, 22), (58, 66, 92)
SCARLET, BLUE = (206, 28, 36), (36, 84, 200)
WHITE, YELLOW = (246, 244, 236), (244, 206, 34)
MARK_COLOURS = (ORANGE, SLATE, SCARLET, BLUE, WHITE, YELLOW)
BODY_COLOURS = ((122, 94, 66), (104, 100, 92), (142, 114, 78), (92, 78, 64), (128, 122, 104))
BACKDROPS = ((126, 158, 92), (150, 180, 204), (172, 170, 120), (96, 128, 84), (186, 192, 182))
LEAF_COLOURS = ((70, 112, 48), (94, 136, 58), (122, 132, 52), (58, 92, 60))
BRANCH_COLOUR = (84, 66, 52)

OVERSAMPLING = 2
PARTS = ("bill", "crown", "eye", "breast", "wing", "wing bar", "belly", "tail")


class SyntheticBirdsParams(Params):
    """How many birds."""

    seed: int = Field(0, ge=0, description="of the drawing")
    train_per_class: int = Field(48, ge=2)
    test_per_class: int = Field(40, ge=1)


@dataclass(frozen=True)
class Drawing:
    """A drawn bird.

    Attributes:
        image: uint8 H x W x 3, RGB.
        box: x0, y0, x1, y1 around what is visible of the bird, half-open, pixels.
        parts: x, y in pixels of each of `PARTS`, and whether it is visible.
    """

    image: np.ndarray
    box: tuple[int, int, int, int]
    parts: dict[str, tuple[float, float, bool]]


@dataclass(frozen=True)
class Pose:
    """From the bird's own coordinates (x ahead, y down, unit half a body) to pixels."""

    centre: np.ndarray
    unit: float
    tilt: float
    mirror: bool

    def __call__(self, points: Sequence[tuple[float, float]] | np.ndarray) -> np.ndarray:
        """float N x 2 pixels."""
        own = np.array(points, dtype=np.float64).reshape(-1, 2)
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        turned = own @ np.array([[cos, sin], [-sin, cos]])
        if self.mirror:
            turned[:, 0] *= -1
        return self.centre + self.unit * turned


def draw_bird(species: int, rng: np.random.Generator) -> Drawing:
    """Draw one photograph of a bird.

    Args:
        species: 0..7, position in `SPECIES`.
        rng: source of everything that varies. Scene, bird and front each have a generator of
            their own, so that the species changes nothing but the parts.
    """
    scene, bird, front = rng.spawn(3)
    height, width = (int(v) for v in scene.integers((216, 260), (272, 341)))
    shape = (height * OVERSAMPLING, width * OVERSAMPLING)
    unit = bird.uniform(0.125, 0.185) * min(shape)
    pose = Pose(
        centre=np.array(
            [
                bird.uniform(2.4 * unit, shape[1] - 2.4 * unit),
                bird.uniform(1.6 * unit, shape[0] - 1.5 * unit),
            ]
        ),
        unit=unit,
        tilt=bird.uniform(-0.3, 0.3),
        mirror=bool(bird.random() < 0.5),
    )
    canvas = _background(shape, scene)
    _perch(canvas, pose, scene)
    layer, mask, parts = _bird(shape, pose, list(SPECIES.values())[species], bird)
    alpha = mask[..., None] / 255.0
    canvas = canvas * (1 - alpha) + layer * alpha
    covered = _leaves_in_front(canvas, pose, front)

    visible = cv2.resize(np.where(covered, 0, mask), (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero(visible.max(1) > 127), np.flatnonzero(visible.max(0) > 127)
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    image += front.normal(0, 4, image.shape)
    return Drawing(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        parts={
            name: (x / OVERSAMPLING, y / OVERSAMPLING, not covered[int(y), int(x)])
            for name, (x, y) in parts.items()
        },
    )


def _paint(canvas: np.ndarray, points: np.ndarray, colour: Sequence[float]) -> None:
    fixed = np.rint(np.asarray(points) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], [float(c) for c in colour], cv2.LINE_AA, shift=4)


def _ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack(
        [
            x + a * np.cos(t) * cos - b * np.sin(t) * sin,
            y + a * np.cos(t) * sin + b * np.sin(t) * cos,
        ],
        axis=1,
    )


def _vary(colour: Sequence[int], rng: np.random.Generator, spread: float = 14) -> np.ndarray:
    return np.clip(np.asarray(colour) + rng.normal(0, spread, 3), 0, 255)


def _smooth_noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    grid = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _background(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Out of focus: a gradient and blots; nearer: branches, leaves, and spots in mark colours."""
    top, bottom = (_vary(BACKDROPS[i], rng) for i in rng.integers(0, len(BACKDROPS), 2))
    down = np.linspace(0, 1, shape[0])[:, None, None]
    # Painting is done in 8 bits: OpenCV smooths edges in no other type.
    canvas = np.rint(np.broadcast_to(top * (1 - down) + bottom * down, (*shape, 3))).astype(
        np.uint8
    )
    canvas = np.ascontiguousarray(canvas)
    side = min(shape)
    for _ in range(rng.integers(8, 16)):
        colour = _vary(LEAF_COLOURS[rng.integers(len(LEAF_COLOURS))], rng, 25)
        place = rng.uniform(0, 1, 2) * shape[::-1]
        _paint(
            canvas, _ellipse(*place, *rng.uniform(0.05, 0.2, 2) * side, rng.uniform(0, 3)), colour
        )
    canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.02, 0.04) * side))
    for _ in range(rng.integers(1, 4)):
        start, end = rng.uniform(0, 1, (2, 2)) * shape[::-1]
        colour = _vary(BRANCH_COLOUR, rng)
        _paint(canvas, _stroke(start, end, rng.uniform(0.006, 0.014) * side), colour)
    for _ in range(rng.integers(6, 14)):
        colour = _vary(LEAF_COLOURS[rng.integers(len(LEAF_COLOURS))], rng)
        place = rng.uniform(0, 1, 2) * shape[::-1]
        length = rng.uniform(0.03, 0.07) * side
        _paint(canvas, _ellipse(*place, length, 0.4 * length, rng.uniform(0, 3)), colour)
    for _ in range(rng.integers(14, 26)):
        colour = _vary(MARK_COLOURS[rng.integers(len(MARK_COLOURS))], rng)
        place = rng.uniform(0, 1, 2) * shape[::-1]
        a, b = np.sort(rng.uniform(0.008, 0.035, 2))[::-1] * side
        _paint(canvas, _ellipse(*place, a, b, rng.uniform(0, 3)), colour)
    canvas = cv2.GaussianBlur(canvas, (0, 0), OVERSAMPLING * 0.8)
    light = 1 + 0.06 * _smooth_noise(shape, 6, rng) + 0.03 * _smooth_noise(shape, 60, rng)
    return canvas * light[..., None]


def _stroke(start: np.ndarray, end: np.ndarray, half_width: float) -> np.ndarray:
    along = (end - start) / max(1e-6, float(np.linalg.norm(end - start)))
    across = half_width * np.array([-along[1], along[0]])
    return np.array([start + across, end + across * 0.6, end - across * 0.6, start - across])


def _perch(canvas: np.ndarray, pose: Pose, rng: np.random.Generator) -> None:
    layer = np.clip(canvas, 0, 255).astype(np.uint8)
    colour = _vary(BRANCH_COLOUR, rng)
    ends = pose([(-6, 1.05 + rng.normal(0, 0.3)), (6, 1.05 + rng.normal(0, 0.3))])
    _paint(layer, _stroke(*ends, 0.09 * pose.unit), colour)
    for x in (-0.05, 0.25):
        _paint(layer, _stroke(*pose([(x, 0.5), (x + 0.05, 1.02)]), 0.03 * pose.unit), (70, 58, 50))
    canvas[:] = layer


def _bird(
    shape: tuple[int, int], pose: Pose, forms: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[float, float]]]:
    """The bird alone: float H x W x 3, its uint8 coverage H x W, and its parts in pixels."""
    bill, crown, wing_bar, tail = forms
    layer = np.zeros((*shape, 3), dtype=np.uint8)
    mask = np.zeros(shape, dtype=np.uint8)
    body = _vary(BODY_COLOURS[rng.integers(len(BODY_COLOURS))], rng, 8)
    belly = np.clip(body * 0.6 + 95, 0, 255)
    stout = rng.uniform(0.46, 0.56)
    head = np.array([0.86, -0.52]) + rng.normal(0, 0.05, 2)
    droop = rng.uniform(-0.1, 0.35)
    marks = {name: rng.normal(0, 10, 3) for name in ("bill", "crown", "wing bar", "tail")}

    def paint(points: np.ndarray | Sequence[tuple[float, float]], colour: Sequence[float]) -> None:
        _paint(layer, pose(points), np.clip(colour, 0, 255))
        _paint(mask, pose(points), (255,))

    def mark(name: str, colour: tuple[int, int, int]) -> np.ndarray:
        return np.asarray(colour) + marks[name]

    # Tail: long, forked and blue at the end, or short, broad and white at the end.
    root, along = np.array([-0.78, 0.05]), np.array([-np.cos(droop), np.sin(droop)])
    across = np.array([-along[1], along[0]])
    if tail:
        tips = [root + 1.25 * along + side * 0.34 * across for side in (1, -1)]
        notch = root + 0.85 * along
        paint([root + 0.17 * across, tips[0], notch, tips[1], root - 0.17 * across], 0.8 * body)
        for tip, side in zip(tips, (1, -1), strict=True):
            inner = root + 0.62 * along
            paint([tip, notch, inner, inner + side * 0.25 * across], mark("tail", BLUE))
        tail_at = root + 0.85 * along
    else:
        end = root + 0.8 * along
        paint(
            [root + 0.17 * across, end + 0.3 * across, end - 0.3 * across, root - 0.17 * across],
            0.8 * body,
        )
        band = root + 0.5 * along
        paint(
            [band + 0.25 * across, end + 0.3 * across, end - 0.3 * across, band - 0.25 * across],
            mark("tail", WHITE),
        )
        tail_at = root + 0.62 * along

    # Body, neck and head.
    paint(_ellipse(0, 0, 1, stout, -0.22), body)
    paint(_ellipse(0.12, 0.16, 0.82, stout * 0.72, -0.28), belly)
    paint([(0.35, -0.45), head + (-0.22, -0.22), head + (0.2, 0.22), (0.85, 0.1)], body)
    paint(_ellipse(*head, 0.36, 0.33), body)

    # Wing and its bar: two white bars, or one broad yellow one.
    paint(_ellipse(-0.2, -0.08, 0.68, 0.3, -0.12), 0.72 * body)
    bars = ((-0.02, 0.07), (-0.34, 0.07)) if wing_bar else ((-0.2, 0.13),)
    colour = mark("wing bar", WHITE if wing_bar else YELLOW)
    for x, thick in bars:
        paint(_ellipse(x, -0.06, thick, 0.25, 0.5), colour)

    # Bill: long, thin and slate, or short, thick and orange.
    if bill:
        bill_points = [head + (0.3, -0.07), head + (0.98, 0.1), head + (0.3, 0.08)]
    else:
        bill_points = [head + (0.26, -0.19), head + (0.62, 0.04), head + (0.26, 0.19)]
    paint(np.array(bill_points), mark("bill", SLATE if bill else ORANGE))

    # Crown: blue crest, or scarlet cap.
    t = np.linspace(np.pi * 1.02, np.pi * 1.9, 20)
    cap = head + np.stack([0.36 * np.cos(t), 0.34 * np.sin(t)], axis=1)
    if crown:
        cap = np.concatenate([[head + (-0.62, -0.3)], cap[2:], [head + (-0.2, -0.16)]])
    paint(cap, mark("crown", BLUE if crown else SCARLET))

    eye = head + (0.12, -0.04)
    paint(_ellipse(*eye, 0.075, 0.075), (18, 16, 16))
    paint(_ellipse(eye[0] + 0.02, eye[1] - 0.025, 0.022, 0.022), (240, 240, 240))

    parts = {
        "bill": np.mean(bill_points, axis=0),
        "crown": head + (-0.05, -0.24),
        "eye": eye,
        "breast": np.array([0.68, 0.16]),
        "wing": np.array([-0.45, -0.02]),
        "wing bar": np.array([-0.2, -0.06]),
        "belly": np.array([0.1, 0.34]),
        "tail": tail_at,
    }
    # Light from above, and plumage.
    rows = (np.arange(shape[0])[:, None] - pose.centre[1]) / pose.unit
    light = 1.04 - 0.16 * np.clip(rows, -1, 1) + 0.05 * _smooth_noise(shape, 90, rng)
    pixels = {name: tuple(pose([point])[0].tolist()) for name, point in parts.items()}
    return layer * light[..., None], mask, pixels


def _leaves_in_front(canvas: np.ndarray, pose: Pose, rng: np.random.Generator) -> np.ndarray:
    """Paint leaves over some birds; bool H x W of what they cover."""
    covered = np.zeros(canvas.shape[:2], dtype=np.uint8)
    if rng.random() < 0.4:
        layer = np.clip(canvas, 0, 255).astype(np.uint8)
        for _ in range(rng.integers(1, 3)):
            place = pose(rng.uniform((-1.6, -0.9), (1.3, 0.8)))[0]
            length = rng.uniform(0.2, 0.42) * pose.unit
            leaf = _ellipse(*place, length, 0.4 * length, rng.uniform(0, 3))
            _paint(layer, leaf, _vary(LEAF_COLOURS[rng.integers(len(LEAF_COLOURS))], rng))
            _paint(covered, leaf, (255,))
        canvas[:] = np.where(covered[..., None] > 0, layer, canvas)
    return covered > 127


def fetch(raw: Path, params: SyntheticBirdsParams, workers: int = 2) -> None:
    """Draw the data set.

    Writes ``images/SPLIT/SPECIES/NUMBER.jpg``, ``annotations.csv`` and ``keypoints.csv``. Every
    bird has a generator of its own, so that neither order nor ``workers`` changes anything.

    Args:
        raw: an existing or new folder.
        params: seed and numbers.
        workers: processes.
    """
    jobs = [
        (raw, params.seed, species, split, number)
        for split, count in (("train", params.train_per_class), ("test", params.test_per_class))
        for species in range(len(SPECIES))
        for number in range(count)
    ]
    drawn = Parallel(n_jobs=workers, return_as="generator")(delayed(_write)(*job) for job in jobs)
    rows, keypoints = [], []
    for row, parts in progress(drawn, len(jobs), "drawing birds", "bird"):
        rows.append(row)
        keypoints += parts
    columns = ["image_id", "class_name", "split", *GT_BOX]
    write_csv(raw / "annotations.csv", pd.DataFrame(rows, columns=columns))
    columns = ["image_id", "part", "x", "y", "visible"]
    write_csv(raw / "keypoints.csv", pd.DataFrame(keypoints, columns=columns))


def _write(
    raw: Path, seed: int, species: int, split: str, number: int
) -> tuple[tuple[object, ...], list[tuple[object, ...]]]:
    rng = np.random.default_rng([seed, species, ("train", "test").index(split), number])
    drawing = draw_bird(species, rng)
    name = list(SPECIES)[species]
    image_id = f"{split}/{name}/{number:04}.jpg"
    with atomic(raw / "images" / image_id) as temporary:
        Image.fromarray(drawing.image).save(temporary, format="JPEG", quality=92)
    keypoints = [
        (image_id, part, round(x, 1), round(y, 1), visible)
        for part, (x, y, visible) in drawing.parts.items()
    ]
    return (image_id, name, split, *drawing.box), keypoints


def read(raw: Path) -> Dataset:
    """Read what `fetch` drew.

    Raises:
        OpamError: files missing or changed.
    """
    annotations = existing(raw / "annotations.csv", "run `dvc repro fetch_data`")
    keypoints = existing(raw / "keypoints.csv", "run `dvc repro fetch_data`")
    try:
        table = pd.read_csv(annotations)
        locations = pd.read_csv(keypoints)
        paths = [below(raw / "images", image_id, annotations) for image_id in table["image_id"]]
        images = table[["image_id", "class_name", "split"]].assign(path=paths)
        return dataset(images, locations, table[["image_id", *GT_BOX]])
    except (KeyError, ValueError, AttributeError) as error:
        raise OpamError(
            f"{annotations}: not as drawn ({error}); run `dvc repro -f fetch_data`"
        ) from None


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
        raise OpamError("usage: python -m opam.datasets.synthetic_birds FILE.jpg")
    with atomic(Path(sys.argv[1])) as temporary:
        Image.fromarray(contact_sheet(seed=0)).save(temporary, format="JPEG", quality=88)


if __name__ == "__main__":
    run(main)
