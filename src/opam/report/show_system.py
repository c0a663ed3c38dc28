"""Where another system looked in one photograph, and what it says: ``opam show --system``."""

from pathlib import Path, PurePosixPath

import numpy as np

from opam.evaluation.metrics import box_iou
from opam.pipeline.artifacts import BOX
from opam.pipeline.errors import OpamError
from opam.report.panels import Panel, Sketch, bars, sheet
from opam.report.show import (
    OBJECT,
    PATCH,
    TOP,
    TRUE_BOX,
    Photograph,
    drawing_path,
    open_photograph,
    write_drawing,
)

BARS = ("#4f7fc4",)


def regions(photograph: Photograph, name: str) -> Panel:
    """The regions of the system ``name``, the best one thick, and the true box."""
    rows = photograph.rows(f"baselines/{name}/regions.parquet", "regions").sort_values("rank")
    boxes = rows[BOX].to_numpy(np.int64)
    sketch = Sketch(photograph.image)
    caption = "white: its best region"
    if photograph.true_box is not None:
        sketch.boxes([photograph.true_box], TRUE_BOX, width=3)
        iou = box_iou(boxes[:1], photograph.true_box[None])[0]
        caption += f"; green: the true box, IoU {iou:.2f}"
    if len(boxes) > 1:
        sketch.boxes(boxes[1:], PATCH, width=2, opacity=0.8)
        caption += f"; yellow: {len(boxes) - 1} others"
    sketch.boxes(boxes[:1], OBJECT, width=3)
    return Panel("Where it looks", sketch.picture, caption)


def probabilities(photograph: Photograph, name: str) -> Panel:
    """The classes that the system ``name`` thinks of first."""
    row = photograph.row(f"baselines/{name}/scores.parquet", "scores")
    scores = np.asarray(row["probabilities"])
    best = np.argsort(-scores, kind="stable")[:TOP]
    names = [photograph.classes[label] for label in best]
    shown = [
        (f"{each}  (true)" if each == photograph.class_name else each, [float(scores[label])])
        for each, label in zip(names, best, strict=True)
    ]
    return Panel("What it says", bars(shown, BARS), f"the {len(best)} most probable classes")


def show_system(data: Path, name: str, image_id: str, out: Path | None = None) -> Path:
    """Draw what one of the other systems made of a photograph.

    Args:
        data: folder of the artifacts.
        name: of the system, as under ``baselines``.
        image_id: as in the manifest, of val or test.
        out: as for `opam.report.show.show`.

    Returns:
        The file written.

    Raises:
        OpamError: as `opam.report.show.show`; or the system was not trained, or the photograph is
            of train.
    """
    out = drawing_path(image_id, out)
    photograph = open_photograph(data, image_id)
    trained = sorted(path.parent.name for path in data.glob("baselines/*/regions.parquet"))
    if name not in trained:
        raise OpamError(
            f"{name}: not among the trained systems ({', '.join(trained) or 'there is none'}); "
            f"`dvc repro train_baseline@{name}` trains it, if it stands under baselines"
        )
    if photograph.split == "train":
        raise OpamError(
            f"{image_id}: the systems have learned from it and score val and test only; name "
            "another photograph"
        )
    panels = [regions(photograph, name), probabilities(photograph, name)]
    heading = f"{name}: {PurePosixPath(image_id).as_posix()}"
    write_drawing(out, sheet(heading, panels, columns=2))
    return out
