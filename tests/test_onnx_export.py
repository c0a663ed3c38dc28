"""The bundle's networks as ONNX give torch's logits."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_project import Undisturbed
from typer.testing import CliRunner

from opam.app.bundle import NETWORKS
from opam.app.cli import app
from opam.app.onnx_export import export_onnx
from opam.networks.cam_network import read_network
from opam.pipeline.errors import OpamError

pytestmark = pytest.mark.slow


def test_logits_are_torchs_in_batches_of_any_size(undisturbed: Undisturbed, tmp_path: Path) -> None:
    bundle = undisturbed.untouched / "data/bundle"
    out = ["--bundle", str(bundle), "--out", str(tmp_path / "onnx")]
    told = CliRunner().invoke(app, ["export-onnx", *out])
    assert told.exit_code == 0, told.output
    files = [Path(line) for line in told.output.splitlines()]
    assert [path.stem for path in files] == list(NETWORKS.values())
    assert sorted((tmp_path / "onnx").iterdir()) == sorted(files)  # no weights beside them
    generator = np.random.default_rng(0)
    for path in files:
        onnx.checker.check_model(str(path))
        network, settings = read_network(bundle / f"{path.stem}.safetensors")
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (images,), (logits,) = session.get_inputs(), session.get_outputs()
        assert (images.name, images.type, logits.name) == ("images", "tensor(uint8)", "logits")
        for batch in (1, 5):
            side = settings["input_size"]
            pixels = generator.integers(0, 256, (batch, 3, side, side), dtype=np.uint8)
            with torch.inference_mode():
                expected = network(torch.from_numpy(pixels)).numpy()
            (found,) = session.run(None, {"images": pixels})
            assert found.shape == (batch, network.heads, network.classes)
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OpamError, match=r"classnet\.safetensors: not found"):
        export_onnx(tmp_path, tmp_path)
    monkeypatch.setattr("opam.app.onnx_export.PACKAGES", ("onnx_that_is_not_there",))
    with pytest.raises(OpamError, match=r"pip install 'opam\[onnx\]'"):
        export_onnx(tmp_path, tmp_path)
