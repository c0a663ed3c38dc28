"""Photographs that are there more than once, with their pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from opam.report.page.photographs import picture

GROUPS, MEMBERS = 20, 6
"""Groups that are shown, and photographs of each."""
SIDE = 192
"""Longest side of their pictures, pixels."""


def copy_groups(
    duplicates: pd.DataFrame, read: Callable[[str], np.ndarray]
) -> list[dict[str, Any]]:
    """Groups of copies, those that conflict with something first; at most `GROUPS`.

    Args:
        duplicates: data/duplicates.csv, empty cells as empty text.
        read: gives a photograph by its path, uint8 H x W x 3.

    Returns:
        Of each group ``kind``, ``conflict``, ``count``, and of at most `MEMBERS` photographs
        ``image_id, class_name, split, action`` and ``picture`` (JPEG, base64).

    Raises:
        OpamError: a photograph cannot be read.
    """
    found = [members for _, members in duplicates.groupby("group")]
    found.sort(key=lambda members: members["conflict"].iloc[0] == "")
    columns = ["image_id", "class_name", "split", "action"]
    return [
        {
            "kind": members["kind"].iloc[0],
            "conflict": members["conflict"].iloc[0],
            "count": len(members),
            "photographs": [
                {**row, "picture": picture(read(path), SIDE)}
                for row, path in zip(
                    members[columns].head(MEMBERS).to_dict("records"), members["path"], strict=False
                )
            ],
        }
        for members in found[:GROUPS]
    ]
