"""Labels in a table: a CSV or parquet file beside the photographs, a row a photograph."""

import os
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from opam.photographs.datasets.dataset import Dataset, dataset, unlisted
from opam.photographs.datasets.source import take_over
from opam.photographs.datasets.table_rows import (
    PARQUET,
    TableColumns,
    coarse_labels,
    parse,
    read_rows,
)
from opam.photographs.decoding.archive import files, inside, nfc
from opam.photographs.decoding.images import ignored
from opam.pipeline.artifacts import GT_BOX
from opam.pipeline.errors import OpamError

TABLES = {".csv", ".tsv", *PARQUET}


def fetch(raw: Path, source: Path | None, columns: TableColumns) -> Path:
    """The folder that holds the table and the photographs.

    Args:
        raw: where an archive is unpacked.
        source: the folder, or an archive of it.
        columns: of the table.

    Raises:
        OpamError: no source, or as `read`: what is wrong is told before anything is packed.
    """
    if source is None:
        raise OpamError("dataset.path: give the folder that holds the table and the photographs")
    if source.is_file() and source.suffix.lower() in TABLES:
        raise OpamError(
            f"dataset.path: {source} is a table, and DVC would not see a change of the photographs "
            f"beside it; give the folder, {source.parent}, and where it has other tables, "
            f"dataset.columns.table: {source.name}"
        )
    folder = take_over(source, raw)
    _check(folder / _the_table(folder, _files_below(folder), columns.table), columns)
    return folder


def _check(table: Path, columns: TableColumns) -> None:
    try:
        content = table.read_bytes()
    except OSError as error:
        raise OpamError(f"{table}: cannot be read ({error.strerror}); correct it") from None
    found = {nfc(name): table.parent / name for name in _files_below(table.parent)}
    read_rows(table, parse(table, content), columns, found)


def read(raw: zipfile.Path, columns: TableColumns) -> Dataset:
    """Read the table that ``columns`` name, or the one that lies uppermost.

    Args:
        raw: with the table, and the photographs below its folder.
        columns: of the table.

    Raises:
        OpamError: no such table or several, columns missing, or rows that are wrong, all listed.
    """
    names = [str(name) for name in files(raw) if not ignored(name)]
    at = PurePosixPath(_the_table(raw, names, columns.table))
    table, root = raw / str(at), inside(raw, at.parent)
    found = {nfc(str(name)): f"{root}{name}" for name in files(root)}
    rows, used = read_rows(table, parse(table, table.read_bytes()), columns, found)
    data = dataset(
        rows[["image_id", "path", "class_name", "split", "group"]],
        boxes=rows[["image_id", *GT_BOX]].dropna(),
        coarse_labels=coarse_labels(rows),
        skipped=unlisted([*rows["path"], str(table)], root),
    )
    said = used.model_dump(exclude_none=True).items()
    layout = ", ".join(f"{role} from {column}" for role, column in said)
    return replace(data, layout=f"table {table}: {layout}")


def _the_table(folder: object, files: Iterable[str], name: str | None) -> str:
    """The one table among files that has that name, or lies uppermost."""
    if name is not None:
        found = [file for file in files if file == name or file.endswith(f"/{name}")]
        if len(found) != 1:
            raise OpamError(
                f"{folder}: holds {len(found) or 'no'} files '{name}', which "
                "dataset.columns.table names; correct it"
            )
        return found[0]
    tables = [name for name in files if PurePosixPath(name).suffix.lower() in TABLES]
    depth = min((name.count("/") for name in tables), default=0)
    uppermost = [name for name in tables if name.count("/") == depth]
    if not uppermost:
        raise OpamError(f"{folder}: holds no table ({', '.join(sorted(TABLES))}); add it")
    if len(uppermost) > 1:
        raise OpamError(
            f"{folder}: holds {len(uppermost)} tables ({', '.join(sorted(uppermost)[:3])}); name "
            "the one that counts in dataset.columns.table"
        )
    return uppermost[0]


def _files_below(folder: Path) -> list[str]:
    """Paths of the files below a folder, relative to it, without hidden and programs' files."""
    found = []
    for parent, inner, file_names in os.walk(folder):
        inner[:] = [name for name in inner if not ignored(PurePosixPath(name))]
        at = Path(parent).relative_to(folder)
        found += [(at / name).as_posix() for name in file_names if not ignored(PurePosixPath(name))]
    return sorted(found)
