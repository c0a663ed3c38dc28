"""How people lay out folders: the words for splits, and the folders around what matters."""

import re
import zipfile
from pathlib import PurePosixPath
from typing import TypeAlias

from opam.photographs.decoding.archive import files as archive_files
from opam.photographs.decoding.archive import names
from opam.photographs.decoding.images import ignored

Tree: TypeAlias = "dict[str, Tree | None]"
"""A folder: what its names stand for, a folder or (None) a file."""

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainval", "trainset", "trainingset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "validationset"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "testingset"), "test"),
}
PLAIN_WORDS = {
    *("the", "my", "new", "final", "seg", "set", "sets", "data", "dataset", "split", "folder"),
    *("image", "images", "img", "imgs", "photo", "photos", "photograph", "photographs"),
    *("picture", "pictures", "pics", "crops", "files"),
}
"""Words that say nothing beside a split's: `Training Set` is a split, `train_horn` a class."""


def read_tree(raw: zipfile.Path) -> tuple[Tree, list[PurePosixPath]]:
    """What a folder of an archive holds, and the files in it that are hidden or a program's."""
    tree: Tree = {}
    hidden = []
    there = set(archive_files(raw))
    for name in names(raw):
        is_file = name in there
        at = tree
        for depth, part in enumerate(name.parts, start=1):
            if ignored(PurePosixPath(part)):
                hidden += [name] if is_file else []
                break
            if depth == len(name.parts) and is_file:
                at.setdefault(part, None)
            else:
                below = at.get(part)
                if below is None:  # also where a damaged archive has a file of that name
                    below = at[part] = {}
                at = below
    return tree, hidden


def folders(tree: Tree) -> dict[str, Tree]:
    """The folders directly in a folder, by name."""
    return {name: below for name, below in sorted(tree.items()) if below is not None}


def files(tree: Tree) -> list[str]:
    """The files directly in a folder."""
    return sorted(name for name, below in tree.items() if below is None)


def all_files(tree: Tree, at: PurePosixPath) -> list[PurePosixPath]:
    """Every file below a folder that lies at ``at``."""
    found = [at / name for name in files(tree)]
    for name, below in folders(tree).items():
        found += all_files(below, at / name)
    return found


def unwrap(tree: Tree, at: PurePosixPath, in_split: bool = False) -> tuple[Tree, PurePosixPath]:
    """The first folder that is not just one folder around folders, and its path.

    Args:
        tree: the folder to begin with.
        at: its path.
        in_split: it is a split's. Else a folder named as a split ends the search, unless all
            folders in it are splits.
    """
    inner = folders(tree)
    if len(inner) != 1:
        return tree, at
    name, below = next(iter(inner.items()))
    deeper = folders(below)
    if not deeper or (split_of(name) and not in_split and not all(map(split_of, deeper))):
        return tree, at
    return unwrap(below, at / name, in_split)


def split_of(name: str) -> str | None:
    """The split that a name stands for by one of its words, in any case.

    Returns:
        "train" (train and val together too), "val", "test", or None: no such word, or several.
    """
    found = {SPLIT_WORDS[word] for word in _words(name) if word in SPLIT_WORDS}
    if found == {"train", "val"}:
        return "train"
    return found.pop() if len(found) == 1 else None


def holds_val(name: str) -> bool:
    """Whether the name of a train split says that val is in it."""
    return any(word == "trainval" or SPLIT_WORDS.get(word) == "val" for word in _words(name))


def is_plain(name: str) -> bool:
    """Whether a name says a split and nothing else."""
    return split_of(name) is not None and not _rest(name) - PLAIN_WORDS


def name_splits(class_names: list[str]) -> bool:
    """Whether names look like those of splits and not of classes.

    They all have a word for a split, and say nothing else or the same: `train`, or `birds_train`
    and `birds_test`; not `train_horn` and `train_whistle`.
    """
    if not class_names or not all(map(split_of, class_names)):
        return False
    same = len({frozenset(_rest(name)) for name in class_names}) == 1
    return all(map(is_plain, class_names)) or (same and len(class_names) > 1)


def crossed_splits(class_names: list[str]) -> bool:
    """Whether names are those of splits and classes at once: `train_a`, `train_b`, `test_a`..."""
    splits: dict[frozenset[str], set[str | None]] = {}
    for name in class_names:
        splits.setdefault(frozenset(_rest(name)), set()).add(split_of(name))
    return bool(splits) and all(len(each - {None}) > 1 for each in splits.values())


def _rest(name: str) -> set[str]:
    return {word for word in _words(name) if word not in SPLIT_WORDS}


def _words(name: str) -> list[str]:
    """Runs of letters, in lower case; a capital after a small letter begins one."""
    return re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
