"""Classify the photographs of a folder or a list: a row each, and drawings where asked for."""

import csv
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, count, islice
from pathlib import Path, PurePath
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from PIL import Image, ImageDraw

from opam.app.bundle import ACCEPTED
from opam.app.classifier import Classification, Classifier, LookedAt
from opam.app.explanation import as_json, drawing, explain, read_known
from opam.engine.crops.ahead import load_ahead
from opam.method.fusion import BRANCHES
from opam.photographs.decoding.depth import unused_depth
from opam.photographs.decoding.images import NotAPhotograph, ignored, image_format, read_image
from opam.pipeline.artifacts import BOX, atomic, write_json
from opam.pipeline.errors import OpamError
from opam.pipeline.progress import progress
from opam.report.panels import COLOURS, write

CROPS = 8
"""Of a photograph at a time; so many go together that a batch is full."""
ROWS = 1024
"""Rows of a parquet row group."""

Row = dict[str, Any]


def find_photographs(paths: Sequence[Path]) -> tuple[list[Path], Counter[str]]:
    """The files named, whatever they are, and all photographs below the folders named.

    What is a photograph is told by content, as in training, and what is `ignored` is not looked at.

    Returns:
        The photographs, and the number of files below the folders that were left out, by reason;
        a folder that is left out counts as one.

    Raises:
        OpamError: a path does not exist, a folder cannot be read, or there is no photograph.
    """
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    for path in paths:
        if path.is_dir():
            below = [(each, _left_out(each)) for each in sorted(_files(path))]
            found += [each for each, reason in below if not reason]
            left_out.update(reason for _, reason in below if reason)
        elif path.exists():
            found.append(path)
        else:
            raise OpamError(f"{path}: no such file or folder; correct the path")
    if not found:
        others = f"; left out: {summary(left_out)}" if left_out else ""
        raise OpamError(f"{paths[0]}: no photograph found{others}")
    return found, left_out


def summary(left_out: Counter[str]) -> str:
    """Counts by reason in words, the most first."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())


def _files(folder: Path) -> Iterator[Path]:
    """What lies below a folder; of folders only links and those that are ignored."""

    def stop(error: OSError) -> None:
        raise OpamError(f"{error.filename}: cannot be read ({error.strerror}); correct it")

    for place, folders, files in os.walk(folder, onerror=stop):
        closed = [
            each for each in folders if ignored(Path(each)) or (Path(place) / each).is_symlink()
        ]
        folders[:] = [each for each in folders if each not in closed]
        yield from (Path(place) / each for each in (*files, *closed))


def _left_out(path: Path) -> str:
    """Why a file is left out; empty for a photograph."""
    if ignored(PurePath(path.name)):
        return "hidden or of the system"
    if path.is_dir():
        return "links to folders"
    if not path.is_file():
        return "no regular file"
    try:
        with path.open("rb") as file:
            image_format(file, str(path))
    except NotAPhotograph as error:
        return error.reason
    except OSError:
        return ""  # told where it is read
    return ""


def predict(
    classifier: Classifier,
    paths: Sequence[Path],
    top: int,
    overlays: Mapping[Path, Path] | None = None,
    quiet: bool = False,
    accept_error: float = ACCEPTED,
    explained: Mapping[Path, Path] | None = None,
) -> Iterator[Row]:
    """Yield a row a photograph, in order (see `row`); one that cannot be read has ``error``.

    Photographs are read ahead of the networks, a bounded number of them. Where those of 16 bits use
    fewer, and so are dark, it is told on stderr.

    Args:
        classifier: a loaded bundle.
        paths: files.
        top: so many classes a row.
        overlays: where each photograph's drawing of object and parts goes, or None.
        quiet: show no progress.
        accept_error: share of photographs of known classes that may be called unknown.
        explained: where the drawing of each explanation goes (`opam.app.explanation`), beside it
            the numbers, as .json; or None.

    Raises:
        OpamError: a drawing cannot be written, or the bundle lacks what explains.
    """
    known = None if explained is None else read_known(classifier)
    together = max(1, classifier.execution.batch_size // CROPS)

    def looked_at(number: int) -> list[LookedAt | OpamError]:
        return [_look(classifier, path) for path in paths[number : number + together]]

    starts = range(0, len(paths), together)
    size = together * classifier.steps["max_side"] ** 2 * 3
    loaded = load_ahead(looked_at, starts, classifier.execution.workers, size)

    largest: dict[Path, float] = {}

    def rows() -> Iterator[Row]:
        for start, looks in zip(starts, loaded, strict=True):
            good = [each for each in looks if isinstance(each, LookedAt)]
            every = classifier.classify_looked_at(good)
            found = iter(every)
            why = iter(explain(classifier, known, good, every) if known else ())
            for path, look in zip(paths[start:], looks, strict=False):
                if isinstance(look, OpamError):
                    yield {"photograph": readable(path), "error": readable(str(look))}
                    continue
                own = next(found)
                if look.photograph.largest is not None:
                    largest[path] = look.photograph.largest
                if overlays is not None:
                    with atomic(overlays[path]) as temporary:
                        overlay(read_image(path), own).save(temporary, "JPEG", quality=90)
                if explained is not None:
                    how = own, next(why), classifier.classes
                    with atomic(explained[path]) as temporary:
                        drawn = drawing(read_image(path), readable(path.name), *how)
                        drawn.save(temporary, "JPEG", quality=90)
                    write_json(explained[path].with_suffix(".json"), as_json(readable(path), *how))
                yield row(path, own, classifier.classes, top, accept_error)
        if told := unused_depth(np.array([*largest.values()], dtype=float)):
            print(f"{readable(next(iter(largest)))}: {told}", file=sys.stderr, flush=True)

    yield from rows() if quiet else progress(rows(), len(paths), "predict")


def _look(classifier: Classifier, path: Path) -> LookedAt | OpamError:
    try:
        return classifier.look(path)
    except OpamError as error:
        return error


def row(
    path: Path,
    found: Classification,
    classes: list[str],
    top: int,
    accept_error: float = ACCEPTED,
) -> Row:
    """One photograph's result, flat; of what is ``unknown`` ``class`` is the most similar one.

    Returns:
        ``photograph, error, class, familiarity, unknown``; for k = 1.. ``top_k, top_k_fused,
        top_k_original, top_k_object, top_k_part`` (a class, and its probability by each branch);
        ``object_x0`` to ``object_y1``; for p = 0.. ``part_p_cluster, part_p_x0`` to ``part_p_y1``;
        and which rule stood in where object or parts were not to be found.
    """
    values: Row = {
        "photograph": readable(path),
        "error": None,
        "class": found.class_name,
        "familiarity": round(found.familiarity, 6),
        "unknown": found.familiarity <= accept_error,
    }
    best = np.argsort(-found.probabilities["fused"], kind="stable")[:top]
    for rank, label in enumerate(best, start=1):
        values[f"top_{rank}"] = classes[label]
        for branch in ("fused", *BRANCHES):
            values[f"top_{rank}_{branch}"] = round(float(found.probabilities[branch][label]), 6)
    values |= {f"object_{side}": int(x) for side, x in zip(BOX, found.object_box, strict=True)}
    for part, (box, cluster) in enumerate(zip(found.parts, found.clusters, strict=True)):
        values[f"part_{part}_cluster"] = int(cluster)
        values |= {f"part_{part}_{side}": int(x) for side, x in zip(BOX, box, strict=True)}
    return values | {
        "object_fallback": found.object_fallback,
        "part_fallback": found.part_fallback,
    }


def overlay(image: np.ndarray, found: Classification) -> Image.Image:
    """The photograph with its object box (white), its parts (by cluster) and its class."""
    drawing = Image.fromarray(image)
    pen = ImageDraw.Draw(drawing)
    width = max(2, round(max(image.shape[:2]) / 200))
    boxes = [(found.object_box, "white")]
    colours = [COLOURS[cluster % len(COLOURS)] for cluster in found.clusters]
    for (x0, y0, x1, y1), colour in [*boxes, *zip(found.parts, colours, strict=True)]:
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=width)
    text = f"{found.class_name} {found.probabilities['fused'].max():.0%}"
    size = max(12, round(image.shape[1] / 30))
    place, edge = (width * 2, width * 2), max(1, size // 10)
    write(pen, place, text, size, "white", stroke_width=edge, stroke_fill="black")
    return drawing


def readable(name: Path | str) -> str:
    """A file's name, or a text with one in it, as text; bytes that are none are written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def drawings(folder: Path, paths: Sequence[Path]) -> dict[Path, Path]:
    """Where each photograph's drawing goes; like names, in any case, get numbers."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        numbered = (f"{path.stem}-{number}.jpg" for number in count(2))
        names[path] = next(
            name for name in chain([f"{path.stem}.jpg"], numbered) if name.casefold() not in taken
        )
        taken.add(names[path].casefold())
    return {path: folder / name for path, name in names.items()}


def columns(classifier: Classifier, top: int) -> list[str]:
    """Names of the values of a `row`, in order."""
    best = range(1, min(top, len(classifier.classes)) + 1)
    tops = [[f"top_{k}", *(f"top_{k}_{name}" for name in ("fused", *BRANCHES))] for k in best]
    parts = [
        [f"part_{p}_cluster", *(f"part_{p}_{side}" for side in BOX)]
        for p in range(classifier.steps["parts"].n_parts)
    ]
    return [
        *("photograph", "error", "class", "familiarity", "unknown"),
        *chain(*tops),
        *(f"object_{side}" for side in BOX),
        *chain(*parts),
        *("object_fallback", "part_fallback"),
    ]


def write_csv(file: TextIO, rows: Iterable[Row], names: Sequence[str]) -> Iterator[Row]:
    """Write rows as they come, with a header of ``names``; yields each when it is written."""
    to = csv.DictWriter(file, names, lineterminator="\n")
    to.writeheader()
    for each in rows:
        to.writerow(each)
        file.flush()
        yield each


def write_predictions(
    path: Path,
    classifier: Classifier,
    paths: Sequence[Path],
    top: int,
    overlay: Path | None = None,
    quiet: bool = False,
    accept_error: float = ACCEPTED,
    explain: Path | None = None,
) -> list[str]:
    """Write the rows of `predict` as .csv, .jsonl or, with any other ending, parquet.

    Rows go to ``PATH.part`` as they come, a JSON object a line; a prediction that was killed goes
    on behind them, unless the bundle, the arguments or the photographs changed since.

    Args:
        path: of the table.
        classifier: a loaded bundle.
        paths: of the photographs.
        top: so many classes a row.
        overlay: folder of drawings, or None.
        quiet: show no progress.
        accept_error: as in `predict`.
        explain: folder of explanations, or None.

    Returns:
        What is wrong with photographs that could not be read.

    Raises:
        OpamError: a file cannot be written, or another prediction writes it.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(part.with_suffix(".lock"), timeout=0):
            return _write(path, part, classifier, paths, top, overlay, quiet, accept_error, explain)
    except Timeout:
        raise OpamError(f"{path}: another prediction writes it; wait, or name another") from None
    except OSError as error:
        raise OpamError(f"{part}: cannot be written ({error.strerror}); correct it") from None


def _write(
    path: Path,
    part: Path,
    classifier: Classifier,
    paths: Sequence[Path],
    top: int,
    overlay: Path | None,
    quiet: bool,
    accept_error: float,
    explain: Path | None,
) -> list[str]:
    drawn = None if overlay is None else drawings(overlay, paths)
    explained = None if explain is None else drawings(explain, paths)
    begun = {
        "bundle": classifier.digest,
        "top": top,
        "overlay": overlay and readable(overlay),
        "accept_error": accept_error,
        "explain": explain and readable(explain),
    }
    done, end = _done(part, begun, paths)
    if done:
        print(f"{part}: {done} photographs are done", file=sys.stderr, flush=True)
    with part.open("r+" if done else "w", encoding="utf-8") as file:
        file.seek(end)
        file.truncate()
        if not done:
            file.write(f"{json.dumps(begun)}\n")
        rest = paths[done:]
        found = predict(classifier, rest, top, drawn, quiet, accept_error, explained)
        for each, row in zip(rest, found, strict=True):
            file.write(f"{json.dumps([_state(each), row])}\n")
            file.flush()
    write_rows(path, _rows(part), columns(classifier, top))
    errors = [str(each["error"]) for each in _rows(part) if each["error"]]
    part.unlink()
    part.with_suffix(".lock").unlink(missing_ok=True)
    return errors


def _state(path: Path) -> str:
    """A file's name, and what changes when it is written anew."""
    try:
        found = path.stat()
        return f"{path} {found.st_size} {found.st_mtime_ns}"
    except OSError:
        return str(path)


def _done(part: Path, begun: dict[str, object], paths: Sequence[Path]) -> tuple[int, int]:
    """How many of ``paths`` an earlier prediction has rows of, and where in the file they end."""
    done = end = 0
    with suppress(OSError, ValueError, IndexError, TypeError), part.open("rb") as file:
        if json.loads(first := file.readline()) != begun:
            return 0, 0
        end = len(first)
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)[0] != _state(paths[done]):
                break
            done, end = done + 1, end + len(line)
    return (done, end) if done else (0, 0)


def _rows(part: Path) -> Iterator[Row]:
    with part.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            yield json.loads(line)[1]


def write_rows(path: Path, rows: Iterable[Row], names: Sequence[str]) -> None:
    """Write rows as .csv, .jsonl or, with any other ending, parquet, with columns ``names``.

    Raises:
        OpamError: the file cannot be written.
    """
    with atomic(path) as temporary:
        if path.suffix == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                deque(write_csv(file, rows, names), maxlen=0)
        elif path.suffix == ".jsonl":
            with temporary.open("w", encoding="utf-8") as file:
                for each in rows:
                    full = {name: each.get(name) for name in names}
                    file.write(f"{json.dumps(full, ensure_ascii=False)}\n")
        else:
            schema = pa.schema([(name, _type(name)) for name in names])
            waiting = iter(rows)
            with pq.ParquetWriter(temporary, schema) as to:
                while some := list(islice(waiting, ROWS)):
                    to.write_table(pa.Table.from_pylist(some, schema))


def _type(name: str) -> pa.DataType:
    if name.endswith((*BOX, "_cluster")):
        return pa.int32()
    if name == "unknown":
        return pa.bool_()
    return pa.float64() if name.endswith(("fused", "familiarity", *BRANCHES)) else pa.string()
