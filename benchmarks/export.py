"""The pipeline as one graph, in onnxruntime and OpenVINO, beside the bundle itself.

Run: ``python benchmarks/export.py``, in the folder of a run whose networks are discriminants
(preset `frozen`). It exports the bundle (FP32, and INT8 by training
photographs), shows every test photograph to each, and prints a table. OpenVINO is left out where
it is not installed. It looks at test, as `evaluate` did, and chooses nothing by it.
"""

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import numpy as np
import onnxruntime
import pandas as pd
import torch
from PIL import Image

from opam.app.classifier import Classifier
from opam.app.graph_export import MOST, export_graph
from opam.photographs.decoding.images import Photographs
from opam.pipeline.artifacts import read_table
from opam.report.results import markdown_table

DATA = Path("data")
Answer = tuple[np.ndarray, np.ndarray]
"""Probabilities and box."""
COLUMNS = [
    *("what", "same answer", "accuracy", "same box; mean IoU with it"),
    *("file, MB", "ms a photograph"),
]


class Shown(NamedTuple):
    """What one of them said of all photographs, and the CPU seconds that each took."""

    probabilities: np.ndarray
    boxes: np.ndarray
    seconds: np.ndarray


def show(answer: Callable[[np.ndarray], Answer], photographs: list[np.ndarray]) -> Shown:
    """One after the other, on one core: seconds are the process's own, whoever shares it."""
    answer(photographs[0])
    found, seconds = [], []
    for each in photographs:
        started = time.process_time()
        found.append(answer(each))
        seconds.append(time.process_time() - started)
    probabilities, boxes = (np.stack(each) for each in zip(*found, strict=True))
    return Shown(probabilities, boxes, np.array(seconds))


def by_bundle(classifier: Classifier) -> Callable[[np.ndarray], Answer]:
    """The bundle itself, of all branches."""

    def answer(photograph: np.ndarray) -> Answer:
        found = classifier(photograph)
        return found.probabilities["fused"], found.object_box

    return answer


def by_onnxruntime(path: Path) -> Callable[[np.ndarray], Answer]:
    """A graph on one thread."""
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = how.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, how, providers=["CPUExecutionProvider"])
    return lambda photograph: tuple(session.run(None, {"photograph": photograph}))


def by_openvino(path: Path, precision: str) -> Callable[[np.ndarray], Answer]:
    """A graph on one thread; ``precision`` of what is not INT8, which it chooses by the CPU."""
    import openvino

    how = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(path, "CPU", how)

    def answer(photograph: np.ndarray) -> Answer:
        found = compiled(photograph)
        return found["probabilities"].copy(), found["box"].copy()

    return answer


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of each box with its other, float N."""
    first, end = np.maximum(boxes[:, :2], others[:, :2]), np.minimum(boxes[:, 2:], others[:, 2:])
    both = np.maximum(end - first, 0).prod(1)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
    return both / (areas[0] + areas[1] - both)


def row(what: str, shown: Shown, bundle: Shown, labels: np.ndarray, size: float) -> list[str]:
    """A line of the table."""
    answers = shown.probabilities.argmax(1)
    alike = overlaps(shown.boxes, bundle.boxes)
    return [
        what,
        f"{(answers == bundle.probabilities.argmax(1)).mean():.1%}",
        f"{(answers == labels).mean():.1%}",
        f"{(alike == 1).mean():.1%}; {alike.mean():.3f}",
        f"{size / 1e6:.1f}",
        f"{1e3 * np.median(shown.seconds):.0f}",
    ]


def measure(folder: Path) -> list[list[str]]:
    """The table; graphs are written to ``folder``."""
    manifest = read_table(DATA / "manifest.parquet", "manifest")
    read = Photographs(manifest, 0.0)

    def pixels(rows: pd.DataFrame) -> list[np.ndarray]:
        return [np.array(read(path)) for path in rows["path"]]

    test, training = (manifest[manifest["split"] == name] for name in ("test", "train"))
    photographs, labels = pixels(test), test["label"].to_numpy()
    known = folder / "known"
    known.mkdir()
    for number, each in enumerate(pixels(training[:: -(-len(training) // MOST)])):
        Image.fromarray(each).save(known / f"{number}.png")
    full, small = folder / "fp32.onnx", folder / "int8.onnx"
    export_graph(DATA / "bundle", full)
    export_graph(DATA / "bundle", small, known)

    classifier = Classifier.load(DATA / "bundle", "cpu", workers=0)
    bundle = show(by_bundle(classifier), photographs)
    size = sum(each.stat().st_size for each in (DATA / "bundle").iterdir())
    rows = [row("`Classifier`, what `opam predict` calls", bundle, bundle, labels, size)]
    ways = [
        ("onnxruntime, FP32", partial(by_onnxruntime, full), full),
        ("onnxruntime, INT8", partial(by_onnxruntime, small), small),
    ]
    if find_spec("openvino"):
        ways += [
            (f"OpenVINO, {name}", partial(by_openvino, path, precision), path)
            for name, path, precision in (
                ("FP32", full, "f32"),
                ("BF16, its own choice here", full, "bf16"),
                ("INT8", small, "f32"),
            )
        ]
    for what, way, path in ways:
        shown = show(way(), photographs)
        rows.append(row(what, shown, bundle, labels, path.stat().st_size))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    print(markdown_table(COLUMNS, rows))


if __name__ == "__main__":
    main()
