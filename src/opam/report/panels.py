"""Panels of a drawing: a picture with title and caption each, side by side on one sheet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from opam.report.fonts import lettering

WIDTH, HEIGHT = 440, 340
"""Pixels that a panel's picture may have."""

MARGIN = 20
LARGEST_ZOOM = 4.0
"""Small photographs are scaled up to so many times their size."""

COLOURS = ("#ffb000", "#00c8ff", "#ff5fb0", "#7ddc4c")
"""Of parts, by cluster; the object is white."""

BRANCH_COLOURS = ("#8a9bb4", "#4f7fc4", "#63b3a4", "#d4622a")
"""Of original, object, part and fused."""

FOR, AGAINST = (214, 39, 40), (31, 90, 200)
"""Where a map is positive, and where it is negative."""

INK, GREY, PAPER = "#1c1c1e", "#5f6368", "white"
HEAT_OPACITY = 0.55
SIGNED_OPACITY = 0.85
DARKENED = 0.35

LARGE, MEDIUM, SMALL = 22, 17, 14
LINES = 3
"""Of a caption, at most."""


@dataclass(frozen=True)
class Panel:
    """One step: what it is, what it looks like (at most `WIDTH` x `HEIGHT`), what it says."""

    title: str
    picture: Image.Image
    caption: str


class Sketch:
    """A photograph scaled to a panel, and what is drawn on it in its own pixels.

    Args:
        image: uint8 H x W x 3.
    """

    def __init__(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        self.scale = min(WIDTH / width, HEIGHT / height, LARGEST_ZOOM)
        self.size = (max(1, round(width * self.scale)), max(1, round(height * self.scale)))
        self.picture = Image.fromarray(image).resize(self.size, Image.Resampling.LANCZOS)

    def heat(self, values: np.ndarray) -> None:
        """Lay a map over the photograph, dark where it is 0, bright where it is 1.

        Args:
            values: float H x W, 0..1.
        """
        steps = np.rint(values * 255).astype(np.uint8)
        colours = cv2.cvtColor(cv2.applyColorMap(steps, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
        layer = Image.fromarray(colours).resize(self.size, Image.Resampling.BILINEAR)
        self.picture = Image.blend(self.picture, layer, HEAT_OPACITY)

    def signed(self, values: np.ndarray) -> None:
        """Lay a map over the photograph, which loses its colours: `FOR` and `AGAINST`.

        Args:
            values: float h x w, of any size; the farthest from 0 is opaque, as far as any is.
        """
        most = float(np.abs(values).max()) or 1.0
        scaled = cv2.resize(
            (values / most).astype(np.float32), self.size, interpolation=cv2.INTER_LINEAR
        )
        opacity = SIGNED_OPACITY * np.abs(scaled)[..., None]
        grey = np.asarray(self.picture.convert("L").convert("RGB"), dtype=np.float32)
        colours = np.where(scaled[..., None] > 0, FOR, AGAINST)
        mixed = np.rint(grey * (1 - opacity) + colours * opacity)
        self.picture = Image.fromarray(mixed.astype(np.uint8))

    def darken(self, pixels: np.ndarray) -> None:
        """Darken some pixels, bool H x W."""
        mask = Image.fromarray((pixels * 255).astype(np.uint8)).resize(self.size)
        darker = self.picture.point(lambda value: value * DARKENED)
        self.picture.paste(darker, mask=mask)

    def boxes(
        self,
        boxes: Iterable[Sequence[int] | np.ndarray],
        colour: str,
        width: int = 1,
        opacity: float = 1.0,
    ) -> None:
        """Outline boxes x0, y0, x1, y1, half-open, in pixels of the photograph."""
        layer = self.picture.copy()
        pen = ImageDraw.Draw(layer)
        for box in boxes:
            x0, y0, x1, y1 = self._scaled(box)
            if width > 1:  # a dark edge, for bright backgrounds
                pen.rectangle((x0, y0, x1, y1), outline="black", width=width + 2)
                pen.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=colour, width=width)
            else:
                pen.rectangle((x0, y0, x1, y1), outline=colour)
        self.picture = Image.blend(self.picture, layer, opacity)

    def label(self, box: Sequence[int] | np.ndarray, text: str, colour: str) -> None:
        """Write into the upper left corner of a box."""
        pen = ImageDraw.Draw(self.picture)
        x0, y0, _, _ = self._scaled(box)
        text, font = lettering(text, SMALL)
        around = pen.textbbox((x0 + 5, y0 + 4), text, font=font)
        left = max(0, min(0, self.size[0] - round(around[2]) - 3))
        pen.rectangle((around[0] - 3 + left, around[1] - 2, around[2] + 3, around[3] + 2), "black")
        pen.text((x0 + 5 + left, y0 + 4), text, fill=colour, font=font)

    def _scaled(self, box: Sequence[int] | np.ndarray) -> tuple[int, int, int, int]:
        """The box in pixels of the picture, both corners inside it, x1 and y1 included."""
        x0, y0, x1, y1 = (round(float(value) * self.scale) for value in box)
        x0, y0 = min(x0, self.size[0] - 4), min(y0, self.size[1] - 4)
        x0, y0 = max(0, x0), max(0, y0)
        return x0, y0, max(x1 - 1, x0 + 3), max(y1 - 1, y0 + 3)


def bars(rows: Sequence[tuple[str, Sequence[float]]], colours: Sequence[str]) -> Image.Image:
    """Groups of bars.

    Args:
        rows: a name, and values 0..1, a bar each.
        colours: of the bars of a group.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(picture)
    height = 11
    number = 60
    top = 0
    for name, values in rows:
        write(pen, (0, top), name, SMALL, INK)
        top += SMALL + 6
        for value, colour in zip(values, colours, strict=True):
            length = round(value * (WIDTH - number))
            pen.rectangle((0, top, max(length, 1), top + height - 2), fill=colour)
            place = (max(length, 1) + 5, top + height / 2 - 1)
            write(pen, place, f"{value:.1%}", 11, GREY, anchor="lm")
            top += height
        top += 4
    return picture


def gallery(pictures: Sequence[tuple[np.ndarray, str]], columns: int) -> Image.Image:
    """Pictures in a row, as wide as a panel, with a few words under each.

    Args:
        pictures: uint8 H x W x 3, and the words; at most ``columns`` of them.
        columns: places for pictures.
    """
    side = (WIDTH - (columns - 1) * SMALL) // columns
    row = Image.new("RGB", (WIDTH, side + 2 * SMALL + 8), PAPER)
    pen = ImageDraw.Draw(row)
    for place, (pixels, words) in enumerate(pictures):
        x = place * (side + SMALL)
        scale = min(side / pixels.shape[1], side / pixels.shape[0])
        size = [max(1, round(each * scale)) for each in pixels.shape[1::-1]]
        picture = Image.fromarray(pixels).resize((size[0], size[1]), Image.Resampling.BICUBIC)
        row.paste(picture, (x + (side - size[0]) // 2, (side - size[1]) // 2))
        write(pen, (x + side / 2, side + 4), words, SMALL, GREY, anchor="ma")
    return row


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, as wide as a panel."""
    picture = Image.new("RGB", (WIDTH, sum(each.height for each in pictures)), PAPER)
    top = 0
    for each in pictures:
        picture.paste(each, (0, top))
        top += each.height
    return picture


def remark(text: str) -> Image.Image:
    """A picture of words, where there is nothing to draw."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "#f4f5f7")
    pen = ImageDraw.Draw(picture)
    lines = "\n".join(wrapped(text, SMALL, WIDTH - 2 * MARGIN))
    place = (WIDTH / 2, HEIGHT / 2)
    write(pen, place, lines, SMALL, GREY, anchor="mm", align="center", spacing=6)
    return picture


def sheet(heading: str, panels: Sequence[Panel], columns: int = 3) -> Image.Image:
    """Panels in rows under a heading."""
    rows = -(-len(panels) // columns)
    caption = LINES * (SMALL + 5)
    cell = (WIDTH + MARGIN, MEDIUM + 10 + HEIGHT + 8 + caption + MARGIN)
    top = MARGIN + LARGE + MARGIN
    size = (MARGIN + columns * cell[0], top + rows * cell[1])
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    write(pen, (MARGIN, MARGIN), heading, LARGE, INK)
    for index, panel in enumerate(panels):
        x = MARGIN + index % columns * cell[0]
        y = top + index // columns * cell[1]
        write(pen, (x, y), panel.title, MEDIUM, INK)
        y += MEDIUM + 10
        picture.paste(panel.picture, (x, y))
        y += panel.picture.height + 8
        lines = wrapped(panel.caption, SMALL, WIDTH)[:LINES]
        write(pen, (x, y), "\n".join(lines), SMALL, GREY, spacing=5)
    return picture


def write(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    colour: str,
    **options: Any,
) -> None:
    """Write text of any script (`opam.report.fonts`); ``options`` are Pillow's."""
    text, font = lettering(text, size)
    pen.text(place, text, fill=colour, font=font, **options)


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of at most ``width`` pixels, broken between words; as `lettering` has the text."""
    text, font = lettering(text, size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
