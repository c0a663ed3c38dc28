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
from opam.cluster import shards_on_ray
from opam.device import ExecutionParams
from opam.errors import OpamError
from opam.ranks import rank

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
    total: int,
    pieces_from: Callable[[int], Iterable[pd.DataFrame]],
    execution: ExecutionParams,
    networks: bool = True,
) -> Iterator[pd.DataFrame]:
    """Yield a table in shards; each is on disk as soon as it is computed, and is not again.

    Args:
        name: of the work.
        key: `fingerprint` of what the rows depend on; shards of another are removed.
        schema: of the table.
        total: pieces that the table has.
        pieces_from: computes the pieces from a given one on, in order.
        execution: pieces a shard (it changes when rows are kept, not what they are); whether
            this process computes one shard after the other, or a cluster many at a time.
        networks: whether networks compute the pieces: on a GPU where there is one.

    Raises:
        OpamError: as `opam.cluster.shards_on_ray`.
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
    size = execution.shard_size
    starts = range(start, total, size)
    if execution.engine == "ray":
        cpus, device = (execution.threads, execution.device) if networks else (1, None)
        shards = shards_on_ray(pieces_from, starts, size, cpus, device, name)
    else:
        pieces = iter(pieces_from(start))
        shards = (pd.concat(islice(pieces, size), ignore_index=True) for _ in starts)
    for start, rows in zip(starts, shards, strict=True):
        stop = min(start + size, total)
        write_table(folder / f"{start}-{stop}.parquet", schema, rows)
        yield rows


def _read_shard(folder: Path, start: int, schema: str) -> tuple[pd.DataFrame, int] | None:
    for path in folder.glob(f"{start}-*.parquet"):
        try:
            return read_table(path, schema), int(path.stem.split("-")[1])
        except OpamError:  # a damaged shard costs time, never the run
            path.unlink()
    return None


def finish(name: str) -> None:
    """Remove what `in_shards` or a training kept, when the result is safely written."""
    if rank() > 0:
        return
    shutil.rmtree(RESUME / name, ignore_errors=True)
    (RESUME / f"{name}.pt").unlink(missing_ok=True)
