"""Sample tables: what a network is trained on.

A row a crop: ``path`` of the photograph, box ``x0, y0, x1, y1``, ``label``, and ``head``: which
linear layer the crop trains, or -1 for all of them.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from opam.pipeline.artifacts import BOX, SCHEMAS


def samples(table: pd.DataFrame, manifest: pd.DataFrame, head: int = -1) -> pd.DataFrame:
    """A sample table from rows with ``image_id`` and a box; the label is the photograph's own."""
    columns = manifest.set_index("image_id")[["path", "label"]]
    return table[["image_id", *BOX]].join(columns, on="image_id").assign(head=head)


def whole_images(manifest: pd.DataFrame) -> pd.DataFrame:
    """A sample table of whole photographs."""
    boxes = manifest[["image_id"]].assign(x0=0, y0=0, x1=manifest["width"], y1=manifest["height"])
    return samples(boxes, manifest)


def epoch_order(labels: np.ndarray, balanced: bool, seed: int, epoch: int) -> np.ndarray:
    """The rows that an epoch shows, int N, in its order.

    Args:
        labels: int N.
        balanced: False: every row once; True: as many of each class that is there, rows of small
            classes again and again, of large ones a part that is drawn anew each epoch.
        seed: with ``epoch``, of the draw.
        epoch: 0-based.
    """
    generator = np.random.default_rng([seed, epoch])
    if not balanced:
        return generator.permutation(len(labels))
    classes = generator.permutation(np.unique(labels))
    ends = np.linspace(0, len(labels), len(classes) + 1).astype(np.int64)
    drawn = []
    for label, count in zip(classes, np.diff(ends), strict=True):
        own = np.flatnonzero(labels == label)
        times = [generator.permutation(own) for _ in range(-(-count // len(own)))]
        drawn.append(np.concatenate(times)[:count])
    return generator.permutation(np.concatenate(drawn))


def draw_patches(
    photographs: Iterable[tuple[str, pd.DataFrame]], per_image: int, seed: tuple[int, ...]
) -> pd.DataFrame:
    """At most ``per_image`` kept patches of each photograph, drawn at random; 0 keeps all.

    Photographs with hundreds of kept patches would otherwise outvote those with a few.

    Args:
        photographs: ``image_id`` and its rows of a kept-patches table, one photograph at a time.
        per_image: rows an image.
        seed: of the draw.

    Returns:
        The drawn rows, those of a photograph in the order they came in.
    """
    generator = np.random.default_rng(seed)
    drawn = [SCHEMAS["kept_patches"].empty_table().to_pandas()]
    for _, rows in photographs:
        if per_image:
            chosen = generator.permutation(len(rows))[:per_image]
            rows = rows.iloc[np.sort(chosen)]
        drawn.append(rows)
    return pd.concat(drawn, ignore_index=True)
