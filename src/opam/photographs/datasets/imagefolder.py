"""Photographs in class folders: ROOT/train/CLASS and ROOT/test/CLASS, or ROOT/CLASS.

Class folders may lie in folders of their parents: ROOT/PARENT/CLASS.
"""

import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pandas as pd

from opam.photographs.datasets.dataset import UNEXPECTED, Dataset, dataset, skipped_files
from opam.photographs.datasets.layout import (
    Tree,
    all_files,
    crossed_splits,
    files,
    folders,
    holds_val,
    is_plain,
    name_splits,
    read_tree,
    split_of,
    unwrap,
)
from opam.photographs.datasets.source import take_over
from opam.photographs.decoding.archive import inside, nfc
from opam.pipeline.errors import OpamError

EXPECTED = "expected are CLASS/ folders of photographs, or train/CLASS/ and test/CLASS/"
TABLES = {".csv", ".tsv", ".parquet"}

Row = tuple[str, str, str | None]
"""``image_id, class_name, parent`` of a file; no parent where class folders lie in none."""


def fetch(raw: Path, source: Path | None) -> Path:
    """The folder of class folders: itself, or an archive unpacked under ``raw``.

    Raises:
        OpamError: no source, or a table.
    """
    if source is None:
        raise OpamError("dataset.path: give the folder that holds the class folders")
    if source.is_file() and source.suffix.lower() in TABLES:
        raise OpamError(f"{source}: is a table; set dataset.name: table")
    return take_over(source, raw)


def read(raw: zipfile.Path) -> Dataset:
    """List the files of the class folders, whatever their endings.

    Splits are told by the words in the folders' names (`datasets.layout`); single folders
    around the classes or the splits do not count. Where the folders hold only folders, they are
    the parents of the classes in them. Nothing is guessed: what could be meant otherwise is
    refused.

    Args:
        raw: the folder.

    Raises:
        OpamError: no class folder; one without files, or with folders beside them; folders that
            hold only folders beside class folders, or one folder each; a class in two of them;
            folders named as splits among class folders; train or test missing, or there twice.
    """
    whole, _ = read_tree(raw)
    every = all_files(whole, PurePosixPath())
    flat = next((name for name in every if "\\" in str(name)), None)
    if flat:
        raise OpamError(
            f"{raw}: holds files with backslashes in their names ('{flat}'), unpacked by a tool "
            "that took these for no folders; give the archive itself, or unpack it anew"
        )
    top, at = unwrap(whole, PurePosixPath())
    looked_through = inside(raw, at)
    if _by_split(top, looked_through):
        rows, layout = _split_rows(top, looked_through)
        layout = f"splits: {layout}"
    else:
        rows = [(*row, None) for row in _class_rows(top, PurePosixPath(), looked_through)]
        found = len({class_name for _, class_name, *_ in rows})
        layout = f"class folders without splits: {found} in {looked_through}"
    images = pd.DataFrame(rows, columns=["image_id", "class_name", "parent", "split"])
    nested = images.dropna(subset="parent")
    if len(nested):
        _check_parents(nested, looked_through)
        layout += f"; in the folders of {nested['parent'].nunique()} parents"
    images["path"] = [f"{looked_through}{image_id}" for image_id in images["image_id"]]
    listed = {at / image_id for image_id in images["image_id"]}
    beside = [str(name) for name in every if name not in listed]
    data = dataset(
        images.drop(columns="parent"),
        coarse_labels=nested.rename(columns={"parent": "label"}).assign(level=1),
        skipped=skipped_files(beside, UNEXPECTED),
    )
    return replace(data, layout=layout, listed=False)


def _check_parents(nested: pd.DataFrame, folder: zipfile.Path) -> None:
    """Folders in folders are refused where they are hardly classes in their parents.

    Args:
        nested: ``class_name, parent`` of every file below a parent.
        folder: where they lie.

    Raises:
        OpamError: a class lies in two parents (a year, say), or each parent holds one class.
    """
    for name, own in nested.groupby("class_name")["parent"]:
        first, *others = own.unique()
        if others:
            raise OpamError(
                f"{folder}: '{name}' lies in '{first}' and in '{others[0]}', and a class has one "
                "parent; give each a name of its own, or put all photographs of a class into one "
                "CLASS/ folder"
            )
    if (nested.groupby("parent")["class_name"].nunique() == 1).all():
        parent, name = nested[["parent", "class_name"]].iloc[0]
        raise OpamError(_only_folders(folder / parent, [name]))


def _by_split(top: Tree, folder: zipfile.Path) -> bool:
    """Whether the folders at the top are splits; what may be both is refused."""
    there = folders(top)
    if not there:
        raise OpamError(f"{folder}: holds no class folders; put photographs into CLASS/ folders")
    words = [name for name in there if split_of(name)]
    deep = [name for name in words if folders(there[name])]
    if len(words) < len(there):
        return False
    if not deep and len(words) > 2 and crossed_splits(words):
        raise OpamError(
            f"{folder}: the folders {_some(words)} are named as splits and classes at once; "
            f"{EXPECTED}"
        )
    if not deep and not name_splits(words) and not any(map(is_plain, words)):
        return False
    flat = next((name for name in words if name not in deep), None)
    if flat:
        raise OpamError(
            f"{folder / flat}: is named as the {split_of(flat)} split, but holds no class "
            f"folders; {EXPECTED}"
        )
    return True


def _split_rows(top: Tree, folder: zipfile.Path) -> tuple[list[tuple[*Row, str | None]], str]:
    """`Row` and split of every file in train, val and test; and which they are."""
    name_of: dict[str, str] = {}
    for name in folders(top):
        split = str(split_of(name))
        if split in name_of:
            raise OpamError(
                f"{folder}: '{name_of[split]}' and '{name}' are both named as the {split} split; "
                "keep one"
            )
        name_of[split] = name
    found = ", ".join(f"{name}/" for name in name_of.values())
    if "train" not in name_of:
        raise OpamError(f"{folder}: has {found} but no train/; add it, or put classes at the top")
    if "test" not in name_of and "val" in name_of:
        raise OpamError(
            f"{folder}: has {found} but no test/; add it, or rename {name_of['val']}/ to test/: "
            "val is then drawn from train"
        )
    if "test" not in name_of:
        raise OpamError(f"{folder}: has {found} but no test/; add it, or put classes at the top")
    if "val" in name_of and holds_val(name_of["train"]):
        raise OpamError(
            f"{folder}: has {found}, and the name of {name_of['train']}/ says that it holds val "
            "too; remove one"
        )
    rows: list[tuple[*Row, str | None]] = []
    read_as = []
    for split in ("train", "val", "test"):
        if split in name_of:
            name = name_of[split]
            tree, at = unwrap(folders(top)[name], PurePosixPath(name), in_split=True)
            rows += [(*row, split) for row in _class_rows(tree, at, folder)]
            read_as.append(f"{split} from {inside(folder, at)}")
    return rows, ", ".join(read_as)


def _class_rows(tree: Tree, at: PurePosixPath, folder: zipfile.Path) -> list[Row]:
    """Of every file in class folders, by class, then name; parents in order where there are any."""
    tops = _class_folders(tree, inside(folder, at))
    deeper = [name for below in tops.values() for name in folders(below)]
    if not deeper or any(map(files, tops.values())) or any(map(is_plain, deeper)):
        return [(*row, None) for row in _files_of_classes(tops, at, folder)]
    rows: list[Row] = []
    for parent, below in tops.items():
        classes = _class_folders(below, inside(folder, at / parent))
        found = _files_of_classes(classes, at / parent, folder)
        rows += [(*row, nfc(parent)) for row in found]
    return rows


def _class_folders(tree: Tree, where: zipfile.Path) -> dict[str, Tree]:
    """The folders in one that classes are expected in, none of them a split."""
    classes = folders(tree)
    if not classes:
        raise OpamError(f"{where}: holds no class folders; put photographs into CLASS/ folders")
    plain = [name for name in classes if is_plain(name)]
    if plain:
        others = [name for name in classes if name not in plain]
        beside = f"beside the folders {_some(others)}" if others else "where classes are expected"
        raise OpamError(
            f"{where / plain[0]}: is named as the {split_of(plain[0])} split, {beside}; {EXPECTED}"
            ": move it, or give a class another name"
        )
    return classes


def _files_of_classes(
    classes: dict[str, Tree], at: PurePosixPath, folder: zipfile.Path
) -> list[tuple[str, str]]:
    """``image_id, class_name`` of every file in class folders that hold nothing but files."""
    where = inside(folder, at)
    for name, tree_of_class in classes.items():
        deeper, own = list(folders(tree_of_class)), files(tree_of_class)
        if deeper and not own:
            raise OpamError(_only_folders(where / name, deeper))
        if deeper:
            raise OpamError(
                f"{where / name}: a class folder that holds {len(own)} files and folders beside "
                f"them ({_some(deeper)}); only the files would be read: move what is in the "
                f"folders into {name}/, or remove them"
            )
        if not own:
            raise OpamError(f"{where / name}: holds no photographs; add some or remove the folder")
    return [
        (str(at / name / file), nfc(name))
        for name, tree_of_class in classes.items()
        for file in files(tree_of_class)
    ]


def _only_folders(where: zipfile.Path, names: list[str]) -> str:
    return (
        f"{where}: a class folder that holds only folders ({_some(names)}); {EXPECTED}, or all of "
        f"them as PARENT/CLASS/ with several in a parent: move what is in them, or remove "
        f"{where.name}/"
    )


def _some(names: list[str]) -> str:
    """The first three names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name}/" for name in names[:3]) + more
