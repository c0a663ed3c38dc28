"""The pipeline of a bundle of discriminants as one ONNX file (`opam.app.graph`), FP32 or INT8."""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opam.app.classifier import Classifier
from opam.app.graph import Graph
from opam.app.onnx_export import as_onnx, need
from opam.app.predict import find_photographs
from opam.photographs.decoding.images import read_photograph
from opam.pipeline.artifacts import atomic
from opam.pipeline.errors import OpamError

SIDES = torch.export.Dim("height", min=1, max=65535), torch.export.Dim("width", min=1, max=65535)
"""Of a photograph, in pixels."""
BODY = "backbone.body."
"""With what the scopes of the backbone's operations begin."""
QUANTIZED = ("Conv", "Add", "Mul", "Clip", "Relu")
"""Operations of the backbone that INT8 takes; the map, boxes, crops and scores stay floats."""
MOST = 64
"""Photographs that ranges are taken from; of more, as many, evenly spread."""


def export_graph(bundle: Path, out: Path, calibrate: Path | None = None) -> None:
    """Write an ONNX file that takes a photograph and gives what the bundle says of it.

    ``photograph``, uint8 H x W x 3 of any size, RGB, upright, in; ``probabilities``, float32 C,
    and ``box``, int64 4 (x0, y0, x1, y1, half-open, pixels), out. The file's metadata has the
    names of the classes (``classes``, a JSON list) and the longest side in pixels to which the
    project scales photographs (``max_side``).

    Args:
        bundle: folder that `export_bundle` wrote.
        out: the file.
        calibrate: photographs, or a folder of them, by which ranges of INT8 are chosen; None: FP32.

    Raises:
        OpamError: ``out`` ends otherwise, a package is missing, there are no photographs or one
            cannot be read, or the bundle's networks were trained (`Graph`).
    """
    if out.suffix != ".onnx":
        raise OpamError(f"{out}: name a file that ends in .onnx")
    need("onnx", "onnxscript", *(["onnxruntime"] if calibrate else []))
    photographs = find_photographs([calibrate])[0] if calibrate else []
    classifier = Classifier.load(bundle, "cpu")
    side: int = classifier.steps["max_side"]
    graph = Graph(classifier).eval()
    # Two sides that differ: an export from a square would hold for squares.
    example = torch.zeros(150, 200, 3, dtype=torch.uint8)
    model = as_onnx(
        graph,
        {"photograph": example},
        ["probabilities", "box"],
        dict(enumerate(SIDES)),
        "the graph",
    )
    if photographs:
        step = -(-len(photographs) // MOST)
        model = quantized(model, photographs[::step], side)
    for node in model.graph.node:  # where it was traced is of no use, and named by paths
        del node.metadata_props[:]
        node.doc_string = ""
    told = {"classes": json.dumps(classifier.classes), "max_side": str(side)}
    for key, value in told.items():
        model.metadata_props.add(key=key, value=value)
    with atomic(out) as temporary:
        temporary.write_bytes(model.SerializeToString())


def quantized(model: Any, photographs: Sequence[Path], side: int) -> Any:
    """The same in INT8: weights by channel, values by their ranges on ``photographs``.

    Args:
        model: an onnx.ModelProto.
        photographs: their files.
        side: they are scaled down to, pixels.

    Raises:
        OpamError: a photograph cannot be read.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Photographs(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self.left: Iterator[Path] = iter(photographs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            path = next(self.left, None)
            return None if path is None else {"photograph": read_photograph(path, side).pixels}

    own = [
        node.name
        for node in model.graph.node
        if node.op_type in QUANTIZED and any(BODY in each.value for each in node.metadata_props)
    ]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises what was done already: batch norm is folded
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "int8.onnx")
            quantize_static(
                model,
                path,
                Photographs(),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=own,
            )
            return onnx.load(path)
    finally:
        root.setLevel(level)
