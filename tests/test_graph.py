"""A bundle of discriminants as one graph says what `Classifier` says of original and object."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from opam import Classifier
from opam.app import graph
from opam.app.bundle import BUNDLE, FAMILIARITY, FORMAT
from opam.app.cli import app
from opam.app.graph import FUSED, Graph, find_box, largest_region
from opam.app.graph_export import export_graph
from opam.engine.crops.cutting import centre_boxes
from opam.engine.crops.cutting import cut as expected_cut
from opam.method.colocalization import joined, moments, principal_component
from opam.method.fusion import fuse_named
from opam.method.objects import find_object
from opam.method.saliency import to_image
from opam.networks.backbones.backbone import Backbone
from opam.networks.backbones.weights import write_weights
from opam.networks.cam_network import CamNetwork, read_network, write_network
from opam.networks.familiarity import Familiarity
from opam.photographs.datasets.synthetic_birds import draw_bird
from opam.pipeline.artifacts import read_json, write_json
from opam.pipeline.errors import OpamError

CLASSES = ["heath warbler", "marsh tit", "sea finch"]
SIZES = {"classnet": 64, "objectnet": 96, "partnet": 64, "probes": 64, "part_probes": 64}
CHANNELS = 256
CLOSE = 0.03
"""Of probabilities: crops may differ by a level of 255, and a box by a pixel."""


@pytest.fixture(scope="module")
def birds() -> list[np.ndarray]:
    return [draw_bird(number, np.random.default_rng(number)).image for number in range(4)]


@pytest.fixture(scope="module")
def bundle(birds: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"), birds)


def write_bundle(
    folder: Path,
    birds: list[np.ndarray],
    rule: str = "product",
    mirrored: bool = False,
    rim: int = 0,
) -> Path:
    """A bundle of discriminants that were drawn by lot; ``rim`` pixels of crops are not shown."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        backbone = Backbone("test_efficientnet").eval()
        for module in backbone.body.modules():  # as if it had learned
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2.0)
                module.running_mean.normal_(0, 0.1)
                module.bias.normal_(0, 0.1)
        for name, size in SIZES.items():
            heads = 2 if name == "partnet" else 1
            network = CamNetwork(backbone, len(CLASSES), heads, CHANNELS).eval()
            network.head.weight.mul_(20)
            settings = {"backbone": backbone.name, "input_size": size, "resize": size + rim}
            write_network(folder / f"{name}.safetensors", network, settings)
        known = {"input_size": 64, "pooled": "mean"}
        familiarity = Familiarity(CHANNELS, len(CLASSES), 4)
        write_weights(folder / f"{FAMILIARITY}.safetensors", familiarity, known)
        whole = np.array([[0, 0, 999, 999]])
        crops = torch.cat([expected_cut(each, whole, 96) for each in birds])
        direction = principal_component(joined([moments(backbone.shared_maps(crops, None))]))
    both = {"original": 0.4, "object": 0.6}
    weights = {
        **{name: {name: 1.0} for name in both},
        "part": {"cluster 0": 1.0},
        FUSED: both,
        f"{FUSED}+part": both | {"cluster 0": 0.0},
    }
    content = {
        "format": FORMAT,
        "classes": CLASSES,
        "parents": [],
        "fusion": {"rule": rule, "weights": weights},
        "alignment": {"response": "blocks.0", "cluster_of_neuron": [0] * 8 + [1] * 8},
        "common": {
            "mean": direction.mean.tolist(),
            "component": direction.component.tolist(),
            "intercept": direction.intercept,
        },
        "params": {
            "proposals": {"mode": "single", "max_boxes": 10},
            "saliency": {"input_size": 64, "crops": "two"},
            "colocalization": {"input_size": 96},
            "objects": {"map": "colocalization", "threshold": 0.3},
            "parts": {},
            "mirrored": mirrored,
            "max_side": 1600,
        },
    }
    write_json(folder / BUNDLE, content)
    return folder


def check(found: tuple, bundle: Path, classifier: Classifier, photograph: np.ndarray) -> None:
    """Probabilities and box of a graph are the bundle's."""
    expected = classifier(photograph)
    fusion = read_json(bundle / BUNDLE)["fusion"]
    own = {name: each[None] for name, each in expected.probabilities.items()}
    [fused] = fuse_named(own, fusion["weights"][FUSED], fusion["rule"])
    probabilities, box = (np.asarray(each) for each in found)
    np.testing.assert_allclose(probabilities, fused, atol=CLOSE)
    np.testing.assert_allclose(box, expected.object_box, atol=2)


@pytest.mark.parametrize(
    "how", [{}, {"rule": "mean", "mirrored": True, "rim": 16}], ids=["product", "mean"]
)
def test_it_says_what_the_bundle_says(how: dict, birds: list[np.ndarray], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, birds, **how)
    classifier = Classifier.load(bundle, "cpu")
    made = Graph(Classifier.load(bundle, "cpu")).eval()
    boxes = []
    for each in birds:
        with torch.inference_mode():
            found = made(torch.from_numpy(each))
        check(found, bundle, classifier, each)
        boxes.append(found[1].tolist())
    assert all(box != [0, 0, *each.shape[1::-1]] for box, each in zip(boxes, birds, strict=True))


@pytest.mark.parametrize("size", [(40, 40), (200, 300), (31, 500)])
def test_boxes_are_those_of_the_method(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    equal = 0
    for _ in range(30):
        common = ndimage.gaussian_filter(generator.normal(size=(12, 12)), 1.2).astype(np.float32)
        expected, _ = find_object(to_image(np.maximum(common, 0), *size), 0.3)
        equal += find_box(torch.from_numpy(common), *size, 0.3).tolist() == [*expected]
    assert equal >= 25  # in noise: regions as large as another, or joined by a pixel


def test_a_map_that_says_nothing_is_the_whole_photograph() -> None:
    for value in (-1.0, 0.0, 3.0):
        assert find_box(torch.full((5, 5), value), 30, 40, 0.3).tolist() == [0, 0, 40, 30]


def test_the_largest_region_goes_to_and_fro() -> None:
    salient = np.zeros((graph.GRID, graph.GRID), dtype=bool)
    salient[[2, 5], 2:-2] = True  # there and back
    salient[2:6, 2] = True
    salient[20:30, 20:30] = True  # denser, and smaller
    regions, _ = ndimage.label(salient, np.ones((3, 3)))
    expected = regions == np.bincount(regions.ravel())[1:].argmax() + 1
    assert expected.sum() < salient.sum()
    found = largest_region(torch.from_numpy(salient))[0, 0].bool().numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("fraction", [1.0, 0.875])
def test_crops_are_those_of_the_pipeline(fraction: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    for box in ([0, 0, 140, 90], [30, 5, 75, 88], [139, 0, 140, 90]):
        [expected] = expected_cut(pixels, centre_boxes(np.array([box]), fraction), 48)
        shown = graph.centred(torch.tensor(box), fraction)
        [found] = graph.cut(torch.from_numpy(pixels).float(), shown, 48)
        assert (found - expected).abs().max() <= 2
        assert (found - expected).abs().mean() < 1


def test_networks_that_were_trained_are_refused(birds: list[np.ndarray], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, birds)
    path = bundle / "objectnet.safetensors"
    network, settings = read_network(path)
    with torch.no_grad():
        next(network.backbone.parameters()).mul_(1.1)
    write_network(path, network, settings)
    with pytest.raises(OpamError, match=r"networks were trained.*`opam export-onnx`"):
        export_graph(bundle, tmp_path / "graph.onnx")
    assert not (tmp_path / "graph.onnx").exists()


def test_another_map_is_refused(birds: list[np.ndarray], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, birds)
    content = read_json(bundle / BUNDLE)
    content["params"]["objects"]["map"] = "cam"
    write_json(bundle / BUNDLE, content)
    with pytest.raises(OpamError, match=r"objects\.map is cam"):
        export_graph(bundle, tmp_path / "graph.onnx")


def test_photographs_without_one_object_are_refused(
    birds: list[np.ndarray], tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path, birds)
    content = read_json(bundle / BUNDLE)
    content["common"]["component"] = [0.0] * len(content["common"]["component"])
    write_json(bundle / BUNDLE, content)
    with pytest.raises(OpamError, match="no one object in common"):
        export_graph(bundle, tmp_path / "graph.onnx")


def test_what_is_missing_is_told(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "graph.onnx"
    with pytest.raises(OpamError, match=r"ends in \.onnx"):
        export_graph(bundle, tmp_path)
    with pytest.raises(OpamError, match=r"none: no such file or folder"):
        export_graph(bundle, out, tmp_path / "none")
    with pytest.raises(OpamError, match="no photograph found"):
        export_graph(bundle, out, tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(OpamError, match=r"pip install 'opam\[onnx\]'"):
        export_graph(bundle, out)


@pytest.fixture(scope="module")
def files(
    bundle: Path, birds: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """FP32 and INT8, as the command writes them."""
    folder = tmp_path_factory.mktemp("onnx")
    known = folder / "known"
    known.mkdir()
    for number, each in enumerate(birds):
        Image.fromarray(each).save(known / f"{number}.png")
    found = [folder / "fp32.onnx", folder / "int8.onnx"]
    for path, how in zip(found, ([], ["--calibrate", str(known)]), strict=True):
        told = CliRunner().invoke(app, ["export", str(path), "--bundle", str(bundle), *how])
        assert told.exit_code == 0, told.output
        assert told.output.split() == [str(path)]
    assert {*folder.iterdir()} == {known, *found}  # weights are in the files
    return found


@pytest.mark.slow
def test_the_file_says_what_the_bundle_says_of_any_size(
    files: list[Path], bundle: Path, birds: list[np.ndarray]
) -> None:
    onnx.checker.check_model(str(files[0]))
    session = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == CLASSES
    assert told["max_side"] == "1600"
    classifier = Classifier.load(bundle, "cpu")
    for each in [*birds, birds[0][:50], birds[1][:, :9], birds[2][:1, :1]]:
        check(session.run(None, {"photograph": each}), bundle, classifier, each)


@pytest.mark.slow
def test_weights_are_there_once_and_no_path(files: list[Path]) -> None:
    model = onnx.load(files[0])
    kernels = [each for each in model.graph.initializer if len(each.dims) == 4]
    used = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    assert len(used) > 2 * len({*used})  # by three views of the photograph
    assert len(kernels) == len({each.raw_data for each in kernels})
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert str(Path(graph.__file__).parent).encode() not in files[0].read_bytes()


@pytest.mark.slow
def test_int8_is_smaller_and_nearly_the_same(files: list[Path], birds: list[np.ndarray]) -> None:
    onnx.checker.check_model(str(files[1]))
    quantized = {
        each.name
        for each in onnx.load(files[1]).graph.initializer
        if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 4
    }
    used = [node.input[1] for node in onnx.load(files[0]).graph.node if node.op_type == "Conv"]
    assert len(quantized) == len({*used}) - 1  # all but that of the map
    assert files[1].stat().st_size < files[0].stat().st_size
    full, small = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in files
    )
    for each in birds:
        expected, found = (one.run(None, {"photograph": each}) for one in (full, small))
        np.testing.assert_allclose(found[0], expected[0], atol=0.1)
        np.testing.assert_allclose(found[1], expected[1], atol=20)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
def test_openvino_says_the_same(files: list[Path], birds: list[np.ndarray]) -> None:
    import openvino

    how = {"INFERENCE_PRECISION_HINT": "f32"}
    for path, close in zip(files, (1e-4, 0.1), strict=True):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        compiled = openvino.Core().compile_model(path, "CPU", how)
        for each in birds:
            probabilities, box = session.run(None, {"photograph": each})
            found = compiled(each)
            np.testing.assert_allclose(found["probabilities"], probabilities, atol=close)
            np.testing.assert_allclose(found["box"], box, atol=1 if close < 0.1 else 20)
