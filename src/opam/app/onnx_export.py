"""The bundle's networks as ONNX files, for runtimes without torch."""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

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
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise OpamError(f"{package} is not installed; `pip install 'opam[onnx]'`")
    written = []
    for name in NETWORKS.values():
        network, settings = read_network(bundle / f"{name}.safetensors")
        if not network.heads:
            continue  # probes that there are none of
        path = out / f"{name}.onnx"
        with atomic(path) as temporary:
            temporary.write_bytes(as_onnx(network, settings["input_size"], name))
        written.append(path)
    return written


def as_onnx(network: torch.nn.Module, size: int, name: str) -> bytes:
    """One network, weights and normalisation included, as an ONNX file's content.

    Args:
        network: in evaluation mode.
        size: side of its images, pixels.
        name: for errors.

    Raises:
        OpamError: an operation has no counterpart in ONNX.
    """
    # Two images: an export from one would hold for one alone.
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types
        raise OpamError(f"{name}: cannot be exported to ONNX ({cause(error)})") from None
    if program is None:
        raise OpamError(f"{name}: torch exported nothing; install another version of torch")
    return program.model_proto.SerializeToString()


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
