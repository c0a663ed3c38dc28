"""Figures as SVG that the page holds inline; colours come from its style sheet.

Every function returns `Markup`; all text that it is given is escaped.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

MOST_NAMES = 40
"""A confusion matrix of more classes has no names beside it; they stand in its hover texts."""

LONGEST_NAME = 22
"""Characters of a class name beside a figure; hover texts have all of it."""


def percent(share: float | None, digits: int = 1) -> str:
    """A share 0..1 as text, such as ``84.1%``; empty for None and NaN."""
    return "" if share is None or np.isnan(share) else f"{share:.{digits}%}"


def interval_bar(value: float, low: float, high: float) -> Markup:
    """A bar from 0 to a share 0..1, with its interval across the end."""
    return Markup(
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="12"/>'
        '<rect class="value" width="{:.2f}" height="12"/>'
        '<rect class="interval" x="{:.2f}" y="4.5" width="{:.2f}" height="3"/></svg>'
    ).format(100 * value, 100 * low, max(100 * (high - low), 0.4))


def range_bar(value: float, low: float, high: float) -> Markup:
    """A mark at a share 0..1 over the range that others of its kind had."""
    return Markup(
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="12"/>'
        '<rect class="spread" x="{:.2f}" y="3" width="{:.2f}" height="6"/>'
        '<rect class="mark" x="{:.2f}" width="1.5" height="12"/></svg>'
    ).format(100 * low, max(100 * (high - low), 0.4), min(100 * value, 98.5))


def histogram(
    counts: np.ndarray, title: str, across: str, mark: float | None = None, marked: str = ""
) -> Markup:
    """Bars over equal bins of 0..1.

    Args:
        counts: int B.
        title: what a reader without sight is told the figure shows.
        across: what the horizontal axis is.
        mark: where a line is drawn, 0..1.
        marked: what the line stands for.
    """
    width, height = 360.0, 160.0
    most = max(int(counts.max(initial=0)), 1)
    step = width / len(counts)
    bars = []
    for index, count in enumerate(counts.tolist()):
        tall = height * count / most
        bars.append(
            Markup(
                '<rect class="value" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{:.2f} to {:.2f}: {}</title></rect>"
            ).format(
                index * step + 0.5,
                height - tall,
                step - 1,
                tall,
                index / len(counts),
                (index + 1) / len(counts),
                f"{count:,}",
            )
        )
    line = Markup("")
    if mark is not None:
        line = Markup(
            '<line class="limit" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1:.0f}">'
            "<title>{2}</title></line>"
        ).format(width * mark, height, marked)
    return _plot(title, across, f"most in a bin: {most:,}", Markup("").join([*bars, line]))


def reliability(bins: pd.DataFrame) -> Markup:
    """Accuracy over confidence, a dot a bin, beside the diagonal.

    Args:
        bins: what `opam.report.page.tables.reliability_bins` returns.
    """
    width, height = 360.0, 160.0
    rows: list[Any] = list(bins.itertuples())
    most = max((row.photographs for row in rows), default=1)
    dots = [
        Markup(
            '<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>confidence {} to {}: '
            "{} photographs, mean confidence {}, {} right</title></circle>"
        ).format(
            width * row.confidence,
            height * (1 - row.accuracy),
            3 + 6 * (row.photographs / most) ** 0.5,
            percent(row.low, 0),
            percent(row.high, 0),
            row.photographs,
            percent(row.confidence),
            percent(row.accuracy),
        )
        for row in rows
    ]
    diagonal = Markup('<line class="limit" x1="0" y1="{:.0f}" x2="{:.0f}" y2="0"/>').format(
        height, width
    )
    title = "Reliability diagram: share of right answers over confidence, a dot for each tenth"
    return _plot(title, "confidence", "right, 0 to 1", Markup("").join([diagonal, *dots]))


def _plot(title: str, across: str, upward: str, content: Markup) -> Markup:
    """Axes from 0 to 1 around 360 x 160 units of content."""
    ticks = [
        Markup('<text x="{:.0f}" y="176" text-anchor="middle">{}</text>').format(360 * tick, tick)
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return Markup(
        '<svg class="plot" viewBox="-16 -22 392 222" role="img" aria-label="{}">'
        '<text x="0" y="-8">{}</text>'
        '<path class="axis" d="M0 0V160H360"/>{}{}'
        '<text x="180" y="194" text-anchor="middle">{}</text></svg>'
    ).format(title, upward, content, Markup("").join(ticks), across)


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Markup:
    """True classes downward, predicted ones across; the darker, the larger a row's share.

    Args:
        counts: int C x C.
        names: C class names.
    """
    classes = len(names)
    named = classes <= MOST_NAMES
    # Room for the names, in cells: the figure is scaled as a whole.
    font = 0.62
    room = 0.4 + font * 0.6 * min(LONGEST_NAME, max(map(len, names))) if named else 0.5
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = [
        Markup(
            '<rect class="{}" x="{}" y="{}" width="1" height="1" fill-opacity="{:.2f}" '
            'data-actual="{}" data-predicted="{}"><title>{}</title></rect>'
        ).format(
            "right" if row == column else "wrong",
            column,
            row,
            0.25 + 0.75 * shares[row, column],
            row,
            column,
            _cell_text(int(counts[row, column]), names[row], names[column], shares[row, column]),
        )
        for row, column in np.argwhere(counts > 0).tolist()
    ]
    labels = _matrix_names(names, font) if named else []
    side = classes + room + 0.2
    return Markup(
        '<svg class="matrix" style="--cells:{}" viewBox="{:.2f} {:.2f} {:.2f} {:.2f}" role="img" '
        'aria-label="Confusion matrix: true classes downward, predicted classes across">'
        '<rect class="track" width="{}" height="{}"/>{}<g font-size="{}">{}</g></svg>'
    ).format(
        classes,
        -room,
        -room,
        side,
        side,
        classes,
        classes,
        Markup("").join(cells),
        font,
        Markup("").join(labels),
    )


def _cell_text(count: int, actual: str, predicted: str, share: float) -> str:
    if actual == predicted:
        return f"{actual}: {count} recognised ({percent(share, 0)})"
    return f"{actual} taken for {predicted}: {count} ({percent(share, 0)} of {actual})"


def _matrix_names(names: Sequence[str], font: float) -> Iterable[Markup]:
    for index, name in enumerate(names):
        short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
        middle = index + 0.5 + font / 3
        yield Markup('<text x="-0.25" y="{:.2f}" text-anchor="end">{}</text>').format(middle, short)
        yield Markup('<text transform="translate({:.2f} -0.25) rotate(-90)">{}</text>').format(
            middle, short
        )
