"""Artifacts: what each table holds, and reading and writing that never leaves half a file."""

import glob
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from opam.pipeline.errors import OpamError, cause
from opam.pipeline.ranks import rank

BOX = ["x0", "y0", "x1", "y1"]
GT_BOX = ["gt_x0", "gt_y0", "gt_x1", "gt_y1"]

ROWS_A_GROUP = 65_536
MAPS_A_GROUP = 256
"""Rows of a parquet row group; fewer where a row holds a map or a list of probabilities."""

_ID = {"image_id": pa.string()}
_BOX = {name: pa.int32() for name in BOX}

SCHEMAS: dict[str, pa.Schema] = {
    name: pa.schema(columns)
    for name, columns in {
        "manifest": {
            **_ID,
            "path": pa.string(),
            "sha256": pa.string(),
            "label": pa.int32(),
            "class_name": pa.string(),
            "split": pa.string(),
            "group": pa.string(),
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
        "coarse_labels": {**_ID, "level": pa.int32(), "label": pa.string()},
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
        "object_crops": {**_ID, **_BOX},
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
            "activation": pa.float32(),
        },
        "scores": {
            **_ID,
            "split": pa.string(),
            "label": pa.int32(),
            "probabilities": pa.list_(pa.float32()),
        },
        "regions": {**_ID, "rank": pa.int32(), **_BOX},
        "cluster_scores": {
            **_ID,
            "split": pa.string(),
            "label": pa.int32(),
            "cluster": pa.int32(),
            "probabilities": pa.list_(pa.float32()),
        },
        "probe_scores": {
            **_ID,
            "split": pa.string(),
            "label": pa.int32(),
            "name": pa.string(),
            "probabilities": pa.list_(pa.float32()),
        },
        "known": {
            **_ID,
            "label": pa.int32(),
            "features": pa.list_(pa.float16()),
            "picture": pa.binary(),
        },
        "view_features": {**_ID, "features": pa.list_(pa.float32())},
        "out_of_fold": {
            **_ID,
            "head": pa.int32(),
            "probabilities": pa.list_(pa.float32()),
        },
        "crop_scores": {**_ID, "probabilities": pa.list_(pa.float32())},
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

    Of processes that train together (`opam.pipeline.distributed`) only the first one's is kept.

    Raises:
        OpamError: the disk is full or the folder cannot be written; an old ``path`` stays.
    """
    if rank() > 0:
        with tempfile.TemporaryDirectory() as elsewhere:
            yield Path(elsewhere) / Path(path).name
        return
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            left.unlink(missing_ok=True)  # by a run that was killed
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
    except (ValueError, RecursionError) as error:
        raise OpamError(
            f"{path}: not valid JSON ({cause(error)}); remove it and run `dvc repro`"
        ) from None


def map_rows(image_ids: np.ndarray, maps: Iterable[np.ndarray], name: str) -> pd.DataFrame:
    """Rows of a table of maps: ``image_id, rows, columns``, and the cells of each under ``name``.

    Args:
        image_ids: N of str.
        maps: N of float h x w.
        name: of the column.
    """
    every = list(maps)
    sizes = np.array([each.shape for each in every])
    rows, columns = sizes[:, 0], sizes[:, 1]
    cells = {name: [each.ravel() for each in every]}
    return pd.DataFrame({"image_id": image_ids, "rows": rows, "columns": columns, **cells})


def write_table(path: Path, schema: str, table: pd.DataFrame) -> None:
    """Write ``table`` as parquet in the columns, types and order of ``SCHEMAS[schema]``.

    The row index is dropped; rows are written in the order given.
    """
    write_table_in_pieces(path, schema, [table])


def write_table_in_pieces(path: Path, schema: str, pieces: Iterable[pd.DataFrame]) -> None:
    """Write a table that need not fit in memory: ``pieces`` are written as they come.

    How the rows are cut into pieces changes no byte of the file.
    """
    columns = SCHEMAS[schema]
    size = _rows_a_group(schema)
    with atomic(path) as temporary, pq.ParquetWriter(temporary, columns, compression="zstd") as to:
        waiting = columns.empty_table()
        for piece in pieces:
            rows = pa.Table.from_pandas(piece[columns.names], columns, preserve_index=False)
            waiting = pa.concat_tables([waiting, rows.replace_schema_metadata(None)])
            while len(waiting) >= size:
                to.write_table(waiting.slice(0, size).combine_chunks())
                waiting = waiting.slice(size)
        if len(waiting):
            to.write_table(waiting.combine_chunks())


def _rows_a_group(schema: str) -> int:
    lists = any(pa.types.is_list(column.type) for column in SCHEMAS[schema])
    return MAPS_A_GROUP if lists else ROWS_A_GROUP


def read_table(path: Path, schema: str) -> pd.DataFrame:
    """Read a parquet artifact and check it against ``SCHEMAS[schema]``.

    Raises:
        OpamError: missing, not parquet, or with other columns or types.
    """
    with _open_table(path, schema) as file:
        table = file.read()
        table.validate(full=True)  # or damaged text is found where it is used
        return table.to_pandas()


def read_batches(path: Path, schema: str, first_id: str = "") -> Iterator[pd.DataFrame]:
    """Yield a table in parts of some ten thousand rows, from those of a photograph on.

    Args:
        path: of the table; its rows are sorted by ``image_id``.
        schema: of it.
        first_id: the photograph; the row groups before it are not read.

    Raises:
        OpamError: as `read_table`.
    """
    with _open_table(path, schema) as file:
        rest = []
        for group in range(file.metadata.num_row_groups):
            image_ids = file.metadata.row_group(group).column(0).statistics
            last_id = image_ids.max if image_ids else None
            if not last_id or last_id >= first_id:  # not recorded, or damaged: looked through
                rest.append(group)
        for batch in file.iter_batches(_rows_a_group(schema), row_groups=rest):
            batch.validate(full=True)
            table = batch.to_pandas()
            if first_id:
                table = table[table["image_id"] >= first_id].reset_index(drop=True)
            yield table


def read_table_in_pieces(path: Path, schema: str, first_id: str = "") -> Iterator[Any]:
    """Yield the rows of a table as named tuples, no more than a row group in memory.

    Args:
        path: of the table.
        schema: of it.
        first_id: photograph to begin with.

    Raises:
        OpamError: as `read_table`.
    """
    for batch in read_batches(path, schema, first_id):
        yield from batch.itertuples(index=False)


def read_photographs(
    path: Path, schema: str, first_id: str = ""
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each photograph's ``image_id`` and rows, in the order of the table.

    Args:
        path: of the table.
        schema: of it.
        first_id: photograph to begin with.

    Raises:
        OpamError: as `read_table`.
    """
    waiting = None
    for batch in read_batches(path, schema, first_id):
        waiting = batch if waiting is None else pd.concat([waiting, batch], ignore_index=True)
        changes = np.flatnonzero(waiting["image_id"].to_numpy()[1:] != waiting["image_id"][:-1])
        starts = [0, *(changes + 1)]
        for start, end in pairwise(starts):
            rows = waiting.iloc[start:end]
            yield str(rows["image_id"].iloc[0]), rows
        waiting = waiting.iloc[starts[-1] :].reset_index(drop=True)
    if waiting is not None and len(waiting):
        yield str(waiting["image_id"].iloc[0]), waiting


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
    except (OSError, ValueError, pa.ArrowException) as error:
        raise OpamError(
            f"{path}: cannot be read ({cause(error)}); remove it and run `dvc repro`"
        ) from None
