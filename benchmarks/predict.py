"""`opam predict`: photographs a second, over what the networks alone need for the same crops.

Measured with the bundle of the run in ``data/`` on its test photographs.
"""

from pathlib import Path
from typing import Any

import torch
from project import seconds

from opam.app.classifier import Classifier
from opam.app.predict import predict
from opam.engine.crops.batches import CropBatches
from opam.pipeline.artifacts import read_table
from opam.pipeline.device import ExecutionParams, autocast
from opam.pipeline.params import read_params

DATA = Path("data")
PHOTOGRAPHS = 64
ROUNDS = 3


def measure() -> list[dict[str, object]]:
    """One row."""
    if not (DATA / "bundle/bundle.json").exists():
        return [{"what": "predict", "value": "not measured: wants `make repro`", "ratio": ""}]
    classifier = Classifier(DATA / "bundle", read_params("execution", ExecutionParams))
    manifest = read_table(DATA / "manifest.parquet", "manifest")
    paths = [Path(path) for path in manifest.loc[manifest["split"] == "test", "path"]][:PHOTOGRAPHS]
    ready: list[tuple[Any, list[torch.Tensor]]] = []
    through = classifier.forward

    def recorded(network: Any, function: Any, batches: CropBatches, group: int = 1) -> Any:
        every = [batches[number].to(classifier.device) for number in range(len(batches))]
        ready.append((function, every))
        return through(network, function, batches, group)

    def whole() -> None:
        for _ in predict(classifier, paths, 5, quiet=True):
            pass

    def alone() -> None:
        with torch.inference_mode(), autocast(classifier.device):
            for function, batches in ready:
                for batch in batches:
                    function(batch)
        if classifier.device.type == "cuda":
            torch.cuda.synchronize()

    classifier.forward = recorded  # type: ignore[method-assign]
    whole()
    classifier.forward = through  # type: ignore[method-assign]
    pairs = [(seconds(whole), seconds(alone)) for _ in range(ROUNDS)]
    fastest = [min(each) for each in zip(*pairs, strict=True)]
    rate, bare = (len(paths) / each for each in fastest)
    return [
        {
            "what": f"opam predict, {len(paths)} photographs: decoded, searched, cut, looked at; "
            "the networks alone on the same crops, ready",
            "value": f"{rate:.1f}; {bare:.1f} photographs a second",
            "ratio": round(rate / bare, 3),
            "goal": 0.8,
        }
    ]


if __name__ == "__main__":
    print(measure()[0])
