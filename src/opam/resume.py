"""Long work that was killed goes on where it stood: finished shards, kept until all is written.

They lie outside ``data/``, because DVC removes a stage's outputs before it runs the stage.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pandas as pd
from pydantic import BaseModel

from opam.artifacts import read_table, write_table
from opam.errors import OpamError

RESUME = Path(".resume")
SOURCE = Path(__file__).parent


def fingerprint(*inputs: object) -> str:
    """What work must agree with to be gone on with: its inputs and the code.

    Args:
        inputs: a `Path` counts by its content, parameters by their values, all else by ``repr``.
    """
    digest = hashlib.sha256()
    for each in [*inputs, *sorted(SOURCE.rglob("*.py"))]:
        if isinstance(each, Path):
            with each.open("rb") as file:
                value = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            value = each.model_dump_json() if isinstance(each, BaseModel) else repr(each)
        digest.update(f"{value}\n".encode())
    return digest.hexdigest()[:32]


def in_shards(
    name: str,
    key: str,
    schema: str,
    size: int,
    pieces_from: Callable[[int], Iterable[pd.DataFrame]],
) -> Iterator[pd.DataFrame]:
    """Yield a table in shards; each is on disk as soon as it is computed, and is not again.

    Args:
        name: of the work.
        key: `fingerprint` of what the rows depend on; shards of another are removed.
        schema: of the table.
        size: pieces a shard. It changes when rows are kept, not what they are.
        pieces_from: computes the pieces from a given one on, in order.
    """
    folder = RESUME / name / key
    for other in (RESUME / name).glob("*"):
        if other != folder:
            shutil.rmtree(other)
    start = 0
    while (shard := _read_shard(folder, start, schema)) is not None:
        rows, start = shard
        yield rows
    if start:
        print(f"{name}: resumed behind piece {start}", file=sys.stderr, flush=True)
    pieces = iter(pieces_from(start))
    while shard_pieces := list(islice(pieces, size)):
        rows = pd.concat(shard_pieces, ignore_index=True)
        stop = start + len(shard_pieces)
        write_table(folder / f"{start}-{stop}.parquet", schema, rows)
        yield rows
        start = stop


def _read_shard(folder: Path, start: int, schema: str) -> tuple[pd.DataFrame, int] | None:
    for path in folder.glob(f"{start}-*.parquet"):
        try:
            return read_table(path, schema), int(path.stem.split("-")[1])
        except OpamError:  # a damaged shard costs time, never the run
            path.unlink()
    return None


def finish(name: str) -> None:
    """Remove what `in_shards` or a training kept, when the result is safely written."""
    shutil.rmtree(RESUME / name, ignore_errors=True)
    (RESUME / f"{name}.pt").unlink(missing_ok=True)
