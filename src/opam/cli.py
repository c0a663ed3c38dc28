"""The command ``opam``."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from opam import errors
from opam.errors import OpamError

FORMATS = (".csv", ".jsonl", ".parquet")

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class Device(StrEnum):
    """Where the networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@app.callback()
def opam() -> None:
    """Object, parts and class of photographs, by a trained bundle."""


@app.command()
def predict(
    photographs: Annotated[list[Path], typer.Argument(help="photographs, or folders of them")],
    bundle: Annotated[Path, typer.Option(help="what the stage export_bundle wrote")] = Path(
        "data/bundle"
    ),
    out: Annotated[
        Path | None, typer.Option(help="results: .csv, .jsonl or .parquet; else CSV is printed")
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="folder for drawings of object and parts")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="classes a photograph")] = 5,
    device: Annotated[Device, typer.Option(help="where the networks run")] = Device.auto,
) -> None:
    """Label photographs: class, probabilities of every branch, object and parts.

    A photograph that cannot be read gets a row with the error; all others are done, and the
    exit code is 1.
    """
    # What draws the help needs no torch.
    from opam.classifier import Classifier
    from opam.predict import find_photographs, table_of, write_rows
    from opam.predict import predict as rows_of

    if out is not None and out.suffix not in FORMATS:
        raise OpamError(f"{out}: cannot tell the format; end it in {', '.join(FORMATS)}")
    paths = find_photographs(photographs)
    rows = list(rows_of(Classifier.load(bundle, device.value), paths, top, overlay))
    if out is None:
        print(table_of(rows).to_csv(index=False), end="")
    else:
        write_rows(out, rows)
    broken = [row for row in rows if row["error"]]
    for row in broken:
        print(f"error: {row['error']}", file=sys.stderr)
    if broken:
        raise OpamError(f"{len(broken)} of {len(rows)} photographs could not be read")


def main() -> None:
    """Run the command; an `OpamError` is told in one line, exit code 1."""
    errors.run(app)
