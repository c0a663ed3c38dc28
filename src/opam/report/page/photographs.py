"""What the page shows of one photograph: a small picture, its maps, its boxes."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from opam.method.parts import Measure, PartParams, mean_saliency, qualifying
from opam.method.saliency import to_image
from opam.photographs.decoding.images import decoded
from opam.pipeline.artifacts import BOX

LONGEST_SIDE = 384
"""Of a picture in the page, pixels: one size for the gallery and for the large view."""

QUALITY = 80
"""Of a picture's JPEG."""

MOST_PROPOSALS = 200
"""Proposals that the page holds of one photograph; of more, so many evenly over the ranks."""

MOST_CANDIDATES = 30
"""Candidates for parts that the page lists, those of highest score."""

TOP = 5
"""Classes whose probabilities the large view shows."""


@dataclass(frozen=True)
class Found:
    """What the stages found in one photograph.

    Attributes:
        where: the photograph; arguments of `decoded`.
        size: its height and width in pixels.
        cam: float h x w, the class activation map.
        object_map: float h x w, the map that the object box comes from.
        object_box: int 4, pixels.
        proposals: int K x 4 in order of rank.
        part_boxes: int n x 4, the chosen parts.
        fallback: of the selection of parts (see `opam.method.parts.Selection`).
    """

    where: tuple[str, int, float, str]
    size: tuple[int, int]
    cam: np.ndarray
    object_map: np.ndarray
    object_box: np.ndarray
    proposals: np.ndarray
    part_boxes: np.ndarray
    fallback: str


def picture(pixels: np.ndarray, longest_side: int = LONGEST_SIDE) -> str:
    """A JPEG of at most ``longest_side`` pixels a side, in base64, of uint8 H x W x 3."""
    image = Image.fromarray(pixels)
    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def packed_map(values: np.ndarray) -> dict[str, Any]:
    """A map in 256 steps from its least to its greatest value.

    Args:
        values: float h x w.

    Returns:
        ``rows``, ``columns`` and ``cells``, base64 of h * w bytes; all 0 for a constant map.
    """
    rows, columns = values.shape
    cells = np.rint(to_image(values, rows, columns) * 255).astype(np.uint8)
    return {
        "rows": rows,
        "columns": columns,
        "cells": base64.b64encode(cells.tobytes()).decode("ascii"),
    }


def evenly(count: int, most: int) -> np.ndarray:
    """At most ``most`` of the positions 0..count-1, evenly spaced, int64."""
    return np.arange(count) if count <= most else np.arange(most) * count // most


def candidate_table(
    saliency: np.ndarray,
    object_box: np.ndarray,
    boxes: np.ndarray,
    params: PartParams,
    fallback: str,
) -> pd.DataFrame:
    """The candidates that parts were chosen from, each on its own.

    Args:
        saliency: float H x W, 0..1.
        object_box: int 4, pixels.
        boxes: int K x 4, the proposals in order of rank.
        params: what a candidate must fulfil.
        fallback: which rule was relaxed (see `opam.method.parts.Selection`).

    Returns:
        A row a candidate, highest score first: ``rank, x0, y0, x1, y1, iou`` and ``inside``
        (with the object box), ``saliency`` (mean, 0..1) and ``score`` (Delta_part of this box
        alone; minus infinity where undefined).
    """
    measure = Measure(saliency, object_box)
    height, width = saliency.shape
    boxes = np.clip(np.asarray(boxes, dtype=np.int64).reshape(-1, 4), 0, [width, height] * 2)
    area, inside, _ = measure(boxes)
    if fallback in ("none", "min_iou"):
        least = params.min_iou if fallback == "none" else 0.0
        rank = qualifying(
            measure, boxes, least, params.min_inside, params.max_candidates, params.max_iou
        )
    else:
        rank = np.flatnonzero(area > 0)
    area, inside, salient = area[rank], inside[rank], mean_saliency(saliency, boxes[rank])
    with np.errstate(divide="ignore"):
        score = np.log(inside) + np.log(salient)
    table = pd.DataFrame(boxes[rank], columns=BOX)
    table.insert(0, "rank", rank)
    table = table.assign(
        iou=inside / np.maximum(area + measure.object_area - inside, 1),
        inside=inside / np.maximum(area, 1),
        saliency=salient,
        score=score,
    )
    return table.sort_values(["score", "rank"], ascending=[False, True], ignore_index=True)


def top_classes(probabilities: np.ndarray) -> list[list[int]]:
    """The `TOP` most probable classes of float C: label and probability in per mille."""
    best = np.argsort(-probabilities, kind="stable")[:TOP]
    return [[int(label), per_mille(probabilities[label])] for label in best]


def per_mille(share: float) -> int:
    """A share 0..1 in whole thousandths: short in the page."""
    return round(float(share) * 1000)


def details(found: Found, params: PartParams) -> dict[str, Any]:
    """A photograph's picture, and what its large view shows beside it.

    Returns:
        ``picture``, ``maps`` (cam and object, see `packed_map`), ``proposals`` (boxes) and
        ``proposal_count``, ``candidates`` (see `candidate_rows`) and ``candidate_count``.

    Raises:
        OpamError: the photograph cannot be read.
    """
    saliency = to_image(found.cam, *found.size)
    candidates = candidate_table(
        saliency, found.object_box, found.proposals, params, found.fallback
    )
    shown = found.proposals[evenly(len(found.proposals), MOST_PROPOSALS)]
    return {
        "picture": picture(decoded(*found.where).pixels),
        "maps": {"cam": packed_map(found.cam), "object": packed_map(found.object_map)},
        "proposals": shown.tolist(),
        "proposal_count": len(found.proposals),
        "candidates": candidate_rows(candidates.head(MOST_CANDIDATES), found.part_boxes),
        "candidate_count": len(candidates),
    }


def candidate_rows(candidates: pd.DataFrame, chosen: np.ndarray) -> list[dict[str, Any]]:
    """Rows of `candidate_table` as the page holds them; ``part`` is the chosen part's or None."""
    part_of = {tuple(box): part for part, box in enumerate(chosen.tolist())}
    return [
        {
            "box": list(row[:4]),
            "part": part_of.get(tuple(row[:4])),
            "iou": per_mille(figures[0]),
            "inside": per_mille(figures[1]),
            "saliency": per_mille(figures[2]),
            "score": rounded(figures[3]),
        }
        for row, figures in zip(
            candidates[BOX].to_numpy().tolist(),
            candidates[["iou", "inside", "saliency", "score"]].to_numpy().tolist(),
            strict=True,
        )
    ]


def rounded(value: float) -> float | None:
    """To three decimals; None where it is not finite, for JSON has no such number."""
    return round(float(value), 3) if np.isfinite(value) else None
