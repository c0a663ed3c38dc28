"""Every step of one photograph of a run on one sheet: ``opam show``."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from opam.evaluation.metrics import box_iou
from opam.method.fusion import BRANCHES, PROBE, branch_answers
from opam.method.objects import ObjectParams, chosen_map
from opam.method.parts import Measure, PartParams, mean_saliency, qualifying
from opam.method.saliency import to_image
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import (
    BOX,
    GT_BOX,
    SCHEMAS,
    atomic,
    read_batches,
    read_json,
    read_table,
)
from opam.pipeline.errors import OpamError
from opam.pipeline.params import read_params
from opam.report.panels import BRANCH_COLOURS, COLOURS, Panel, Sketch, bars, remark, sheet

SHOWN = (*BRANCHES, "fused")

PROPOSAL, PATCH, OBJECT, TRUE_BOX = "#40e0ff", "#ffe14d", "white", "#7ddc4c"
LABELLED = 6
"""Kept patches that are drawn with their confidence."""

FORMATS = {".png": "PNG", ".jpg": "JPEG"}

TOP = 5
"""Classes whose probabilities are drawn."""


@dataclass(frozen=True)
class Photograph:
    """One row of the manifest, decoded.

    Attributes:
        data: folder of the artifacts.
        image_id: its name.
        image: uint8 H x W x 3.
        split: "train", "val" or "test".
        class_name: its true class.
        true_box: int x0, y0, x1, y1, or None where the data set has none.
        classes: names of all classes, by label.
    """

    data: Path
    image_id: str
    image: np.ndarray
    split: str
    class_name: str
    true_box: np.ndarray | None
    classes: list[str]

    def rows(self, path: str, schema: str | None = None) -> pd.DataFrame:
        """Its rows of an artifact, no more than a row group in memory.

        Raises:
            OpamError: as `opam.pipeline.artifacts.read_table`.
        """
        schema = schema or Path(path).stem
        found = SCHEMAS[schema].empty_table().to_pandas()
        for batch in read_batches(self.data / path, schema):
            own = batch[batch["image_id"] == self.image_id]
            if len(own):
                found = own if found.empty else pd.concat([found, own])
        return found.reset_index(drop=True)

    def row(self, path: str, schema: str | None = None) -> pd.Series:
        """Its only row of an artifact.

        Raises:
            OpamError: as `rows`; or there is none.
        """
        found = self.rows(path, schema)
        if found.empty:
            raise OpamError(f"{self.data / path}: no row for it; run `dvc repro`")
        return found.iloc[0]

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """A map in the photograph's size, 0..1."""
        return to_image(values, *self.image.shape[:2])


def open_photograph(data: Path, image_id: str) -> Photograph:
    """Find a photograph in the manifest and decode it.

    Raises:
        OpamError: it is not in the manifest; or the manifest or the file cannot be read.
    """
    manifest = read_table(data / "manifest.parquet", "manifest")
    photographs = Photographs(manifest, gigabytes=0)
    manifest = manifest.set_index("image_id")
    if image_id not in manifest.index:
        raise OpamError(
            f"{image_id}: not in {data / 'manifest.parquet'}; the closest there: "
            + ", ".join(closest(image_id, list(manifest.index)))
        )
    row = manifest.loc[image_id]
    true_box = None if row[GT_BOX].isna().any() else row[GT_BOX].to_numpy(np.int64)
    classes = [str(name) for name in read_json(data / "classes.json")]
    return Photograph(
        data,
        image_id,
        photographs(str(row["path"])),
        str(row["split"]),
        str(row["class_name"]),
        true_box,
        classes,
    )


def closest(image_id: str, known: list[str]) -> list[str]:
    """Up to three names like ``image_id``; those that it is the end of come first."""
    ends = [name for name in known if f"/{name}".endswith(f"/{image_id}")]
    similar = difflib.get_close_matches(image_id, known, 3, cutoff=0)
    return list(dict.fromkeys([*ends, *similar]))[:3]


def proposals(photograph: Photograph) -> Panel:
    """The patches that selective search finds."""
    rows = photograph.rows("proposals.parquet")
    sketch = Sketch(photograph.image)
    sketch.boxes(rows[BOX].to_numpy(), PROPOSAL, opacity=0.6)
    return Panel("Proposals", sketch.picture, f"{len(rows)} boxes of selective search")


def kept_patches(photograph: Photograph) -> Panel:
    """The patches that FilterNet lets through, the most confident labelled."""
    title = "Kept patches"
    if photograph.split != "train":
        text = f"Only training photographs have kept patches; this one is of {photograph.split}"
        return Panel(title, remark(text), "")
    kept = photograph.rows("kept_patches.parquet").sort_values("confidence")
    scored = len(photograph.rows("patch_scores.parquet"))
    sketch = Sketch(photograph.image)
    sketch.boxes(kept[BOX].to_numpy(), PATCH, opacity=0.6)
    for _, row in kept.tail(LABELLED).iterrows():
        sketch.boxes([row[BOX].tolist()], PATCH, width=2)
    for _, row in kept.tail(LABELLED).iterrows():
        sketch.label(row[BOX].tolist(), f"{row['confidence']:.2f}", PATCH)
    caption = f"{len(kept)} of {scored} patches kept; labelled: probability of "
    caption += photograph.class_name
    return Panel(title, sketch.picture, caption)


def class_activation(photograph: Photograph) -> Panel:
    """Where ClassNet sees the class that it predicts."""
    row = photograph.row("saliency.parquet")
    sketch = Sketch(photograph.image)
    sketch.heat(photograph.scaled(_cam(row)))
    caption = f"ClassNet's map of the class it predicts, {photograph.classes[row.predicted_label]}"
    return Panel("Class activation map", sketch.picture, caption)


def colocalization(photograph: Photograph) -> Panel:
    """What the photograph shares with all others."""
    row = photograph.row("object_maps.parquet")
    sketch = Sketch(photograph.image)
    sketch.heat(photograph.scaled(np.maximum(_common(row), 0)))
    caption = "what the photographs of the data set have in common; black: background"
    return Panel("Co-localization map", sketch.picture, caption)


def object_box(photograph: Photograph) -> Panel:
    """The object's box around the salient region, and the true box."""
    params = read_params("objects", ObjectParams)
    common = None
    if params.map == "colocalization":
        common = _common(photograph.row("object_maps.parquet"))
    chosen = chosen_map(_cam(photograph.row("saliency.parquet")), common, params)
    row = photograph.row("objects.parquet")
    box = row[BOX].to_numpy(np.int64)
    sketch = Sketch(photograph.image)
    sketch.darken(photograph.scaled(chosen) < params.threshold)
    caption = f"white: around the largest region of at least {params.threshold:g}"
    if row.fallback == "whole_image":
        caption = "white: the map says nothing, so the whole photograph"
    if row.fallback == "window":
        caption = "white: no one object, so the window where the class shows most"
    if photograph.true_box is not None:
        sketch.boxes([photograph.true_box], TRUE_BOX, width=3)
        iou = box_iou(box[None], photograph.true_box[None])[0]
        caption += f"; green: the true box, IoU {iou:.2f}"
    sketch.boxes([box], OBJECT, width=3)
    return Panel("Object", sketch.picture, caption)


def chosen_parts(photograph: Photograph) -> Panel:
    """The candidates for parts, and those that score highest together."""
    params = read_params("parts", PartParams)
    rows = photograph.rows("parts.parquet")
    box = photograph.row("objects.parquet")[BOX].to_numpy(np.int64)
    height, width = photograph.image.shape[:2]
    boxes = photograph.rows("proposals.parquet")[BOX].to_numpy(np.int64)
    boxes = boxes.clip(0, [width, height] * 2)
    saliency = photograph.scaled(_cam(photograph.row("saliency.parquet")))
    fallback = rows["fallback"].iloc[0]
    candidates = qualifying(
        Measure(saliency, box),
        boxes,
        params.min_iou if fallback == "none" else 0.0,
        params.min_inside,
        params.max_candidates,
        params.max_iou,
    )
    parts = rows[BOX].to_numpy(np.int64)
    sketch = Sketch(photograph.image)
    sketch.boxes(boxes[candidates], PROPOSAL, opacity=0.5)
    sketch.boxes([box], OBJECT, width=1)
    sketch.boxes(parts, PATCH, width=3)
    for each, mean in zip(parts, mean_saliency(saliency, parts), strict=True):
        sketch.label(each.tolist(), f"{mean:.2f}", PATCH)
    caption = (
        f"{len(candidates)} of {len(boxes)} proposals qualify; the chosen score "
        f"{rows['score'].iloc[0]:.2f} together, each with its mean saliency"
    )
    if fallback != "none":
        caption += f" (rule relaxed: {fallback})"
    return Panel("Candidates and parts", sketch.picture, caption)


def aligned_parts(photograph: Photograph) -> Panel:
    """The object, and which cluster of neurons each part excites."""
    rows = photograph.rows("aligned_parts.parquet")
    sketch = Sketch(photograph.image)
    sketch.boxes([photograph.row("objects.parquet")[BOX].to_numpy(np.int64)], OBJECT, width=2)
    for boxed in (True, False):
        for _, row in rows.iterrows():
            colour = COLOURS[row["cluster"] % len(COLOURS)]
            box = [int(row[side]) for side in BOX]
            if boxed:
                sketch.boxes([box], colour, width=3)
            else:
                sketch.label(box, f"cluster {row['cluster']}", colour)
    caption = "white: the object; each part by the cluster of neurons that it excites most"
    return Panel("Aligned parts", sketch.picture, caption)


def probabilities(photograph: Photograph) -> Panel:
    """What each branch says, and all together."""
    title = "Probabilities"
    if photograph.split == "train":
        text = "Training photographs are not scored: the networks have seen them"
        return Panel(title, remark(text), "")
    own = {
        name: photograph.row(f"scores/{name}.parquet", "scores")["probabilities"][None]
        for name in ("original", "object")
    }
    parts = photograph.rows("scores/clusters.parquet", "cluster_scores")
    for cluster, probabilities in zip(parts["cluster"], parts["probabilities"], strict=True):
        own[f"cluster {cluster}"] = probabilities[None]
    probes = photograph.rows("scores/probes.parquet", "probe_scores")
    for name, probabilities in zip(probes["name"], probes["probabilities"], strict=True):
        own[name + PROBE] = probabilities[None]
    fusion = read_json(photograph.data / "fusion.json")
    scores = np.concatenate([*branch_answers(own, fusion["weights"], fusion["rule"]).values()])
    best = np.argsort(-scores[-1], kind="stable")[:TOP]
    names = [photograph.classes[label] for label in best]
    shown = [
        (f"{name}  (true)" if name == photograph.class_name else name, scores[:, label].tolist())
        for name, label in zip(names, best, strict=True)
    ]
    caption = "bars of each class, from above: " + ", ".join(SHOWN)
    if photograph.class_name not in names:
        caption += f"; the true class, {photograph.class_name}, is not among the first {len(names)}"
    return Panel(title, bars(shown, BRANCH_COLOURS), caption)


STEPS: tuple[Callable[[Photograph], Panel], ...] = (
    proposals,
    kept_patches,
    class_activation,
    colocalization,
    object_box,
    chosen_parts,
    aligned_parts,
    probabilities,
)


def _cam(row: pd.Series) -> np.ndarray:
    return np.asarray(row["cam"]).reshape(row["rows"], row["columns"])


def _common(row: pd.Series) -> np.ndarray:
    return np.asarray(row["map"]).reshape(row["rows"], row["columns"])


def drawing_path(image_id: str, out: Path | None) -> Path:
    """Where a photograph's drawing goes: ``out``, or a .png named after the photograph.

    Raises:
        OpamError: ``out`` is neither a .png nor a .jpg.
    """
    out = out or Path(image_id.replace("/", "_")).with_suffix(".png")
    if out.suffix.lower() not in FORMATS:
        raise OpamError(f"{out}: the drawing is a PNG or a JPEG; end it in .png or .jpg")
    return out


def write_drawing(out: Path, drawing: Image.Image) -> None:
    """Write a drawing to what `drawing_path` gave."""
    with atomic(out) as temporary:
        drawing.save(temporary, FORMATS[out.suffix.lower()], optimize=True)


def show(data: Path, image_id: str, out: Path | None = None) -> Path:
    """Draw every step of one photograph.

    A step that has not run yet, or whose artifact is damaged, is told in its place.

    Args:
        data: folder of the artifacts; the parameter file is the working directory's.
        image_id: as in the manifest.
        out: a .png or .jpg file; None: a .png named after the photograph, in the working directory.

    Returns:
        The file written.

    Raises:
        OpamError: ``image_id`` is unknown (the message names the closest), ``out`` is neither,
            or one of them cannot be read or written.
    """
    out = drawing_path(image_id, out)
    photograph = open_photograph(data, image_id)
    height, width = photograph.image.shape[:2]
    caption = f"{photograph.class_name}, {photograph.split}, {width} x {height} pixels"
    panels = [Panel("Photograph", Sketch(photograph.image).picture, caption)]
    for number, step in enumerate(STEPS, start=1):
        try:
            panel = step(photograph)
        except OpamError as error:
            panel = Panel(step.__name__.replace("_", " ").capitalize(), remark(str(error)), "")
        panels.append(replace(panel, title=f"{number}  {panel.title}"))
    write_drawing(out, sheet(PurePosixPath(image_id).as_posix(), panels))
    return out
