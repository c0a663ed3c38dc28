"""Folds and held-out shares that are stratified, and never divide a group of photographs."""

import numpy as np

from opam.pipeline.errors import OpamError


def fold_of(
    labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """A stratified fold 0..folds-1 for each row: classes are dealt out in turn, shuffled.

    A class of two groups or more is in two folds or more, as far as groups that several classes
    share allow.

    Args:
        labels: int N.
        folds: number of folds.
        seed: of the shuffling.
        groups: N, of any type; rows of one group get one fold. None: each row is its own.

    Returns:
        int64 N.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    dealt = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    if groups is None or len(np.unique(groups)) == len(labels):
        fold[dealt] = np.arange(len(labels)) % folds
        return fold
    label, group = _numbers(labels), _numbers(groups)
    rows_of = _rows_of(group[dealt], dealt)
    # Large groups of a class first: small ones even out what they leave.
    first = {each: position for position, each in enumerate(dict.fromkeys(group[dealt].tolist()))}
    queue = sorted(first, key=lambda g: (label[rows_of[g][0]], -len(rows_of[g]), first[g]))
    held = np.zeros((folds, label.max() + 1), dtype=np.int64)
    for each in queue:
        rows = rows_of[each]
        own = np.bincount(label[rows], minlength=held.shape[1])
        mine = held[:, own > 0]
        alone = ((mine > 0) & (mine == mine.sum(0))).sum(1)
        chosen = np.lexsort((held.sum(1), held @ own, alone))[0]
        held[chosen] += own
        fold[rows] = chosen
    return fold


def validation_mask(
    labels: np.ndarray,
    share: float,
    seed: int,
    groups: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Bool N, a stratified share of the images, of whole groups.

    Every class with two groups or more gives at least one and keeps at least one, as far as
    groups that several classes share allow.

    Args:
        labels: N, of any type that sorts.
        share: of each class, 0..1.
        seed: of the choice.
        groups: N, of any type; None: each image is its own.
        order: N, of any type that sorts: in this order the images of a class are taken, whatever
            other classes there are; None: it is drawn.
    """
    rng = np.random.default_rng(seed)
    mask = np.zeros(len(labels), dtype=bool)
    group = np.arange(len(labels)) if groups is None else _numbers(groups)
    label = _numbers(labels)
    rows_of = _rows_of(group, np.arange(len(labels)))
    classes_of = [np.unique(label[rows]) for rows in rows_of]
    left = np.bincount(np.concatenate(classes_of))  # groups of each class that are not taken

    def take(each: int) -> None:
        """Take a group, unless a class has no other left."""
        if not mask[rows_of[each][0]] and (left[classes_of[each]] > 1).all():
            mask[rows_of[each]] = True
            left[classes_of[each]] -= 1

    for own in range(len(left)):
        members = np.flatnonzero(label == own)
        if order is None:
            members = rng.permutation(members)
        else:
            members = members[np.argsort(order[members], kind="stable")]
        wanted = min(max(1, round(share * len(members))), len(members) - 1)
        mine, sizes = np.unique(group[members], return_counts=True)
        size_of = dict(zip(mine.tolist(), sizes.tolist(), strict=True))
        for each in dict.fromkeys(group[members].tolist()):
            if size_of[each] < 2 * (wanted - mask[members].sum()):
                take(each)
        for each in sorted(size_of, key=size_of.__getitem__):
            if not mask[members].any():  # all are larger than what is wanted
                take(each)
    return mask


def _numbers(values: np.ndarray) -> np.ndarray:
    """0.. for each different value, in their order."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def _rows_of(group: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Of each group 0.., its ``rows`` in their order."""
    order = np.argsort(group, kind="stable")
    return np.split(rows[order], np.cumsum(np.bincount(group))[:-1])


def usable_folds(folds: int, images: int, groups: int) -> int:
    """How many folds fusion has: as asked for, or one a group where there are fewer.

    Raises:
        OpamError: fewer images than folds, or a single group, of which there are no two folds.
    """
    if images < folds:
        raise OpamError(
            f"fusion.folds: {folds} folds of {images} images; lower it or raise "
            "prepare.val_fraction"
        )
    if groups < 2:
        raise OpamError(
            f"fusion.folds: the {images} images are all of one group (copies, a burst, the "
            "column 'group'), which no two folds may share; add others, or set prepare.bursts: "
            "ignore"
        )
    return min(folds, groups)
