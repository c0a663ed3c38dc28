"""Artifacts: what each table holds, and reading and writing that never leaves half a file."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from opam.errors import OpamError

BOX = ["x0", "y0", "x1", "y1"]
GT_BOX = ["gt_x0", "gt_y0", "gt_x1", "gt_y1"]

PIECES_A_ROW_GROUP = 256

_ID = {"image_id": pa.string()}
_BOX = {name: pa.int32() for name in BOX}

SCHEMAS: dict[str, pa.Schema] = {
    name: pa.schema(columns)
    for name, columns in {
        "manifest": {
            **_ID,
            "path": pa.string(),
            "label": pa.int32(),
            "class_name": pa.string(),
            "split": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            **{name: pa.int32() for name in GT_BOX},
        },
        "keypoints": {
            **_ID,
            "part": pa.string(),
            "x": pa.float32(),
            "y": pa.float32(),
            "visible": pa.bool_(),
        },
        "proposals": {**_ID, "rank": pa.int32(), **_BOX},
        "patch_scores": {**_ID, "rank": pa.int32(), **_BOX, "confidence": pa.float32()},
        "kept_patches": {**_ID, "rank": pa.int32(), **_BOX, "confidence": pa.float32()},
        "saliency": {
            **_ID,
            "predicted_label": pa.int32(),
            "rows": pa.int32(),
            "columns": pa.int32(),
            "cam": pa.list_(pa.float32()),
        },
        "object_maps": {
            **_ID,
            "rows": pa.int32(),
            "columns": pa.int32(),
            "map": pa.list_(pa.float32()),
        },
        "objects": {
            **_ID,
            **_BOX,
            "predicted_label": pa.int32(),
            "fallback": pa.string(),
        },
        "parts": {
            **_ID,
            "part": pa.int32(),
            **_BOX,
            "score": pa.float32(),
            "fallback": pa.string(),
        },
        "aligned_parts": {
            **_ID,
            "part": pa.int32(),
            **_BOX,
            "score": pa.float32(),
            "fallback": pa.string(),
            "cluster": pa.int32(),
        },
        "scores": {
            **_ID,
            "split": pa.string(),
            "label": pa.int32(),
            "probabilities": pa.list_(pa.float32()),
        },
        "predictions": {
            **_ID,
            "split": pa.string(),
            "label": pa.int32(),
            "original": pa.int32(),
            "object": pa.int32(),
            "part": pa.int32(),
            "fused": pa.int32(),
            "confidence": pa.float32(),
            "probabilities": pa.list_(pa.float32()),
        },
    }.items()
}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``; on success it takes its place, else it is removed.

    Raises:
        OpamError: the disk is full or the folder cannot be written; an old ``path`` stays.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        os.close(handle)
        temporary.chmod(0o644)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OpamError(
            f"{path}: cannot be written ({error.strerror or error}); free space or correct "
            "the permissions, then run again"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, keys in the order given."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write ``table`` as CSV without its index: what `dvc plots` draws."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False)


def read_json(path: Path) -> Any:
    """Read a JSON artifact.

    Raises:
        OpamError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OpamError(f"{path}: not found; run `dvc repro` to make it") from None
    except ValueError as error:
        raise OpamError(
            f"{path}: not valid JSON ({error}); remove it and run `dvc repro`"
        ) from None


def write_table(path: Path, schema: str, table: pd.DataFrame) -> None:
    """Write ``table`` as parquet in the columns, types and order of ``SCHEMAS[schema]``.

    The row index is dropped; rows are written in the order given.
    """
    write_table_in_pieces(path, schema, [table])


def write_table_in_pieces(path: Path, schema: str, pieces: Iterable[pd.DataFrame]) -> None:
    """Write a table that need not fit in memory: ``pieces`` are written as they come."""
    columns = SCHEMAS[schema]
    with atomic(path) as temporary, pq.ParquetWriter(temporary, columns, compression="zstd") as to:
        waiting: list[pa.Table] = []
        for piece in pieces:
            rows = pa.Table.from_pandas(piece[columns.names], columns, preserve_index=False)
            waiting.append(rows.replace_schema_metadata(None))
            if len(waiting) == PIECES_A_ROW_GROUP:
                to.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            to.write_table(pa.concat_tables(waiting))


def read_table(path: Path, schema: str) -> pd.DataFrame:
    """Read a parquet artifact and check it against ``SCHEMAS[schema]``.

    Raises:
        OpamError: missing, not parquet, or with other columns or types.
    """
    with _open_table(path, schema) as file:
        return file.read().to_pandas()


def read_table_in_pieces(path: Path, schema: str) -> Iterator[Any]:
    """Yield the rows of a table as named tuples, no more than a row group in memory.

    Raises:
        OpamError: as `read_table`.
    """
    with _open_table(path, schema) as file:
        for batch in file.iter_batches(PIECES_A_ROW_GROUP):
            yield from batch.to_pandas().itertuples(index=False)


@contextmanager
def _open_table(path: Path, schema: str) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMAS[schema]):
                raise OpamError(
                    f"{path}: columns are not those of a {schema} table; remove it and run "
                    "`dvc repro`"
                )
            yield file
    except FileNotFoundError:
        raise OpamError(f"{path}: not found; run `dvc repro` to make it") from None
    except (OSError, pa.ArrowException) as error:
        raise OpamError(
            f"{path}: cannot be read ({error}); remove it and run `dvc repro`"
        ) from None
