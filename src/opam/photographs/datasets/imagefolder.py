"""Photographs in class folders: ROOT/train/CLASS and ROOT/test/CLASS, or ROOT/CLASS."""

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
from opam.photographs.decoding.archive import inside
from opam.pipeline.errors import OpamError

EXPECTED = "expected are CLASS/ folders of photographs, or train/CLASS/ and test/CLASS/"
TABLES = {".csv", ".tsv", ".parquet"}


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
    around the classes or the splits do not count. Nothing is guessed: what could be meant
    otherwise is refused.

    Args:
        raw: the folder.

    Raises:
        OpamError: no class folder; one without files, or with folders in it; folders named as
            splits among class folders; train or test missing, or there twice.
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
    names = list(folders(top))
    looked_through = inside(raw, at)
    if _by_split(top, looked_through):
        rows, layout = _split_rows(top, looked_through)
        layout = f"splits: {layout}"
    else:
        rows = [(*row, None) for row in _class_rows(top, PurePosixPath(), looked_through)]
        layout = f"class folders without splits: {len(names)} in {looked_through}"
    images = pd.DataFrame(rows, columns=["image_id", "class_name", "split"])
    images["path"] = [f"{looked_through}{image_id}" for image_id in images["image_id"]]
    listed = {at / image_id for image_id in images["image_id"]}
    beside = [str(name) for name in every if name not in listed]
    data = dataset(images, skipped=skipped_files(beside, UNEXPECTED))
    return replace(data, layout=layout, listed=False)


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


def _split_rows(top: Tree, folder: zipfile.Path) -> tuple[list[tuple[str, str, str | None]], str]:
    """``image_id, class_name, split`` of every file in train, val and test; and which they are."""
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
    rows: list[tuple[str, str, str | None]] = []
    read_as = []
    for split in ("train", "val", "test"):
        if split in name_of:
            name = name_of[split]
            tree, at = unwrap(folders(top)[name], PurePosixPath(name), in_split=True)
            rows += [(*row, split) for row in _class_rows(tree, at, folder)]
            read_as.append(f"{split} from {inside(folder, at)}")
    return rows, ", ".join(read_as)


def _class_rows(tree: Tree, at: PurePosixPath, folder: zipfile.Path) -> list[tuple[str, str]]:
    """``image_id, class_name`` of every file in class folders, by class, then name."""
    classes = folders(tree)
    where = inside(folder, at)
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
    for name, tree_of_class in classes.items():
        deeper, own = list(folders(tree_of_class)), files(tree_of_class)
        if deeper and not own:
            raise OpamError(
                f"{where / name}: a class folder that holds only folders ({_some(deeper)}); "
                f"{EXPECTED}: move what is in them, or remove {name}/"
            )
        if deeper:
            raise OpamError(
                f"{where / name}: a class folder that holds {len(own)} files and folders beside "
                f"them ({_some(deeper)}); only the files would be read: move what is in the "
                f"folders into {name}/, or remove them"
            )
        if not own:
            raise OpamError(f"{where / name}: holds no photographs; add some or remove the folder")
    return [
        (str(at / name / file), name)
        for name, tree_of_class in classes.items()
        for file in files(tree_of_class)
    ]


def _some(names: list[str]) -> str:
    """The first three names, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name}/" for name in names[:3]) + more
