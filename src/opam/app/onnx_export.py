"""The bundle's networks as ONNX files, for runtimes without torch."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from opam.app.bundle import NETWORKS
from opam.networks.cam_network import read_network
from opam.pipeline.artifacts import atomic
from opam.pipeline.errors import OpamError, cause

PACKAGES = ("onnx", "onnxscript")


def export_onnx(bundle: Path, out: Path) -> list[Path]:
    """Write classnet.onnx, objectnet.onnx, partnet.onnx, probes.onnx and part_probes.onnx.

    Each takes ``images``, uint8 B x 3 x S x S with any B and the network's own S, in RGB, not
    normalised, and gives ``logits``, float32 B x heads x C. PartNet and the probes of
    parts have a head a cluster; the probes one for whole photographs and one for objects; the
    others one.

    Args:
        bundle: folder that `export_bundle` wrote.
        out: folder of the files.

    Returns:
        The files.

    Raises:
        OpamError: packages or networks are missing, or a network cannot be exported.
    """
    need(*PACKAGES)
    written = []
    for name in NETWORKS.values():
        network, settings = read_network(bundle / f"{name}.safetensors")
        if not network.heads:
            continue  # probes that there are none of
        path = out / f"{name}.onnx"
        with atomic(path) as temporary:
            # Two images: an export from one would hold for one alone.
            images = torch.zeros(2, 3, *[settings["input_size"]] * 2, dtype=torch.uint8)
            batch = {0: torch.export.Dim("batch")}
            model = as_onnx(network, {"images": images}, ["logits"], batch, name)
            temporary.write_bytes(model.SerializeToString())
        written.append(path)
    return written


def need(*packages: str) -> None:
    """Raise `OpamError` where one of the extra ``onnx`` is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise OpamError(f"{package} is not installed; `pip install 'opam[onnx]'`")


def as_onnx(
    network: torch.nn.Module,
    example: dict[str, torch.Tensor],
    outputs: list[str],
    dynamic: dict[int, Any],
    name: str,
) -> Any:
    """One network, weights and normalisation included, as an onnx.ModelProto.

    Args:
        network: in evaluation mode.
        example: its input, by name.
        outputs: names of what it gives.
        dynamic: sides of the input that may have any length, as torch.export.Dim.
        name: for errors.

    Raises:
        OpamError: an operation has no counterpart in ONNX.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                tuple(example.values()),
                input_names=[*example],
                output_names=outputs,
                dynamic_shapes=(dynamic,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types
        raise OpamError(f"{name}: cannot be exported to ONNX ({cause(error)})") from None
    if program is None:
        raise OpamError(f"{name}: torch exported nothing; install another version of torch")
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own inner workings."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
