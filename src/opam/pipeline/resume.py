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

from opam.pipeline.artifacts import read_json, read_table, write_json, write_table
from opam.pipeline.cluster import shards_on_ray
from opam.pipeline.device import ExecutionParams
from opam.pipeline.environment import installed_versions
from opam.pipeline.errors import OpamError
from opam.pipeline.ranks import rank

RESUME = Path(".resume")
PLUMBING = "opam.pipeline"
"""How a stage runs, which changes no byte of what it computes."""
DEPENDS_ON = "depends_on.json"
"""Beside kept shards: the `fingerprint` that they were computed with."""

_begun: set[str] = set()
"""Work that this process has asked for, and may ask for again."""

Fingerprint = dict[str, str]
"""A digest of each thing that a result depends on, by its name."""


def fingerprint(*inputs: Path | BaseModel | Fingerprint, **values: object) -> Fingerprint:
    """What work must agree with to be gone on with.

    That is what it is given, the script that runs, the modules of this package that it has loaded
    and computes with, and the versions of what computes.

    Args:
        inputs: files, which count by their content; parameters, by their values; a fingerprint, by
            all that is in it.
        values: anything else by its name; it counts by its ``repr``.
    """
    found: Fingerprint = {}
    for each in inputs:
        if isinstance(each, Path):
            found[each.as_posix()] = _of_file(each)
        elif isinstance(each, BaseModel):
            found[type(each).__name__] = _of_text(each.model_dump_json())
        else:
            found |= each
    found |= {name: _of_text(repr(value)) for name, value in values.items()}
    return found | _of_code() | {"the version of a package": _of_text(repr(installed_versions()))}


def _of_code() -> Fingerprint:
    """Of the script and of every loaded module of this package that computes."""
    modules = [
        module
        for name, module in sys.modules.items()
        if name == "__main__" or (name.startswith("opam.") and not name.startswith(PLUMBING))
    ]
    files = {getattr(module, "__file__", None) or "" for module in modules} - {""}
    top = Path(__file__).parents[2]
    return {
        (path.relative_to(top) if path.is_relative_to(top) else path).as_posix(): _of_file(path)
        for path in map(Path, sorted(files))
    }


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def changes(before: Fingerprint, now: Fingerprint) -> str:
    """Names of what differs, for people; "" where nothing does."""
    names = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def say_thrown_away(what: str, before: object, now: Fingerprint) -> None:
    """Say on stderr that kept work is not gone on with, and why.

    Args:
        what: was kept.
        before: the fingerprint it has, or whatever a damaged file holds in its place.
        now: the fingerprint it would need.
    """
    if isinstance(before, dict):
        why = f"{changes(before, now)} changed"
    else:
        why = "what it was computed from is not known"
    print(f"{what}: kept work is thrown away, for {why} since", file=sys.stderr, flush=True)


def in_shards(
    name: str,
    inputs: Fingerprint,
    schema: str,
    total: int,
    pieces_from: Callable[[int], Iterable[pd.DataFrame]],
    execution: ExecutionParams,
    networks: bool = True,
) -> Iterator[pd.DataFrame]:
    """Yield a table in shards; each is on disk as soon as it is computed, and is not again.

    Args:
        name: of the work.
        inputs: `fingerprint` of what the rows depend on; shards of another are removed, which is
            said with the reason.
        schema: of the table.
        total: pieces that the table has.
        pieces_from: computes the pieces from a given one on, in order.
        execution: pieces a shard (it changes when rows are kept, not what they are); whether
            this process computes one shard after the other, or a cluster many at a time.
        networks: whether networks compute the pieces: on a GPU where there is one.

    Raises:
        OpamError: as `opam.pipeline.cluster.shards_on_ray`.
    """
    folder = RESUME / name
    before = _depends_on(folder)
    if folder.exists() and before != inputs:
        say_thrown_away(name, before, inputs)
        shutil.rmtree(folder)
    start = 0
    while (shard := _read_shard(folder, start, schema)) is not None:
        rows, start = shard
        yield rows
    if start and (start < total or name not in _begun):
        print(f"{name}: resumed behind piece {start}", file=sys.stderr, flush=True)
    _begun.add(name)
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
        if not folder.exists():
            write_json(folder / DEPENDS_ON, inputs)
        write_table(folder / f"{start}-{stop}.parquet", schema, rows)
        yield rows


def _depends_on(folder: Path) -> object:
    try:
        return read_json(folder / DEPENDS_ON)
    except OpamError:  # not there, or damaged
        return None


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
