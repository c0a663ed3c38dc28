"""The data of the page's script, and the files beside the page."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import delayed

from opam.method.objects import ObjectParams, chosen_map
from opam.method.parts import PartParams
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import BOX, GT_BOX, atomic
from opam.pipeline.device import ExecutionParams
from opam.pipeline.processes import in_processes
from opam.pipeline.progress import progress
from opam.report.page.photographs import (
    Found,
    details,
    per_mille,
    picture,
    rounded,
    top_classes,
)
from opam.report.page.render import compact_json
from opam.report.page.tables import strongest_and_weakest

PIECE = 16
"""Photographs whose details lie in one file, which the page loads when it shows one of them."""

PIECES = "photographs"


@dataclass(frozen=True)
class Run:
    """What the stages say of the test photographs.

    Attributes:
        photographs: N rows of the manifest.
        scores: float N x C for each branch and ``fused``.
        objects: an objects table, indexed by image_id.
        parts: an aligned-parts table, indexed by image_id, equally many parts a photograph.
        read: gives the pixels of the manifest's photographs.
    """

    photographs: pd.DataFrame
    scores: Mapping[str, np.ndarray]
    objects: pd.DataFrame
    parts: pd.DataFrame
    read: Photographs

    def labels(self) -> np.ndarray:
        """The photographs' labels, int N."""
        return self.photographs["label"].to_numpy()

    def positions(self) -> dict[str, int]:
        """Position of each photograph, by image_id."""
        return {image_id: n for n, image_id in enumerate(self.photographs["image_id"])}


def gallery(run: Run) -> dict[str, Any]:
    """What the page needs of all photographs at once, a list a property."""
    ids = run.photographs["image_id"].tolist()
    labels = run.labels()
    objects, parts = run.objects.loc[ids], run.parts.loc[ids]
    true = run.scores["fused"][np.arange(len(ids)), labels]
    return {
        "ids": ids,
        "labels": labels.tolist(),
        "sizes": run.photographs[["width", "height"]].to_numpy().tolist(),
        "answers": {branch: each.argmax(1).tolist() for branch, each in run.scores.items()},
        "confidence": {
            branch: [per_mille(value) for value in each.max(1)]
            for branch, each in run.scores.items()
        },
        "trueConfidence": [per_mille(value) for value in true],
        "objects": objects[BOX].to_numpy().tolist(),
        "parts": parts[[*BOX, "cluster"]].to_numpy().reshape(len(ids), -1, 5).tolist(),
        "trueBoxes": [
            None if np.isnan(box).any() else [int(value) for value in box]
            for box in run.photographs[GT_BOX].to_numpy(np.float64)
        ],
        "objectFallbacks": objects["fallback"].tolist(),
        "partFallbacks": parts["fallback"].to_numpy().reshape(len(ids), -1)[:, 0].tolist(),
    }


def found_photographs(
    run: Run,
    cams: Iterable[Any],
    common_maps: Iterable[Any],
    proposals: Iterable[tuple[str, pd.DataFrame]],
    params: ObjectParams,
) -> Iterator[Found]:
    """What the stages found in each test photograph, in order, one at a time.

    Args:
        run: of the test photographs.
        cams: rows of the saliency table, of all photographs.
        common_maps: rows of the table of object maps.
        proposals: every photograph's image_id and proposals.
        params: which map the object box comes from.
    """
    test = run.positions()
    ids = list(test)
    paths = run.photographs["path"].tolist()
    sizes = run.photographs[["height", "width"]].to_numpy().tolist()
    object_boxes = run.objects.loc[ids, BOX].to_numpy(np.int32)
    parts = run.parts.loc[ids]
    part_boxes = parts[BOX].to_numpy(np.int32).reshape(len(ids), -1, 4)
    fallbacks = parts["fallback"].to_numpy().reshape(len(ids), -1)[:, 0]
    for cam, common, (image_id, boxes) in zip(cams, common_maps, proposals, strict=True):
        if image_id in test:
            position = test[image_id]
            height, width = sizes[position]
            values = cam.cam.reshape(cam.rows, cam.columns)
            shared = common.map.reshape(common.rows, common.columns)
            yield Found(
                where=run.read.where(paths[position]),
                size=(height, width),
                cam=values,
                object_map=chosen_map(values, shared, params),
                object_box=object_boxes[position],
                proposals=boxes[BOX].to_numpy(np.int32),
                part_boxes=part_boxes[position],
                fallback=str(fallbacks[position]),
            )


def all_details(
    run: Run, found: Iterable[Found], params: PartParams, execution: ExecutionParams
) -> Iterator[dict[str, Any]]:
    """Yield every photograph's picture and what its large view shows."""
    jobs = (delayed(details)(each, params) for each in found)
    drawn = in_processes(jobs, max(1, execution.workers))
    ids = run.photographs["image_id"].tolist()
    cam_labels = run.objects["predicted_label"].loc[ids].tolist()
    parts = run.parts[["score", "activation"]].loc[ids].to_numpy().reshape(len(ids), -1, 2)
    for position, each in enumerate(progress(drawn, len(ids), "report")):
        yield {
            **each,
            "camLabel": cam_labels[position],
            "score": rounded(parts[position, 0, 0]),
            "activations": [rounded(value) for value in parts[position, :, 1]],
            "top": {branch: top_classes(scores[position]) for branch, scores in run.scores.items()},
        }


def training_photographs(
    manifest: pd.DataFrame,
    chosen: Sequence[str],
    scored: Iterable[tuple[str, pd.DataFrame]],
    kept: Iterable[tuple[str, pd.DataFrame]],
    most: int,
    read: Photographs,
) -> list[dict[str, Any]]:
    """Some training photographs with their pictures and their patches.

    Args:
        manifest: indexed by image_id.
        chosen: their image_ids.
        scored: every training photograph's patches with confidences.
        kept: the patches that the filter kept.
        most: patches of a photograph that are shown (see `strongest_and_weakest`).
        read: gives the photographs.
    """
    ranks = {image_id: set(patches["rank"]) for image_id, patches in kept if image_id in chosen}
    found: list[dict[str, Any]] = []
    for image_id, patches in scored:
        if image_id not in chosen:
            continue
        row: Any = manifest.loc[image_id]
        mine = ranks.get(image_id, set())
        shown = strongest_and_weakest(patches, most)
        found.append(
            {
                "id": image_id,
                "label": int(row["label"]),
                "size": [int(row["width"]), int(row["height"])],
                "picture": picture(read(row["path"])),
                "patches": [
                    [*box, per_mille(confidence), int(rank in mine)]
                    for box, rank, confidence in zip(
                        shown[BOX].to_numpy().tolist(),
                        shown["rank"],
                        shown["confidence"],
                        strict=True,
                    )
                ],
                "count": len(patches),
                "kept": len(mine),
            }
        )
    return found


def write_pieces(folder: Path, photographs: Iterable[dict[str, Any]]) -> Iterator[Path]:
    """Write the photographs' details in order, `PIECE` a script; yield each file written.

    Scripts, because a page that is opened from disk may load those and nothing else.
    """
    waiting, number = iter(photographs), 0
    while piece := list(islice(waiting, PIECE)):
        path = folder / PIECES / f"{number:04}.js"
        with atomic(path) as temporary:
            temporary.write_text(f"addDetails({number},{compact_json(piece)});\n", "ascii")
        yield path
        number += 1


def remove_others(folder: Path, written: set[Path]) -> None:
    """Remove every file of an older report that this one did not write."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in written:
            path.unlink()
