"""Why a photograph got its answer: what tells it from the runner-up, and what is known like both.

A network's answer is linear in its feature maps, so the lead of the answer over the runner-up falls
to the places of the crop without remainder (`opam.method.saliency.difference_maps`). Shown is
ObjectNet on the object, the finest view; where it reads a class token, of which no place can be
told, ClassNet on the whole photograph. The known photographs are those that were trained on; near
is what `opam.networks.familiarity` calls near.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from opam.app.bundle import KNOWN
from opam.app.classifier import WHOLE, Classification, Classifier, LookedAt, in_file, in_pixels
from opam.engine.crops.cutting import centre_boxes
from opam.method.fusion import BRANCHES
from opam.method.saliency import difference_maps
from opam.networks.cam_network import pooled_features
from opam.photographs.decoding.images import decode_image
from opam.pipeline.artifacts import BOX, read_table
from opam.pipeline.errors import OpamError
from opam.report.panels import (
    BRANCH_COLOURS,
    COLOURS,
    HEIGHT,
    WIDTH,
    Panel,
    Sketch,
    bars,
    gallery,
    sheet,
    stacked,
)

NEAREST = 3
"""Known photographs of a class that are shown."""
BARS = 72
"""Pixels that the bars of one class are high."""
SHOWN = (*BRANCHES, "fused")
NAMES = {"object": "ObjectNet", "original": "ClassNet"}


class Neighbour(NamedTuple):
    """A known photograph: its name, the cosine of both, -1..1, and its object, a JPEG file."""

    image_id: str
    similarity: float
    picture: bytes


@dataclass(frozen=True)
class Known:
    """The photographs that a bundle was trained on.

    Attributes:
        image_ids: N of str.
        labels: int N.
        features: float32 N x D, each of length 1.
        pictures: N JPEG files.
    """

    image_ids: np.ndarray
    labels: np.ndarray
    features: torch.Tensor
    pictures: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """Why the answer, and not the runner-up.

    Attributes:
        labels: of the answer and the runner-up.
        branch: "object" or "original": whose network is explained.
        box: int32 4, what the map covers, pixels of the upright photograph.
        map: float64 h x w: what each place adds to the lead of the answer, in logits.
        bias: what no place adds; with the sum of the map it is the difference of both logits.
        nearest: of the answer and of the runner-up the known photographs, the nearest first.
    """

    labels: tuple[int, int]
    branch: str
    box: np.ndarray
    map: np.ndarray
    bias: float
    nearest: tuple[list[Neighbour], list[Neighbour]]


def read_known(classifier: Classifier) -> Known:
    """The photographs that the bundle was trained on.

    Raises:
        OpamError: the bundle lacks them, they are damaged or do not fit the rest.
    """
    path = classifier.path / KNOWN
    if not path.exists():
        raise OpamError(f"{path}: not found; --explain shows photographs of it: export it anew")
    table = read_table(path, "known")
    labels, width = table["label"].to_numpy(), len(classifier.familiarity.centre)
    fits = labels.size and labels.min() >= 0 and labels.max() < len(classifier.classes)
    if not fits or {*map(len, table["features"])} != {width}:
        raise OpamError(f"{path}: does not fit the rest of the bundle; export it anew")
    features = torch.from_numpy(np.stack([*table["features"]]).astype(np.float32))
    return Known(table["image_id"].to_numpy(), labels, features, table["picture"].to_numpy())


def explain(
    classifier: Classifier,
    known: Known,
    looked_at: Sequence[LookedAt],
    found: Sequence[Classification],
) -> list[Explanation]:
    """Explain what ``classifier`` found of each photograph; their order stays.

    What is mirrored for its score is explained as it is.
    """
    if not looked_at:
        return []
    photographs = [each.photograph.pixels for each in looked_at]
    boxes = [
        in_pixels(own.object_box, each.photograph)[None]
        for own, each in zip(found, looked_at, strict=True)
    ]
    branch = "object" if classifier.networks["object"].pooled == "mean" else "original"
    shown = boxes
    if branch == "original":
        shown = [WHOLE * np.tile(image.shape[1::-1], 2) for image in photographs]
    settings, network = classifier.settings[branch], classifier.networks[branch]
    fraction = settings["input_size"] / settings["resize"]

    def maps_of(crops: torch.Tensor) -> tuple[torch.Tensor]:
        return (network.maps_and_logits(network.maps(crops))[0],)

    batches = classifier.batches(photographs, shown, settings["input_size"], fraction=fraction)
    [features] = classifier.forward(network, maps_of, batches)
    labels = np.array(
        [np.argsort(-each.probabilities["fused"], kind="stable")[:2] for each in found]
    )
    weights = network.head.weight.detach().double().cpu().numpy()
    bias = network.head.bias.detach().double().cpu().numpy()
    maps = difference_maps(features, *(weights[own] for own in labels.T))
    near = _whitened(classifier, photographs, boxes) @ known.features.T
    return [
        Explanation(
            (int(label[0]), int(label[1])),
            branch,
            in_file(centre_boxes(shown[place], fraction)[0], looked_at[place].photograph),
            maps[place],
            float(bias[label[0]] - bias[label[1]]),
            (nearest(known, near[place], label[0]), nearest(known, near[place], label[1])),
        )
        for place, label in enumerate(labels)
    ]


def nearest(known: Known, similarity: torch.Tensor, label: int) -> list[Neighbour]:
    """The known photographs of a class that are most similar (N of all), at most `NEAREST`."""
    own = np.flatnonzero(known.labels == label)
    values = similarity.numpy()[own]
    best = np.argsort(-values, kind="stable")[:NEAREST]
    return [
        Neighbour(str(known.image_ids[row]), float(value), known.pictures[row])
        for row, value in zip(own[best], values[best], strict=True)
    ]


def _whitened(
    classifier: Classifier, photographs: list[np.ndarray], boxes: list[np.ndarray]
) -> torch.Tensor:
    """Float32 B x D of length 1, as `Known` has them, of the objects."""
    backbone, params = classifier.networks["probes"].backbone, classifier.familiar

    def whitened(crops: torch.Tensor) -> tuple[torch.Tensor]:
        features = pooled_features(backbone, crops, params["pooled"])
        return (normalize(classifier.familiarity.whitened(features)),)

    batches = classifier.batches(photographs, boxes, params["input_size"])
    [features] = classifier.forward(backbone, whitened, batches)
    return torch.from_numpy(features)


def as_json(
    name: str, found: Classification, explained: Explanation, classes: Sequence[str]
) -> dict[str, Any]:
    """The numbers of an explanation, of values that JSON has; ``name``: of the photograph."""

    def box_of(box: np.ndarray) -> dict[str, int]:
        return dict(zip(BOX, map(int, box), strict=True))

    sides = {}
    for side, label, near in zip(
        ("answer", "runner_up"), explained.labels, explained.nearest, strict=True
    ):
        sides[side] = {
            "class": classes[label],
            **{branch: round(float(found.probabilities[branch][label]), 6) for branch in SHOWN},
            "nearest": [
                {"photograph": each.image_id, "similarity": round(each.similarity, 6)}
                for each in near
            ],
        }
    parts = zip(found.parts, found.clusters, strict=True)
    return {
        "photograph": name,
        **sides,
        "familiarity": round(found.familiarity, 6),
        "object": box_of(found.object_box),
        "parts": [{"cluster": int(cluster), **box_of(box)} for box, cluster in parts],
        "network": NAMES[explained.branch],
        "difference": round(float(explained.map.sum()) + explained.bias, 6),
        "bias": round(explained.bias, 6),
        "map_box": box_of(explained.box),
        "map": explained.map.round(6).tolist(),
    }


def drawing(
    image: np.ndarray,
    name: str,
    found: Classification,
    explained: Explanation,
    classes: Sequence[str],
) -> Image.Image:
    """One sheet: object and parts, the map of what tells both apart, what is known like either.

    Args:
        image: uint8 H x W x 3, as in its file, upright.
        name: of the photograph.
        found: what the pipeline says of it.
        explained: why.
        classes: names, by label.
    """
    answer, other = (classes[label] for label in explained.labels)
    whole = Sketch(image)
    whole.boxes([found.object_box], "white", width=3)
    for box, cluster in zip(found.parts, found.clusters, strict=True):
        whole.boxes([box], COLOURS[cluster % len(COLOURS)], width=3)
    caption = f"white: object; colours: parts; familiarity {found.familiarity:.2f}"
    x0, y0, x1, y1 = explained.box
    crop = Sketch(image[y0:y1, x0:x1])
    crop.signed(explained.map)
    difference = float(explained.map.sum()) + explained.bias
    told = (
        f"{NAMES[explained.branch]}: red speaks for {answer}, blue for {other}; "
        f"the answer leads by {difference:+.1f} in logits"
    )
    panels = [
        Panel("Photograph", whole.picture, caption),
        Panel("What tells the two apart", crop.picture, told),
    ]
    titles = "Answer", "Runner-up"
    for title, label, near in zip(titles, explained.labels, explained.nearest, strict=True):
        pictures = [
            (decode_image(each.picture, each.image_id), f"{each.similarity:.2f}") for each in near
        ]
        values = [float(found.probabilities[branch][label]) for branch in SHOWN]
        by_branch = bars([("by " + ", ".join(SHOWN), values)], BRANCH_COLOURS)
        picture = stacked([gallery(pictures, NEAREST), by_branch.crop((0, 0, WIDTH, BARS))])
        told = "above: the nearest photographs of training, and how near they are"
        panels.append(Panel(f"{title}: {classes[label]}", picture, told))
    made = sheet(f"{name}: {answer} {found.probabilities['fused'].max():.0%}", panels, columns=2)
    return made.crop((0, 0, made.width, made.height - HEIGHT + panels[-1].picture.height))
