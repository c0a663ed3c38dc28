"""The command ``opam``.

What draws the help needs no torch: every command imports what it runs by itself.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from opam.app.bundle import ACCEPTED
from opam.pipeline import errors
from opam.pipeline.errors import OpamError

FORMATS = (".csv", ".jsonl", ".parquet")

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


class Device(StrEnum):
    """Where the networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Bundle = Annotated[Path, typer.Option(help="what the stage export_bundle wrote")]
OnDevice = Annotated[Device, typer.Option(help="where the networks run")]

BUNDLE = Path("data/bundle")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"opam {version('opam')}")
        raise typer.Exit


@app.callback()
def opam(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="tell the version")
    ] = False,
) -> None:
    """Object, parts and class of photographs, by a model trained on image labels alone.

    The pipeline that trains it runs by `dvc repro`; see README.md.
    """


@app.command(rich_help_panel="With a trained bundle")
def predict(
    photographs: Annotated[list[Path], typer.Argument(help="photographs, or folders of them")],
    bundle: Bundle = BUNDLE,
    out: Annotated[
        Path | None, typer.Option(help="results: .csv, .jsonl or .parquet; else CSV is printed")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="folder for drawings of object and parts")
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(help="folder for drawings of why: answer, runner-up, what is known like them"),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="classes a photograph")] = 5,
    device: OnDevice = Device.auto,
    workers: Annotated[
        int, typer.Option(min=0, max=256, help="threads that read photographs and cut crops")
    ] = 2,
    batch_size: Annotated[
        int, typer.Option(min=1, max=4096, help="crops that go through a network together")
    ] = 64,
    accept_error: Annotated[
        float,
        typer.Option(min=0, max=1, help="share of known photographs that may be called unknown"),
    ] = ACCEPTED,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="show no progress")] = False,
) -> None:
    """Label photographs: class, probabilities of every branch, object and parts.

    A photograph that cannot be read gets a row with the error; all others are done, and the
    exit code is 1. A prediction with `--out` that was killed goes on where it stood.
    """
    from opam.app.classifier import Classifier
    from opam.app.predict import (
        columns,
        drawings,
        find_photographs,
        summary,
        write_csv,
        write_predictions,
    )
    from opam.app.predict import predict as rows_of

    if out is not None and out.suffix not in FORMATS:
        raise OpamError(f"{out}: cannot tell the format; end it in {', '.join(FORMATS)}")
    if overlay is not None and explain is not None and overlay.resolve() == explain.resolve():
        raise OpamError(f"--overlay and --explain: both are {explain}; name two folders")
    paths, left_out = find_photographs(photographs)
    if left_out:
        print(f"left out: {summary(left_out)}", file=sys.stderr)
    classifier = Classifier.load(bundle, device.value, workers, batch_size)
    if out is None:
        drawn = None if overlay is None else drawings(overlay, paths)
        explained = None if explain is None else drawings(explain, paths)
        rows = rows_of(classifier, paths, top, drawn, quiet, accept_error, explained)
        written = write_csv(sys.stdout, rows, columns(classifier, top))
        broken = [str(row["error"]) for row in written if row["error"]]
    else:
        how = top, overlay, quiet, accept_error, explain
        broken = write_predictions(out, classifier, paths, *how)
    for error in broken:
        print(f"error: {error}", file=sys.stderr)
    if broken:
        raise OpamError(f"{len(broken)} of {len(paths)} photographs could not be read")


@app.command(rich_help_panel="With a trained bundle")
def serve(
    bundle: Bundle = BUNDLE,
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0 lets others in, without a password")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    device: OnDevice = Device.auto,
    max_megabytes: Annotated[
        int, typer.Option(min=1, max=1000, help="larger photographs are refused")
    ] = 20,
    max_waiting: Annotated[
        int, typer.Option(min=1, max=10_000, help="requests at once; more are told to come again")
    ] = 32,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="name by which others call the server; again for each, * for any"),
    ] = None,
) -> None:
    """Show a page in the browser that labels one photograph after the other.

    Metrics are at /metrics, probes at /health and /ready; docs/deployment.md says more.
    """
    from opam.app.serve.server import serve as run

    run(bundle, host, port, device.value, max_megabytes, max_waiting, allowed_host or [])


@app.command("export-onnx", rich_help_panel="With a trained bundle")
def export_onnx(
    bundle: Bundle = BUNDLE,
    out: Annotated[Path, typer.Option(help="folder of the files")] = Path("data/onnx"),
) -> None:
    """Write the networks as ONNX: uint8 images in, logits out."""
    from opam.app.onnx_export import export_onnx as export

    for path in export(bundle, out):
        print(path)


@app.command(rich_help_panel="In the project's folder")
def show(
    image_id: Annotated[str, typer.Argument(help="as in data/manifest.parquet")],
    out: Annotated[
        Path | None,
        typer.Option(help="drawing to write, .png or .jpg; else named after the photograph"),
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="what this one of the other systems made of it instead")
    ] = None,
) -> None:
    """Draw every step of one photograph of the run in this folder."""
    from opam.report.show import show as draw
    from opam.report.show_system import show_system

    data = Path("data")
    if system is None:
        print(draw(data, image_id, out))
    else:
        print(show_system(data, system, image_id, out))


@app.command(rich_help_panel="In the project's folder")
def params(
    section: Annotated[
        str | None, typer.Argument(help="a section of params.yaml, or one parameter")
    ] = None,
) -> None:
    """Explain the parameters: type, range, default, and what params.yaml says."""
    from opam.app.params_help import print_params

    print_params(section)


@app.command(rich_help_panel="In the project's folder")
def doctor() -> None:
    """Check this machine and this folder; exit code 1 where something must be mended."""
    from opam.app.doctor import print_checks

    print_checks()


def main() -> None:
    """Run the command; an `OpamError` is told in one line, exit code 1."""
    errors.run(app)
