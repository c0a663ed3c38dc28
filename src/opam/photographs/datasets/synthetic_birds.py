"""synthetic_birds: drawn birds of eight species that differ in bill, crown, wing bar and tail.

Each of the four parts has one of four forms, each form occurs in two species, and two species
share one part at most: no single part tells a species for sure, any two of them do.
Everything else (body colours, pose, size, place, light, what stands in front and behind) is
drawn without looking at the species. The clutter behind the bird has the very colours of the
parts, so colours anywhere in the picture mislead, and the parts do not.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from joblib import delayed
from numpy.typing import ArrayLike
from PIL import Image
from pydantic import Field

from opam.photographs.datasets.dataset import Dataset, below, dataset, existing, unlisted
from opam.photographs.datasets.drawing import (
    OVERSAMPLING,
    ellipse,
    fill,
    generator,
    smooth_noise,
    to_draw,
    vary,
)
from opam.pipeline.artifacts import GT_BOX, atomic, write_csv
from opam.pipeline.errors import OpamError, cause
from opam.pipeline.params import Params
from opam.pipeline.processes import in_processes
from opam.pipeline.progress import progress

# Species: bill, crown, wing bar and tail, each in one of four forms; form // 2 is its shape and
# form % 2 its colour. Every form occurs in two species, and two species share one part at most.
SPECIES = {
    "amber_warbler": (0, 0, 0, 0),
    "brook_warbler": (0, 1, 1, 2),
    "cedar_warbler": (1, 2, 3, 2),
    "dune_warbler": (1, 3, 2, 0),
    "elm_warbler": (2, 2, 0, 1),
    "fen_warbler": (2, 3, 1, 3),
    "glade_warbler": (3, 0, 3, 3),
    "heath_warbler": (3, 1, 2, 1),
}

ORANGE, SLATE = (236, 130, 22), (58, 66, 92)
SCARLET, BLUE = (206, 28, 36), (36, 84, 200)
WHITE, YELLOW = (246, 244, 236), (244, 206, 34)
BILL_COLOURS, CROWN_COLOURS = (ORANGE, SLATE), (SCARLET, BLUE)
WING_BAR_COLOURS, TAIL_COLOURS = (WHITE, YELLOW), (BLUE, ORANGE)
MARK_COLOURS = (ORANGE, SLATE, SCARLET, BLUE, WHITE, YELLOW)
BODY_COLOURS = ((122, 94, 66), (104, 100, 92), (142, 114, 78), (92, 78, 64), (128, 122, 104))
BACKDROPS = ((126, 158, 92), (150, 180, 204), (172, 170, 120), (96, 128, 84), (186, 192, 182))
LEAF_COLOURS = ((70, 112, 48), (94, 136, 58), (122, 132, 52), (58, 92, 60))
BRANCH_COLOUR = (84, 66, 52)

PARTS = ("bill", "crown", "eye", "breast", "wing", "wing bar", "belly", "tail")


class SyntheticBirdsParams(Params):
    """How many birds."""

    seed: int = Field(0, ge=0, description="of the drawing")
    train_per_class: int = Field(48, ge=2, description="photographs a species, val included")
    test_per_class: int = Field(40, ge=1, description="photographs a species")


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

    def __call__(self, points: ArrayLike) -> np.ndarray:
        """Points of the bird, N x 2, in pixels: float64 N x 2."""
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
    unit = bird.uniform(0.18, 0.235) * min(shape)
    pose = Pose(
        centre=np.array(
            [
                bird.uniform(1.75 * unit, shape[1] - 1.75 * unit),
                bird.uniform(1.45 * unit, shape[0] - 1.15 * unit),
            ]
        ),
        unit=unit,
        tilt=bird.uniform(-0.35, 0.25),
        mirror=bool(bird.random() < 0.5),
    )
    canvas = _background(shape, scene)
    _perch(canvas, pose, scene)
    layer, mask, parts = _bird(shape, pose, list(SPECIES.values())[species], bird)
    alpha = (mask / 255.0).astype(np.float32)[..., None]
    canvas += alpha * (layer - canvas)
    covered = _leaves_in_front(canvas, pose, front)

    visible = cv2.resize(np.where(covered, 0, mask), (width, height), interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero(visible.max(1) > 127), np.flatnonzero(visible.max(0) > 127)
    image: np.ndarray = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    image += 4 * front.standard_normal(image.shape, dtype=np.float32)
    return Drawing(
        image=np.clip(np.rint(image), 0, 255).astype(np.uint8),
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        parts={
            name: (x / OVERSAMPLING, y / OVERSAMPLING, not covered[int(y), int(x)])
            for name, (x, y) in parts.items()
        },
    )


def _background(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Out of focus: a gradient and blots; nearer: branches, leaves, and spots in mark colours."""
    top, bottom = (vary(BACKDROPS[i], rng) for i in rng.integers(0, len(BACKDROPS), 2))
    small = (shape[0] // (2 * OVERSAMPLING), shape[1] // (2 * OVERSAMPLING))
    down = np.linspace(0, 1, small[0])[:, None, None]
    # Painting is done in 8 bits: OpenCV smooths edges in no other type.
    sky = np.broadcast_to(top * (1 - down) + bottom * down, (*small, 3))
    far: np.ndarray = np.ascontiguousarray(sky.round().astype(np.uint8))
    for _ in range(rng.integers(8, 16)):
        colour = vary(LEAF_COLOURS[rng.integers(len(LEAF_COLOURS))], rng, 25)
        place = rng.uniform(0, 1, 2) * small[::-1]
        axes = rng.uniform(0.05, 0.2, 2) * min(small)
        fill(far, ellipse(place, axes, rng.uniform(0, 3)), colour)
    far = cv2.GaussianBlur(far, (0, 0), float(rng.uniform(0.02, 0.04) * min(small)))
    canvas = cv2.resize(far, shape[::-1], interpolation=cv2.INTER_LINEAR)
    side = min(shape)
    for _ in range(rng.integers(1, 4)):
        start, end = rng.uniform(0, 1, (2, 2)) * shape[::-1]
        colour = vary(BRANCH_COLOUR, rng)
        fill(canvas, _stroke(start, end, rng.uniform(0.006, 0.014) * side), colour)
    for _ in range(rng.integers(6, 14)):
        colour = vary(LEAF_COLOURS[rng.integers(len(LEAF_COLOURS))], rng)
        place = rng.uniform(0, 1, 2) * shape[::-1]
        length = rng.uniform(0.03, 0.07) * side
        fill(canvas, ellipse(place, (length, 0.4 * length), rng.uniform(0, 3)), colour)
    for _ in range(rng.integers(14, 26)):
        colour = vary(MARK_COLOURS[rng.integers(len(MARK_COLOURS))], rng)
        place = rng.uniform(0, 1, 2) * shape[::-1]
        axes = np.sort(rng.uniform(0.008, 0.035, 2))[::-1] * side
        fill(canvas, ellipse(place, axes, rng.uniform(0, 3)), colour)
    canvas = cv2.GaussianBlur(canvas, (5, 5), OVERSAMPLING * 0.8)
    light = 1 + 0.06 * smooth_noise(shape, 6, rng) + 0.03 * smooth_noise(shape, 60, rng)
    return canvas * light[..., None].astype(np.float32)


def _stroke(start: np.ndarray, end: np.ndarray, half_width: float) -> np.ndarray:
    along = (end - start) / max(1e-6, float(np.linalg.norm(end - start)))
    across = half_width * np.array([-along[1], along[0]])
    return np.array([start + across, end + across * 0.6, end - across * 0.6, start - across])


def _perch(canvas: np.ndarray, pose: Pose, rng: np.random.Generator) -> None:
    layer = np.clip(canvas, 0, 255).astype(np.uint8)
    colour = vary(BRANCH_COLOUR, rng)
    start, end = pose([(-6, 1.05 + rng.normal(0, 0.3)), (6, 1.05 + rng.normal(0, 0.3))])
    fill(layer, _stroke(start, end, 0.09 * pose.unit), colour)
    for x in (-0.05, 0.25):
        hip, foot = pose([(x, 0.5), (x + 0.05, 1.02)])
        fill(layer, _stroke(hip, foot, 0.03 * pose.unit), (70, 58, 50))
    canvas[:] = layer


def _bird(
    shape: tuple[int, int], pose: Pose, forms: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[float, float]]]:
    """The bird alone: float H x W x 3, its uint8 coverage H x W, and its parts in pixels."""
    bill, crown, wing_bar, tail = forms
    layer = np.zeros((*shape, 3), dtype=np.uint8)
    mask = np.zeros(shape, dtype=np.uint8)
    body = vary(BODY_COLOURS[rng.integers(len(BODY_COLOURS))], rng, 8)
    belly = np.clip(body * 0.6 + 95, 0, 255)
    stout = rng.uniform(0.6, 0.7)
    head = np.array([0.7, -0.66]) + rng.normal(0, 0.05, 2)
    droop = rng.uniform(-0.5, 0.2)
    marks = {name: rng.normal(0, 10, 3) for name in ("bill", "crown", "wing bar", "tail")}

    def paint(points: ArrayLike, colour: ArrayLike) -> None:
        fill(layer, pose(points), np.clip(colour, 0, 255))
        fill(mask, pose(points), (255,))

    def on_head(x: float, y: float) -> np.ndarray:
        return head + np.array([x, y])

    def mark(name: str, colours: Sequence[tuple[int, int, int]], form: int) -> np.ndarray:
        return np.asarray(colours[form % 2]) + marks[name]

    # Tail: square, or long and forked; its end is coloured.
    tail_colour = mark("tail", TAIL_COLOURS, tail)
    root, along = np.array([-0.8, 0.06]), np.array([-np.cos(droop), np.sin(droop)])
    across = np.array([-along[1], along[0]])
    if tail // 2:
        tips = [root + 1.0 * along + side * 0.34 * across for side in (1, -1)]
        notch = root + 0.66 * along
        paint([root + 0.17 * across, tips[0], notch, tips[1], root - 0.17 * across], 0.8 * body)
        for tip, side in zip(tips, (1, -1), strict=True):
            inner = root + 0.48 * along
            paint([tip, notch, inner, inner + side * 0.25 * across], tail_colour)
        tail_at = root + 0.68 * along
    else:
        end = root + 0.68 * along
        paint(
            [root + 0.17 * across, end + 0.3 * across, end - 0.3 * across, root - 0.17 * across],
            0.8 * body,
        )
        band = root + 0.44 * along
        paint(
            [band + 0.25 * across, end + 0.3 * across, end - 0.3 * across, band - 0.25 * across],
            tail_colour,
        )
        tail_at = root + 0.55 * along

    # Body, neck and head.
    paint(ellipse((0, 0), (1, stout), -0.3), body)
    paint(ellipse((0.12, 0.16), (0.82, stout * 0.72), -0.28), belly)
    nape, throat = on_head(-0.22, -0.22), on_head(0.2, 0.22)
    paint(np.array([(0.35, -0.45), nape, throat, (0.85, 0.1)]), body)
    paint(ellipse(head, (0.36, 0.33)), body)

    # Wing and its bars: one broad, or two narrow.
    paint(ellipse((-0.2, -0.08), (0.68, 0.3), -0.12), 0.72 * body)
    bars = ((-0.02, 0.07), (-0.34, 0.07)) if wing_bar // 2 else ((-0.2, 0.13),)
    colour = mark("wing bar", WING_BAR_COLOURS, wing_bar)
    for x, thick in bars:
        paint(ellipse((x, -0.06), (thick, 0.25), 0.5), colour)

    # Bill: short and thick, or long and thin.
    if bill // 2:
        bill_points = [on_head(0.3, -0.07), on_head(0.86, 0.08), on_head(0.3, 0.08)]
    else:
        bill_points = [on_head(0.26, -0.19), on_head(0.62, 0.04), on_head(0.26, 0.19)]
    paint(np.array(bill_points), mark("bill", BILL_COLOURS, bill))

    # Crown: a cap, or a crest.
    t = np.linspace(np.pi * 1.02, np.pi * 1.9, 20)
    cap = head + np.stack([0.36 * np.cos(t), 0.34 * np.sin(t)], axis=1)
    if crown // 2:
        cap = np.concatenate([[on_head(-0.62, -0.3)], cap[2:], [on_head(-0.2, -0.16)]])
    paint(cap, mark("crown", CROWN_COLOURS, crown))

    eye = on_head(0.12, -0.04)
    paint(ellipse(eye, (0.075, 0.075)), (18, 16, 16))
    paint(ellipse(eye + np.array([0.02, -0.025]), (0.022, 0.022)), (240, 240, 240))

    parts = {
        "bill": np.mean(bill_points, axis=0),
        "crown": on_head(-0.05, -0.24),
        "eye": eye,
        "breast": np.array([0.68, 0.16]),
        "wing": np.array([-0.45, -0.02]),
        "wing bar": np.array([-0.2, -0.06]),
        "belly": np.array([0.1, 0.34]),
        "tail": tail_at,
    }
    # Light from above, and plumage.
    rows = (np.arange(shape[0])[:, None] - pose.centre[1]) / pose.unit
    light = 1.04 - 0.16 * np.clip(rows, -1, 1) + 0.05 * smooth_noise(shape, 90, rng)
    pixels = {name: tuple(pose([point])[0].tolist()) for name, point in parts.items()}
    return layer * light[..., None].astype(np.float32), mask, pixels


def _leaves_in_front(canvas: np.ndarray, pose: Pose, rng: np.random.Generator) -> np.ndarray:
    """Paint leaves over some birds; bool H x W of what they cover."""
    covered = np.zeros(canvas.shape[:2], dtype=np.uint8)
    if rng.random() < 0.4:
        layer = np.clip(canvas, 0, 255).astype(np.uint8)
        for _ in range(rng.integers(1, 3)):
            place = pose(rng.uniform((-1.6, -0.9), (1.3, 0.8)))[0]
            length = rng.uniform(0.2, 0.42) * pose.unit
            leaf = ellipse(place, (length, 0.4 * length), rng.uniform(0, 3))
            fill(layer, leaf, vary(LEAF_COLOURS[rng.integers(len(LEAF_COLOURS))], rng))
            fill(covered, leaf, (255,))
        canvas[:] = np.where(covered[..., None] > 0, layer, canvas)
    return covered > 127


def fetch(raw: Path, params: SyntheticBirdsParams, workers: int = 2) -> Path:
    """Draw the data set and return its folder, ``raw``.

    Writes ``images/SPLIT/SPECIES/NUMBER.jpg``, ``annotations.csv`` and ``keypoints.csv``. Every
    bird has a generator of its own, so that neither order nor ``workers`` changes anything.

    Args:
        raw: an existing or new folder.
        params: seed and numbers.
        workers: processes.
    """
    jobs = [
        (raw, params.seed, *each)
        for each in to_draw(len(SPECIES), params.train_per_class, params.test_per_class)
    ]
    drawn = in_processes((delayed(_write)(*job) for job in jobs), workers)
    rows, keypoints = [], []
    for row, parts in progress(drawn, len(jobs), "drawing birds", "birds"):
        rows.append(row)
        keypoints += parts
    columns = ["image_id", "class_name", "split", *GT_BOX]
    write_csv(raw / "annotations.csv", pd.DataFrame(rows, columns=columns))
    columns = ["image_id", "part", "x", "y", "visible"]
    write_csv(raw / "keypoints.csv", pd.DataFrame(keypoints, columns=columns))
    return raw


def _write(
    raw: Path, seed: int, species: int, split: str, number: int
) -> tuple[tuple[object, ...], list[tuple[object, ...]]]:
    rng = generator(seed, species, split, number)
    drawing = draw_bird(species, rng)
    name = list(SPECIES)[species]
    image_id = f"{split}/{name}/{number:04}.jpg"
    with atomic(raw / "images" / image_id) as temporary:
        Image.fromarray(drawing.image).save(temporary, format="JPEG", quality=92)
    keypoints: list[tuple[object, ...]] = [
        (image_id, part, round(x, 1), round(y, 1), visible)
        for part, (x, y, visible) in drawing.parts.items()
    ]
    return (image_id, name, split, *drawing.box), keypoints


def read(raw: zipfile.Path) -> Dataset:
    """Read what `fetch` drew.

    Raises:
        OpamError: files missing or changed.
    """
    annotations = existing(raw / "annotations.csv", "run `dvc repro fetch_data`")
    keypoints = existing(raw / "keypoints.csv", "run `dvc repro fetch_data`")
    try:
        table = pd.read_csv(io.BytesIO(annotations.read_bytes()))
        locations = pd.read_csv(io.BytesIO(keypoints.read_bytes()))
        paths = [below(raw / "images", image_id, annotations) for image_id in table["image_id"]]
        images = table[["image_id", "class_name", "split"]].assign(path=paths)
        others = unlisted(paths, raw / "images")
        return dataset(images, locations, table[["image_id", *GT_BOX]], skipped=others)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise OpamError(
            f"{annotations}: not as drawn ({cause(error)}); run `dvc repro -f fetch_data`"
        ) from None
