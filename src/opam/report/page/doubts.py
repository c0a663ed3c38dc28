"""Labels that are doubted: the photographs, and those that argue against their labels and for them.

What argues is chosen by answers that were given out of fold (`opam.evaluation.doubts`), so that no
photograph speaks for its own label.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from opam.evaluation.doubts import most_alike
from opam.pipeline.errors import OpamError
from opam.report.page.photographs import picture

SHOWN, ALIKE = 60, 3
"""Doubted labels that are shown, and photographs of either class beside each."""
SIDE = 192
"""Longest side of the pictures beside, pixels."""


def doubted_labels(
    listed: pd.DataFrame,
    images: pd.DataFrame,
    probabilities: np.ndarray,
    manifest: pd.DataFrame,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """The first `SHOWN` labels of the list.

    Args:
        listed: data/doubtful_labels.csv.
        images: ``image_id`` and ``label`` of the N photographs that were answered out of fold.
        probabilities: float N x C, of them.
        manifest: indexed by image_id.
        classes: C names.

    Returns:
        The list's columns; ``photograph``, and ``against`` and ``for``, those labelled with the
        suggested and with the given class that were answered most like it, `ALIKE` at most: each
        with ``image_id, path, width, height``.

    Raises:
        OpamError: a listed photograph was not answered.
    """
    row_of = {image_id: row for row, image_id in enumerate(images["image_id"])}
    labels = images["label"].to_numpy()
    label_of = {name: label for label, name in enumerate(classes)}

    def named(rows: Iterable[int]) -> list[dict[str, Any]]:
        own = manifest.loc[images["image_id"].iloc[[*rows]]].reset_index()
        found: list[Any] = own[["image_id", "path", "width", "height"]].to_dict("records")
        return found

    shown = []
    first: list[Any] = listed.head(SHOWN).to_dict("records")
    for doubt in first:
        row = row_of.get(doubt["image_id"])
        if row is None or {doubt["label"], doubt["suggested"]} - {*label_of}:
            raise OpamError(
                f"data/doubtful_labels.csv: {doubt['image_id']} is not as the scores know it; run "
                "`dvc repro doubt_labels` to make it anew"
            )
        against, for_it = (
            most_alike(probabilities, row, np.flatnonzero(labels == label_of[name]), ALIKE)
            for name in (doubt["suggested"], doubt["label"])
        )
        [photograph] = named([row])
        shown.append(
            {**doubt, "photograph": photograph, "against": named(against), "for": named(for_it)}
        )
    return shown


def doubt_pictures(
    doubts: Iterable[dict[str, Any]], read: Callable[[str], np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Of each doubt ``pictures``: of its photograph, of those against it, of those for it.

    JPEGs in base64, in the order of what `doubted_labels` gives.

    Args:
        doubts: what `doubted_labels` gives.
        read: gives a photograph by its path, uint8 H x W x 3.

    Raises:
        OpamError: a photograph cannot be read.
    """
    for doubt in doubts:
        beside = [*doubt["against"], *doubt["for"]]
        own = picture(read(doubt["photograph"]["path"]))
        yield {"pictures": [own, *(picture(read(each["path"]), SIDE) for each in beside)]}
