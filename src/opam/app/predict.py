"""Classify the photographs of a folder or a list: a row each, and drawings where asked for."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from opam.app.classifier import Classification, Classifier
from opam.method.fusion import BRANCHES
from opam.photographs.decoding.images import NotAPhotograph, ignored, image_format, read_image
from opam.pipeline.artifacts import BOX, atomic
from opam.pipeline.errors import OpamError
from opam.pipeline.progress import progress
from opam.report.panels import COLOURS, write

BATCH = 8
"""Photographs that go through the networks together."""


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
    overlays: Path | None = None,
    quiet: bool = False,
) -> Iterator[dict[str, object]]:
    """Yield a row a photograph, in order (see `row`); one that cannot be read has ``error``.

    Args:
        classifier: a loaded bundle.
        paths: files.
        top: so many classes a row.
        overlays: folder for drawings of object and parts, named as the photographs, or None.
        quiet: show no progress.

    Raises:
        OpamError: a drawing cannot be written.
    """
    names = drawing_names(paths)
    for batch in _batches(paths if quiet else progress(paths, len(paths), "predict")):
        images, errors = {}, {}
        for path in batch:
            try:
                images[path] = read_image(path)
            except OpamError as error:
                errors[path] = str(error)
        found = dict(zip(images, classifier.classify(list(images.values())), strict=True))
        for path in batch:
            if path in errors:
                yield {"photograph": str(path), "error": errors[path]}
                continue
            yield row(path, found[path], classifier.classes, top)
            if overlays is not None:
                drawing = overlay(images[path], found[path])
                with atomic(overlays / names[path]) as temporary:
                    drawing.save(temporary, "JPEG", quality=90)


def row(path: Path, found: Classification, classes: list[str], top: int) -> dict[str, object]:
    """One photograph's result, flat.

    Returns:
        ``photograph, error, class``; for k = 1.. ``top_k, top_k_fused, top_k_original,
        top_k_object, top_k_part`` (a class, and its probability by each branch); ``object_x0``
        to ``object_y1``; for p = 0.. ``part_p_cluster, part_p_x0`` to ``part_p_y1``; and which
        rule stood in where object or parts were not to be found.
    """
    values: dict[str, object] = {"photograph": str(path), "error": None, "class": found.class_name}
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


def drawing_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for each photograph's drawing; like names, in any case, get numbers."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        numbered = (f"{path.stem}-{number}.jpg" for number in count(2))
        names[path] = next(
            name for name in chain([f"{path.stem}.jpg"], numbered) if name.casefold() not in taken
        )
        taken.add(names[path].casefold())
    return names


def table_of(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Rows as a table; whole numbers stay whole beside photographs that could not be read."""
    table = pd.DataFrame(rows)
    whole = [name for name in map(str, table) if name.endswith((*BOX, "_cluster"))]
    return table.astype(dict.fromkeys(whole, "Int64"))


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows as .csv, .jsonl or, with any other ending, parquet.

    Raises:
        OpamError: the file cannot be written.
    """
    table = table_of(rows)
    with atomic(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        elif path.suffix == ".jsonl":
            table.to_json(temporary, orient="records", lines=True, force_ascii=False)
        else:
            table.to_parquet(temporary, index=False)


def _batches(paths: Iterable[Path]) -> Iterator[list[Path]]:
    waiting = iter(paths)
    while batch := list(islice(waiting, BATCH)):
        yield batch
