"""The rows of a table of labels: read as text, its columns found, every row checked."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from opam.photographs.datasets.dataset import COARSE_COLUMNS
from opam.photographs.datasets.layout import SPLIT_WORDS
from opam.photographs.decoding.archive import nfc
from opam.pipeline.artifacts import BOX, GT_BOX
from opam.pipeline.errors import OpamError, cause
from opam.pipeline.params import Params

PARQUET = {".parquet", ".pq"}
SYNONYMS = {
    "image": "filename file file_name path image_path file_path filepath image_name image_id img",
    "label": "class class_name label_name category category_name species",
    "split": "subset set partition",
    "group": "group_id",
}
"""Columns that are taken, in any case, where none has the name itself."""

CORNERS = [BOX, ["xmin", "ymin", "xmax", "ymax"]]


class TableColumns(Params):
    """Which columns of a table say what; null: found by name."""

    table: str | None = Field(
        default=None, description="file of the table below dataset.path; null: the only one"
    )
    image: str | None = Field(
        default=None, description="path of the photograph, below the table's folder"
    )
    label: str | None = Field(default=None, description="its class")
    split: str | None = Field(default=None, description="train, val or test")
    group: str | None = Field(default=None, description="photographs that no split may divide")
    box: list[str] | None = Field(
        default=None,
        min_length=4,
        max_length=4,
        description="four columns: left, top, right, bottom of the object, half-open pixels",
    )
    coarse: list[str] | None = Field(
        default=None,
        description="columns of coarser labels, the finest first; null: label_1, label_2, ...",
    )


def parse(table: object, content: bytes) -> pd.DataFrame:
    """A table as text: what stands in it, with no value taken for a number or for missing.

    Args:
        table: its path; the ending tells parquet from CSV (by comma, semicolon or tab; UTF-8).
        content: its bytes.

    Returns:
        A string a cell, stripped, empty where there is none; the index says "line 2" or "row 1".

    Raises:
        OpamError: not such a file; or lines with more or fewer fields than the first: all listed.
    """
    if PurePosixPath(str(table)).suffix.lower() in PARQUET:
        return _parse_parquet(table, content)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OpamError(f"{table}: is not UTF-8 text; save it as CSV in UTF-8") from None
    first = text.split("\n", 1)[0]
    separator = max((",", ";", "\t"), key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] | None = None
    rows, places, problems = [], [], []
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [field.strip() for field in fields]
            elif len(fields) != len(header):
                problems.append(f"line {reader.line_num}: {len(fields)} fields, not {len(header)}")
            else:
                rows.append([field.strip() for field in fields])
                places.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise OpamError(
            f"{table}, line {reader.line_num}: cannot be read ({cause(error)}); correct it"
        ) from None
    if header is None:
        raise OpamError(f"{table}: is empty; give it columns 'image' and 'label'")
    _tell(table, problems)
    return pd.DataFrame(rows, columns=header, index=places, dtype="object")


def _parse_parquet(table: object, content: bytes) -> pd.DataFrame:
    """As `parse`; columns of lists, structures and bytes (photographs, say) are left out."""
    try:
        readable = [
            column.name
            for column in pq.read_schema(pa.BufferReader(content))
            if not (pa.types.is_nested(column.type) or pa.types.is_binary(column.type))
        ]
        read = pq.read_table(pa.BufferReader(content), columns=readable)
        read.validate(full=True)
        columns = [[_text(value) for value in column.to_pylist()] for column in read.columns]
    except (OSError, ValueError, pa.ArrowException) as error:
        raise OpamError(f"{table}: cannot be read as parquet ({cause(error)})") from None
    places = [f"row {number}" for number in range(1, read.num_rows + 1)]
    rows = zip(*columns, strict=True)
    return pd.DataFrame(list(rows), columns=read.column_names, index=places, dtype="object")


def _text(value: object) -> str:
    """A cell of parquet as text: whole numbers without a point, as in a column with gaps."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def read_rows(
    table: object, cells: pd.DataFrame, columns: TableColumns, found: Mapping[str, object]
) -> tuple[pd.DataFrame, TableColumns]:
    """What the rows say, and the columns that they say it in.

    Args:
        table: its path.
        cells: as `parse` reads them.
        columns: that are named; the others are found by name.
        found: what each file below the table's folder is called there, by its path in NFC.

    Returns:
        ``image_id, path`` (of ``found``), ``class_name, split`` (missing without such a column),
        ``group`` (missing where empty), ``gt_x0`` to ``gt_y1`` (float, missing without a box),
        and a column named 1, 2, .. a level of coarser labels; and all columns by name.

    Raises:
        OpamError: columns missing or not to be told apart; or photographs that are missing or
            listed twice, labels missing, words that are no split, boxes that are none, a class
            with two coarser labels of one level: all are listed.
    """
    used = _find_columns(table, list(cells.columns), columns)
    if cells.empty:
        raise OpamError(f"{table}: holds no rows; add the photographs")
    problems: list[str] = []
    rows = pd.DataFrame(
        {
            "image_id": _image_ids(cells[used.image], found, problems),
            "class_name": cells[used.label].map(nfc),
        },
        index=cells.index,
    )
    problems += [f"{place}: no label" for place in rows.index[rows["class_name"] == ""]]
    rows["split"] = _splits(cells[used.split], problems) if used.split else None
    rows["group"] = cells[used.group].where(cells[used.group] != "", None) if used.group else None
    boxes = [_box(place, row, problems) for place, *row in _corners(cells, used.box)]
    rows[GT_BOX] = pd.DataFrame(boxes, columns=GT_BOX, index=rows.index, dtype="float64")
    boxed = rows[GT_BOX].dropna().to_numpy(float)
    if len(boxed) and boxed.max() <= 1:
        problems.append("all boxes lie between 0 and 1: fractions, and pixels are expected")
    for level, column in enumerate(used.coarse or [], start=1):
        rows[level] = cells[column].map(nfc)
        pairs = rows.loc[rows[level] != "", ["class_name", level]].drop_duplicates()
        for name, several in pairs.groupby("class_name")[level]:
            if len(several) > 1:
                problems.append(
                    f"label '{name}': {column} is '{several.iloc[0]}' in one row and "
                    f"'{several.iloc[1]}' in another"
                )
    _tell(table, problems)
    return rows.assign(path=rows["image_id"].map(found)).reset_index(drop=True), used


def coarse_labels(rows: pd.DataFrame) -> pd.DataFrame:
    """``image_id, level, label`` of what `read_rows` read."""
    levels = [column for column in rows.columns if isinstance(column, int)]
    labels = rows.melt("image_id", levels, "level", "label")
    return labels.loc[labels["label"] != "", COARSE_COLUMNS]


def _tell(table: object, problems: Sequence[str]) -> None:
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise OpamError(f"{table}: {len(problems)} wrong in its rows; correct them{listed}")


def _find_columns(table: object, header: list[str], columns: TableColumns) -> TableColumns:
    normal = {re.sub(r"[\s-]+", "_", name.lower()): name for name in header}

    def named(name: str, parameter: str) -> str:
        if name not in header:
            raise OpamError(
                f"{table}: has no column '{name}', which dataset.columns.{parameter} names; it "
                f"has {', '.join(header)}"
            )
        return name

    def found(role: str) -> str | None:
        given = getattr(columns, role)
        if given is not None:
            return named(given, role)
        names = [name for name in SYNONYMS[role].split() if name in normal]
        if role in normal:
            return normal[role]
        if len(names) > 1:
            raise OpamError(
                f"{table}: '{normal[names[0]]}' and '{normal[names[1]]}' may both be the column "
                f"'{role}'; name one in dataset.columns.{role}"
            )
        return normal[names[0]] if names else None

    roles = {role: found(role) for role in SYNONYMS}
    for role in ("image", "label"):
        if roles[role] is None:
            raise OpamError(
                f"{table}: has no column '{role}', but {', '.join(header)}; name it in "
                f"dataset.columns.{role}"
            )
    box = columns.box and [named(name, "box") for name in columns.box]
    coarse = columns.coarse and [named(name, "coarse") for name in columns.coarse]
    if box is None:
        box = _found_box(table, normal)
    if coarse is None:
        levels = sorted(int(name[6:]) for name in normal if re.fullmatch(r"label_[1-9]\d?", name))
        if levels != list(range(1, len(levels) + 1)):
            raise OpamError(f"{table}: label_1 to label_{levels[-1]} are not all there; add them")
        coarse = [normal[f"label_{level}"] for level in levels]
    used = TableColumns(**roles, box=box or None, coarse=coarse or None)
    every = [*filter(None, roles.values()), *(box or []), *(coarse or [])]
    for name in every:
        if header.count(name) + every.count(name) > 2:
            raise OpamError(f"{table}: column '{name}' is there twice, or named for two things")
    return used


def _found_box(table: object, normal: dict[str, str]) -> list[str] | None:
    for corners in CORNERS:
        there = [normal[name] for name in corners if name in normal]
        if 0 < len(there) < len(corners):
            raise OpamError(
                f"{table}: of the box's columns {', '.join(corners)} only {', '.join(there)} are "
                "there; add the others, or name all four in dataset.columns.box"
            )
        if there:
            return there
    return None


def _image_ids(cells: pd.Series, found: Mapping[str, object], problems: list[str]) -> list[str]:
    image_ids = []
    first: dict[str, str] = {}
    by_stem: dict[str, list[str]] = {}
    for place, cell in cells.items():
        text = nfc(cell).replace("\\", "/")
        parts = PurePosixPath(text).parts
        name = "/".join(parts)
        image_ids.append(name)
        if not name:
            problems.append(f"{place}: no image")
        elif text.startswith("/") or ".." in parts:
            problems.append(f"{place}: '{cell}' leads out of the table's folder")
        elif name not in found:
            if not by_stem:
                for each in found:
                    by_stem.setdefault(PurePosixPath(each).stem.lower(), []).append(each)
            like = _like(PurePosixPath(name), by_stem)
            problems.append(
                f"{place}: no photograph '{cell}'" + (f", but there is '{like}'" if like else "")
            )
        elif first.setdefault(name, str(place)) != place:
            problems.append(f"{place}: '{cell}' is listed in {first[name]} already")
    return image_ids


def _like(name: PurePosixPath, by_stem: Mapping[str, list[str]]) -> str | None:
    """The one photograph that may be meant: of the same folder, or else the only one so called."""
    stems = dict.fromkeys((name.stem.lower(), name.name.lower()))
    called = [each for stem in stems for each in by_stem.get(stem, [])]
    own = str(name.parent).lower()
    beside = [each for each in called if str(PurePosixPath(each).parent).lower() == own]
    likely = beside or called
    return likely[0] if len(likely) == 1 else None


def _splits(cells: pd.Series, problems: list[str]) -> list[str | None]:
    found = [SPLIT_WORDS.get(cell.lower()) for cell in cells]
    problems += [
        f"{place}: split '{cell}' is none of train, val, test"
        for (place, cell), split in zip(cells.items(), found, strict=True)
        if split is None
    ]
    return found


def _corners(cells: pd.DataFrame, box: list[str] | None) -> list[tuple[str, ...]]:
    """The place and four cells of each row."""
    if box is None:
        return [(place, "", "", "", "") for place in cells.index]
    return list(cells[box].itertuples(name=None))


def _box(place: str, cells: Sequence[str], problems: list[str]) -> list[float]:
    """Four corners; not a number where all cells are empty, and where they are no box."""
    nothing = [float("nan")] * 4
    if not any(cells):
        return nothing
    try:
        x0, y0, x1, y1 = (float(cell) for cell in cells)
    except ValueError:
        x0 = y0 = x1 = y1 = float("nan")
    finite = all(abs(corner) < 1e9 for corner in (x0, y0, x1, y1))
    if finite and round(x0) < round(x1) and round(y0) < round(y1):
        return [x0, y0, x1, y1]
    problems.append(f"{place}: '{', '.join(cells)}' is no box (left, top, right, bottom)")
    return nothing
