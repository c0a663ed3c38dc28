"""Photographs that are there more than once: the same pixels, or nearly.

Near copies are resized, compressed again, a little brighter or of another contrast, or mirrored. A
perceptual hash finds candidates, small pictures confirm them: featureless photographs and products
on white have like hashes and are no copies. What is cropped or turned by more than a per cent is
none; of one class, `bursts` may find it.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from opam.photographs.groups import joined
from opam.pipeline.errors import OpamError

BITS = 10
"""Of the 64 of two hashes that may differ, at most: copies differ in 8, rarely more."""
APART = 7.0
"""Root mean square of what two small pictures differ by, in 0..255, at most: copies differ by 4 or
5, the likest photographs of other moments by 8 and more."""
APART_SOMEWHERE = 30.0
"""The same in any one pixel: a defect, or another label, may be small."""
APART_SHARE = 0.25
"""The same over the picture's standard deviation, at most: in mist all differ by little."""
PLAIN = 6.0
"""A picture of less standard deviation has no near copies, for all plain ones are alike."""
ROWS, PAIRS = 512, 4096
"""Hashes and pairs of small pictures that are compared at a time; changes nothing."""

COLUMNS = ["group", "image_id", "path", "class_name", "split", "kind", "conflict", "action"]


def copies(looks: pd.DataFrame, split: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Which photographs show the same.

    Args:
        looks: N rows of `descriptors.Descriptor`.
        split: of each. Like pixels are paired with the first of their split, and that with the
            first of all, so that those of one split are joined whatever other splits hold.

    Returns:
        int64 K x 2, pairs of rows that are copies. And int64 N, equal for like pixels.
    """
    exact = pd.factorize(looks["pixels"])[0].astype(np.int64)
    code = exact * (split.nunique() + 1) + pd.factorize(split)[0]
    of_all, of_split = _first(exact), _first(code)
    pairs = [
        np.column_stack([of_split, np.arange(len(looks))]),
        np.column_stack([of_all, of_split]),
    ]
    small = np.stack(looks["small"].to_list())
    plain = np.array([(each - each.mean((0, 1))).std() < PLAIN for each in small])
    once = np.flatnonzero((of_split == np.arange(len(looks))) & ~plain)
    hashes, mirrored = (looks[name].to_numpy(np.uint64)[once] for name in ("hash", "mirrored_hash"))
    rough = _rough(small[once])
    for candidates in _candidates(hashes, mirrored):
        found = once[candidates[_roughly_alike(rough, candidates)]]
        pairs.append(found[_alike(small[found[:, 0]], small[found[:, 1]])])
    every = np.unique(np.vstack(pairs), axis=0)
    return every[every[:, 0] != every[:, 1]], exact


def _first(code: np.ndarray) -> np.ndarray:
    """The first row with the code of each row; codes are int N."""
    _, first, number = np.unique(code, return_index=True, return_inverse=True)
    return first[number]


def _candidates(hashes: np.ndarray, mirrored: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of positions i < j whose hashes are alike, int64 K x 2, at most `PAIRS` at a time."""
    for start in range(0, len(hashes), ROWS):
        own = hashes[start : start + ROWS, None]
        alike = np.bitwise_count(own ^ hashes[start:]) <= BITS
        alike |= np.bitwise_count(own ^ mirrored[start:]) <= BITS
        pairs = np.argwhere(np.triu(alike, 1)) + start
        for begin in range(0, len(pairs), PAIRS):
            yield pairs[begin : begin + PAIRS]


def _rough(small: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of small pictures, means of 4 x 4 pixels less the picture's, float32 N x D; and mirrored."""
    count, side = len(small), small.shape[1] // 4
    means = small.reshape(count, side, 4, side, 4, 3).mean((2, 4), dtype=np.float32)
    means -= means.mean((1, 2), keepdims=True)
    size = (count, side * side * 3)
    return means.reshape(size), means[:, :, ::-1].reshape(size)


def _roughly_alike(rough: tuple[np.ndarray, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Bool K, no less often than `_alike`: means of pixels differ by less than pixels do."""
    one = rough[0][pairs[:, 0]]
    alike = np.zeros(len(pairs), dtype=bool)
    for each in rough:
        other = each[pairs[:, 1]]
        along = np.square((one * other).sum(1)) / np.square(one).sum(1).clip(1e-6)
        alike |= np.square(other).sum(1) - along <= one.shape[1] * (1.01 * APART) ** 2
    return alike


def _alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Bool K, whether small pictures show the same, light and contrast and mirror aside.

    Args:
        one: uint8 K x `SMALL` x `SMALL` x 3.
        other: as many.
    """
    return _fits(one, other) | _fits(one, other[:, :, ::-1])


def _fits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = (
        each - each.mean((1, 2), keepdims=True, dtype=np.float32) for each in (one, other)
    )
    spread = np.minimum(*(each.std((1, 2, 3)) for each in (one, other)))
    gain = (one * other).sum((1, 2, 3)) / (one * one).sum((1, 2, 3))
    apart = np.abs(other - gain[:, None, None, None] * one)
    size = np.sqrt((apart**2).mean((1, 2, 3)))
    somewhere = apart.mean(3).max((1, 2))
    return (
        (size <= APART)
        & (somewhere <= APART_SOMEWHERE)
        & (size <= APART_SHARE * spread)
        & (np.abs(np.log(np.maximum(gain, 1e-6))) <= np.log(2))
    )


def duplicate_table(images: pd.DataFrame, pairs: np.ndarray, exact: np.ndarray) -> pd.DataFrame:
    """The photographs that have copies, group by group.

    Args:
        images: N rows with ``image_id, path, class_name, split`` (missing: to be drawn).
        pairs: as `copies` finds them in the same rows.
        exact: the same.

    Returns:
        `COLUMNS`, in the order of ``image_id``'s first of each group, on the index of ``images``:
        ``group`` 1..; ``kind`` of a group: identical (the same pixels), or near; ``conflict``: what
        is wrong with it beside that (two labels, two splits), may be empty; ``action`` is empty.
    """
    group = joined(len(images), [pairs])
    table = images[["image_id", "path", "class_name", "split"]].assign(group=group, exact=exact)
    table = table[table["group"].duplicated(keep=False)].sort_values("image_id")
    numbers = {each: number for number, each in enumerate(table["group"].unique(), start=1)}
    table["group"] = table["group"].map(numbers)
    table = table.assign(kind="", conflict="", action="").astype({"kind": object})
    for _, members in table.groupby("group"):
        kind = "identical" if members["exact"].nunique() == 1 else "near"
        table.loc[members.index, "kind"] = kind
        table.loc[members.index, "conflict"] = _conflict(members)
    return table.sort_values(["group", "image_id"])[COLUMNS]


def _conflict(members: pd.DataFrame) -> str:
    wrong = []
    labels = members["class_name"].nunique()
    if labels > 1:
        wrong.append(f"{labels} labels")
    splits = [split for split in ("train", "val", "test") if (members["split"] == split).any()]
    if len(splits) > 1:
        wrong.append("in " + " and ".join(splits))
    return ", ".join(wrong)


def resolve(duplicates: pd.DataFrame, policy: str) -> pd.DataFrame:
    """``duplicates`` with what is done to each: ``action`` is "dropped" or "kept".

    Args:
        duplicates: as `duplicate_table` gives them.
        policy: report: all are kept. drop: of a group under one label one photograph stays, of
            test where it has one; of a group under two labels none does. stop: there may be none.

    Raises:
        OpamError: the policy is stop and there are some; it lists them all.
    """
    if policy == "stop" and len(duplicates):
        listed = "".join(
            f"\n  {', '.join(members['image_id'])}: {_what(members)}"
            for _, members in duplicates.groupby("group")
        )
        raise OpamError(
            f"{len(duplicates)} photographs are copies of each other; remove them or set "
            f"prepare.duplicates: drop{listed}"
        )
    found = duplicates.assign(action="kept")
    if policy == "drop":
        rank = found["split"].map({"test": 0, "val": 1}).fillna(2)
        first = found.assign(rank=rank).sort_values(["group", "rank", "image_id"])
        stays = ~first["group"].duplicated() & (
            first.groupby("group")["class_name"].transform("nunique") == 1
        )
        found.loc[stays.index[~stays], "action"] = "dropped"
    return found


def _what(members: pd.DataFrame) -> str:
    kind, conflict = members[["kind", "conflict"]].iloc[0]
    return f"{kind}, {conflict}" if conflict else kind


def told(duplicates: pd.DataFrame) -> list[str]:
    """A line for each kind of conflict: how many groups, how many photographs, what was done."""
    lines = []
    for (kind, conflict), members in duplicates.groupby(["kind", "conflict"]):
        dropped = (members["action"] == "dropped").sum()
        groups = members["group"].nunique()
        lines.append(
            f"copies: {len(members)} {kind} photographs in {groups} group{'s' * (groups > 1)}"
            f"{f' ({conflict})' if conflict else ''}, "
            f"{f'{dropped} dropped' if dropped else 'all kept'}; see data/duplicates.csv"
        )
    return lines
