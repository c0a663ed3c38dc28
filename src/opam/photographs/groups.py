"""Groups of photographs that must stay on one side of every split and fold."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from opam.pipeline.errors import OpamError


def joined(count: int, pairs: Sequence[np.ndarray]) -> np.ndarray:
    """Group of each of ``count`` rows, int64: rows are together that any chain of pairs joins.

    Args:
        count: number of rows.
        pairs: int K x 2 each, rows that belong together.
    """
    every = np.vstack([np.empty((0, 2), dtype=np.int64), *pairs])
    links = coo_array((np.ones(len(every)), (every[:, 0], every[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1].astype(np.int64)


def pairs_of(names: pd.Series) -> np.ndarray:
    """Pairs of rows that have one name, each with the first of them: int64 K x 2.

    A row whose name is missing or empty is paired with none.
    """
    code, _ = pd.factorize(names.where(names != ""))
    _, first, number = np.unique(code, return_index=True, return_inverse=True)
    pairs = np.column_stack([first[number], np.arange(len(code))])
    return pairs[(code >= 0) & (pairs[:, 0] != pairs[:, 1])]


def grouped(images: pd.DataFrame, pairs: Sequence[np.ndarray]) -> pd.Series:
    """The group of each photograph by name: the first ``image_id`` of those that are together.

    Only photographs of one given split are joined: what another split holds must change nothing.

    Args:
        images: N rows with ``image_id``, ``split``, and where groups are given ``group``.
        pairs: int K x 2 each, rows that belong together.

    Raises:
        OpamError: a given group lies in two splits.
    """
    split = images["split"].fillna("").to_numpy(object)
    given = pairs_of(images["group"] if "group" in images else images["image_id"])
    torn = given[split[given[:, 0]] != split[given[:, 1]]]
    if len(torn):
        names = sorted({str(name) for name in images["group"].iloc[torn[:, 0]]})
        shown = ", ".join(f"'{name}'" for name in names[:5])
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise OpamError(
            f"dataset: photographs of one group lie in two splits (group {shown}{more}); give "
            "each group one split, or give no splits"
        )
    own = [each[split[each[:, 0]] == split[each[:, 1]]] for each in (given, *pairs)]
    group = joined(len(images), own)
    return images.groupby(group)["image_id"].transform("min").rename("group")
