"""A bundle of discriminants as one graph says what `Classifier` says of original and object."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy import ndimage

from opam import Classifier
from opam.app.bundle import BUNDLE, FAMILIARITY, FORMAT, NETWORKS
from opam.app.graph import Graph, cut, find_box, largest_region
from opam.method.colocalization import joined, moments, principal_component
from opam.method.fusion import BRANCHES
from opam.method.objects import find_object
from opam.method.saliency import to_image
from opam.networks.backbones.backbone import Backbone
from opam.networks.backbones.weights import write_weights
from opam.networks.cam_network import CamNetwork, write_network
from opam.networks.familiarity import Familiarity
from opam.photographs.datasets.synthetic_birds import draw_bird
from opam.pipeline.artifacts import write_json

CLASSES = ["one", "two", "three"]
SIZES = {"classnet": 64, "objectnet": 96, "partnet": 64, "probes": 64, "part_probes": 64}


@pytest.fixture(scope="module")
def birds() -> list[np.ndarray]:
    return [draw_bird(number, np.random.default_rng(number)).image for number in range(6)]


@pytest.fixture(scope="module")
def bundle(birds: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of discriminants that were drawn by lot."""
    return write_bundle(tmp_path_factory.mktemp("bundle"), birds)


def write_bundle(folder: Path, birds: list[np.ndarray], **changed: object) -> Path:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        backbone = Backbone("test_efficientnet").eval()
        for module in backbone.body.modules():  # as if it had learned
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2.0)
                module.running_mean.normal_(0, 0.1)
                module.bias.normal_(0, 0.1)
        for name, size in SIZES.items():
            network = CamNetwork(backbone, len(CLASSES), 2 if name == "partnet" else 1, 256).eval()
            network.head.weight.mul_(20)
            settings = {"backbone": backbone.name, "input_size": size, "resize": size}
            write_network(folder / f"{name}.safetensors", network, settings)
        familiarity = Familiarity(256, len(CLASSES), 4)
        settings = {"input_size": 64, "pooled": "mean"}
        write_weights(folder / f"{FAMILIARITY}.safetensors", familiarity, settings)
        small = [
            torch.from_numpy(np.array(Image.fromarray(each).resize((96, 96)))) for each in birds
        ]
        maps = backbone.shared_maps(torch.stack(small).permute(0, 3, 1, 2), None)
    direction = principal_component(joined([moments(maps)]))
    weights = {"original": 0.4, "object": 0.7}
    content = {
        "format": FORMAT,
        "classes": CLASSES,
        "fusion": {
            "rule": "product",
            "weights": {
                **{name: {name: 1.0} for name in BRANCHES[:2]},
                "part": {"cluster 0": 0.5, "cluster 1": 0.5},
                "original+object": weights,
                "original+object+part": {**weights, "cluster 0": 0.1},
            },
        },
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
            "mirrored": False,
            "max_side": 1600,
        }
        | changed,
    }
    write_json(folder / BUNDLE, content)
    return folder


def test_it(bundle, birds):
    c = Classifier.load(bundle, "cpu")
    g = Graph(Classifier.load(bundle, "cpu")).eval()
    for each in birds:
        a = c(each)
        with torch.inference_mode():
            p, b = g(torch.from_numpy(each))
        print(each.shape, a.object_box, b.numpy(), a.probabilities, p.numpy())
