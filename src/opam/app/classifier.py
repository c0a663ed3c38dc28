"""The trained pipeline in one piece: a photograph in; object, parts and probabilities out.

A bundle is a folder with everything that takes: the networks, what was computed from the
training photographs (the common component, the clusters of neurons, the fusion weights), the
classes and the parameters of the steps. `stages/export_bundle.py` writes it; it needs nothing
else of the project's data.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from joblib import Parallel, delayed

from opam.app.bundle import BUNDLE, FAMILIARITY, FORMAT, KNOWN, NETWORKS, WEIGHTS
from opam.engine.crops.batches import CropBatches
from opam.engine.forward import forward, whole_groups
from opam.engine.scoring import by_cluster, probabilities
from opam.evaluation.hierarchy import probabilities_by_level
from opam.method.alignment import assign_parts
from opam.method.colocalization import ColocalizationParams, Direction, object_maps
from opam.method.fusion import BRANCHES, FUSED, PROBE, Rule, branch_answers
from opam.method.objects import ObjectParams, chosen_map, object_crops, object_or_window
from opam.method.parts import PartParams, choose_parts
from opam.method.proposals import ProposalParams, propose
from opam.method.saliency import (
    SaliencyParams,
    merge_views,
    predicted_class_maps,
    to_image,
    views_of,
)
from opam.networks.backbones.backbone import fold_batch_norm
from opam.networks.cam_network import pooled_features, read_network
from opam.networks.familiarity import read_familiarity
from opam.photographs.decoding.images import (
    Photograph,
    bounded_size,
    read_photograph,
    resized,
    to_rgb,
)
from opam.pipeline.artifacts import read_json
from opam.pipeline.device import ExecutionParams, prepare_device
from opam.pipeline.errors import OpamError
from opam.pipeline.params import section_of

STEPS: dict[str, Any] = {
    "proposals": ProposalParams,
    "saliency": SaliencyParams,
    "colocalization": ColocalizationParams,
    "objects": ObjectParams,
    "parts": PartParams,
    "mirrored": bool,
    "max_side": int,
}
"""Parameters that a bundle carries: sections of params.yaml, ``mirrored``, prepare's max_side."""

Image = np.ndarray | PIL.Image.Image | str | Path | Photograph
"""RGB uint8 H x W x 3, a Pillow image, a path, or what is decoded from one."""

WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])


@dataclass(frozen=True)
class LookedAt:
    """A photograph before any network sees it.

    Attributes:
        photograph: at most max_side pixels a side.
        proposals: int32 N x 4, patches, pixels of it.
    """

    photograph: Photograph
    proposals: np.ndarray


@dataclass(frozen=True)
class Classification:
    """What the pipeline says of one photograph.

    Attributes:
        label: most probable class, 0..C-1.
        class_name: its name.
        probabilities: float32 C by original, object, part and fused.
        object_box: int32 4: x0, y0, x1, y1, half-open, pixels of the upright photograph.
        parts: int32 n x 4, as ``object_box``.
        clusters: int n, the cluster of neurons that each part belongs to.
        familiarity: share of known photographs, each judged without itself, that lie no nearer to
            what is known than this one, 0..1 (`opam.networks.familiarity`).
        object_fallback: "none", or what stood in for the object's map (`opam.method.objects`).
        part_fallback: "none", or the rule that was relaxed (`opam.method.parts.Selection`).
        by_level: fused probability of each class by name, and of each parent at every level that
            the training photographs had, from the finest.
    """

    label: int
    class_name: str
    probabilities: dict[str, np.ndarray]
    object_box: np.ndarray
    parts: np.ndarray
    clusters: np.ndarray
    familiarity: float
    object_fallback: str
    part_fallback: str
    by_level: Sequence[Mapping[str, float]] = ()


class Classifier:
    """A loaded bundle; see `Classifier.load`."""

    def __init__(self, path: Path, execution: ExecutionParams) -> None:
        content = read_json(path / BUNDLE)
        try:
            if content["format"] != FORMAT:
                raise OpamError(
                    f"{path / BUNDLE}: format {content['format']!r}, this version reads {FORMAT}; "
                    "export it anew"
                )
            self.classes: list[str] = [str(name) for name in content["classes"]]
            self.levels: list[list[str]] = [[*map(str, level)] for level in content["parents"]]
            if any(len(level) != len(self.classes) for level in self.levels):
                raise ValueError("parents")
            fusion = content["fusion"]
            self.rule: Rule = fusion["rule"]
            self.weights = {name: dict(fusion["weights"][name]) for name in (*BRANCHES, FUSED)}
            self.response: str = content["alignment"]["response"]
            self.clusters = np.array(content["alignment"]["cluster_of_neuron"], dtype=np.int64)
            common = content["common"]
            self.direction = Direction(
                np.array(common["mean"], dtype=np.float64),
                np.array(common["component"], dtype=np.float64),
                float(common["intercept"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise OpamError(
                f"{path / BUNDLE}: not written by export_bundle ({error!r}); export it anew"
            ) from None
        self.steps: dict[str, Any] = {
            name: section_of(content, f"params.{name}", kind, path / BUNDLE)
            for name, kind in STEPS.items()
        }
        self.path = path
        self.execution = execution
        self.device = prepare_device(execution)
        self.networks: dict[str, Any] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        for branch, name in NETWORKS.items():
            network, self.settings[branch] = read_network(path / f"{name}.safetensors")
            if network.classes != len(self.classes):
                raise OpamError(
                    f"{path}: {name} tells {network.classes} classes apart, {BUNDLE} names "
                    f"{len(self.classes)}; export the bundle anew"
                )
            fold_batch_norm(network)
            self.networks[branch] = network.to(self.device)
        self.familiarity, self.familiar = read_familiarity(path / f"{FAMILIARITY}.safetensors")
        self.familiarity.to(self.device)

    @cached_property
    def digest(self) -> str:
        """`digest_of` the bundle: asked for by predictions that may go on, and by nothing else."""
        return digest_of(self.path)

    @classmethod
    def load(
        cls,
        path: str | Path = "data/bundle",
        device: str = "auto",
        workers: int = 2,
        batch_size: int = 64,
    ) -> "Classifier":
        """Load a bundle.

        Args:
            path: folder that `export_bundle` wrote.
            device: "auto" (a GPU where there is one), "cpu" or "cuda".
            workers: threads that read photographs and cut crops.
            batch_size: crops that go through a network together.

        Raises:
            OpamError: files are missing, damaged, or do not fit each other.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise OpamError(f"device: unknown '{device}'; use auto, cpu or cuda")
        how = {"device": device, "workers": workers, "batch_size": batch_size}
        return cls(Path(path), ExecutionParams.model_validate(how))

    def __call__(self, image: Image) -> Classification:
        """Classify one photograph.

        Raises:
            OpamError: the file cannot be read, or the array is no RGB photograph.
        """
        return self.classify([image])[0]

    def classify(self, images: Sequence[Image]) -> list[Classification]:
        """Classify several photographs at once; their order stays.

        Raises:
            OpamError: as for one.
        """
        workers = Parallel(n_jobs=max(1, self.execution.workers), prefer="threads")
        return self.classify_looked_at(workers(delayed(self.look)(image) for image in images))

    def look(self, image: Image) -> LookedAt:
        """Read a photograph and propose its patches: all that needs no network.

        Raises:
            OpamError: the file cannot be read, or the array is no RGB photograph.
        """
        photograph = as_photograph(image, self.steps["max_side"])
        return LookedAt(photograph, propose(photograph.pixels, self.steps["proposals"]))

    def classify_looked_at(self, looked_at: Sequence[LookedAt]) -> list[Classification]:
        """Classify photographs that were looked at; their order stays."""
        if not looked_at:
            return []
        photographs = [each.photograph.pixels for each in looked_at]
        proposals = [each.proposals for each in looked_at]
        sizes = np.array([image.shape[1::-1] for image in photographs])
        cams = self._cams(photographs)
        common = self._common_maps(photographs)

        boxes, crops, parts, fallbacks = [], [], [], []
        for size, cam, shared, candidates in zip(sizes, cams, common, proposals, strict=True):
            width, height = size
            found = to_image(chosen_map(cam, shared, self.steps["objects"]), height, width)
            box, fallback = object_or_window(found, cam, self.steps["objects"])
            chosen, selection = choose_parts(
                to_image(cam, height, width), np.array(box), candidates, self.steps["parts"]
            )
            boxes.append(np.array(box, dtype=np.int32))
            crops.append(np.array(object_crops(box, fallback, width, height)))
            parts.append(chosen)
            fallbacks.append((fallback, selection.fallback))
        clusters = self._clusters(photographs, parts)

        whole = [np.array([[0, 0, *size]]) for size in sizes]
        first = [np.zeros(1, dtype=np.int64)] * len(whole)
        by_parts = self._scores("part", photographs, parts, clusters)
        own = {
            "original": self._scores("original", photographs, whole, first)[0],
            "object": self._scores("object", photographs, crops, [0 * c[:, 0] for c in crops])[0],
            **{f"cluster {cluster}": each for cluster, each in enumerate(by_parts)},
        }
        if any(name.endswith(PROBE) for name in self.weights[FUSED]):
            both = [np.vstack(each) for each in zip(whole, crops, strict=True)]
            heads = [np.arange(len(each)).clip(max=1) for each in both]
            by_probes = [
                *self._scores("probes", photographs, both, heads),
                *self._scores("part probes", photographs, parts, clusters),
            ]
            own |= {name + PROBE: each for name, each in zip([*own], by_probes, strict=True)}
        familiarity = self._familiarity(photographs, boxes)
        told = branch_answers(own, self.weights, self.rule)
        scores = {name: each.astype(np.float32) for name, each in told.items()}
        labels = scores["fused"].argmax(1)
        return [
            Classification(
                int(label),
                self.classes[label],
                {name: each[i] for name, each in scores.items()},
                in_file(boxes[i], looked_at[i].photograph),
                in_file(parts[i], looked_at[i].photograph),
                clusters[i],
                float(familiarity[i]),
                *fallbacks[i],
                by_level=probabilities_by_level(scores["fused"][i], self.classes, self.levels),
            )
            for i, label in enumerate(labels)
        ]

    def batches(
        self,
        images: list[np.ndarray],
        boxes: list[np.ndarray],
        size: int,
        mirrored: list[bool] | None = None,
        **shown: Any,
    ) -> CropBatches:
        """Crops of photographs, as `CropBatches` has them."""
        group = len(mirrored or "1")
        return CropBatches(
            *(range(len(images)), boxes, size, whole_groups(group, self.execution), mirrored),
            **shown,
            read=images.__getitem__,
        )

    def forward(
        self, network: Any, function: Any, batches: CropBatches, group: int = 1
    ) -> list[np.ndarray]:
        """What ``function`` gives of all crops, each of its results joined."""
        found = forward(network, function, batches, self.execution, "", group=group, shown=False)
        return [np.concatenate(each) for each in zip(*found, strict=True)]

    def _cams(self, images: list[np.ndarray]) -> list[np.ndarray]:
        network, params = self.networks["original"], self.steps["saliency"]
        boxes, mirrored = views_of(params.crops)

        def maps_of(crops: torch.Tensor) -> tuple[torch.Tensor, ...]:
            features, logits = network.maps_and_logits(network.maps(crops))
            return predicted_class_maps(features, logits, network.head.weight.double(), len(boxes))

        every = [boxes] * len(images)
        views = self.batches(images, every, params.input_size, mirrored, unit=True)
        _, maps = self.forward(network, maps_of, views, len(boxes))
        return [merge_views(each, boxes, mirrored, params.map_size) for each in maps]

    def _common_maps(self, images: list[np.ndarray]) -> Sequence[np.ndarray | None]:
        if self.steps["objects"].map != "colocalization":
            return [None] * len(images)
        backbone, params = self.networks["probes"].backbone, self.steps["colocalization"]

        def maps_of(crops: torch.Tensor) -> tuple[torch.Tensor]:
            features = backbone.shared_maps(crops, params.layer)
            return (object_maps(features, self.direction),)

        every = [np.repeat(WHOLE, 2, axis=0)] * len(images)
        views = self.batches(images, every, params.input_size, [False, True], unit=True)
        [maps] = self.forward(backbone, maps_of, views, 2)
        return list(maps)

    def _clusters(self, images: list[np.ndarray], parts: list[np.ndarray]) -> list[np.ndarray]:
        network = self.networks["original"]

        def responses_of(crops: torch.Tensor) -> tuple[torch.Tensor]:
            return (network.neuron_responses(crops, self.response),)

        batches = self.batches(images, parts, self.settings["original"]["input_size"])
        [responses] = self.forward(network, responses_of, batches)
        own = np.split(responses, np.cumsum(batches.counts)[:-1])
        return [assign_parts(each, self.clusters) for each in own]

    def _familiarity(self, images: list[np.ndarray], objects: list[np.ndarray]) -> np.ndarray:
        """Float B, 0..1, of the objects alone."""
        backbone, params = self.networks["probes"].backbone, self.familiar

        def familiar(crops: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.familiarity(pooled_features(backbone, crops, params["pooled"])),)

        boxes = [box[None] for box in objects]
        [found] = self.forward(
            backbone, familiar, self.batches(images, boxes, params["input_size"])
        )
        return found

    def _scores(
        self,
        branch: str,
        images: list[np.ndarray],
        boxes: list[np.ndarray],
        heads: list[np.ndarray],
    ) -> np.ndarray:
        """Float heads x B x C: by the crops of each head, their mean."""
        network, settings = self.networks[branch], self.settings[branch]

        def scored(crops: torch.Tensor) -> tuple[torch.Tensor]:
            return (probabilities(network, crops, self.steps["mirrored"]),)

        fraction = settings["input_size"] / settings["resize"]
        batches = self.batches(images, boxes, settings["input_size"], fraction=fraction)
        [every] = self.forward(network, scored, batches)
        own = every[np.arange(len(every)), np.concatenate(heads)]
        return by_cluster(own, heads, network.heads)


def digest_of(bundle: Path) -> str:
    """SHA-256 of a bundle's files, hexadecimal; raises `OpamError` where one is missing."""
    found = hashlib.sha256()
    try:
        known = [KNOWN] if (bundle / KNOWN).exists() else []
        for name in (BUNDLE, *(f"{each}.safetensors" for each in WEIGHTS), *known):
            with (bundle / name).open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise OpamError(f"{bundle / name}: {error.strerror}; export the bundle anew") from None
    return found.hexdigest()


def as_photograph(image: Image, side: int) -> Photograph:
    """A photograph of at most ``side`` pixels a side.

    Raises:
        OpamError: the file cannot be read, the array has another shape or type, or a Pillow image
            has samples of unknown range (`opam.photographs.decoding.depth`).
    """
    if isinstance(image, Photograph):
        return image
    if isinstance(image, str | Path):
        return read_photograph(image, side)
    if isinstance(image, PIL.Image.Image):
        image = np.asarray(to_rgb(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise OpamError(
            f"photograph: an array of {image.dtype} {image.shape}; give uint8 height x width x 3"
        )
    height, width = image.shape[:2]
    return Photograph(resized(image, bounded_size(width, height, side)), width, height, None)


def in_file(boxes: np.ndarray, photograph: Photograph) -> np.ndarray:
    """Boxes in ``photograph.pixels``, ... x 4, in pixels of the file: int32."""
    return np.rint(boxes * _factors(photograph)).astype(np.int32)


def in_pixels(boxes: np.ndarray, photograph: Photograph) -> np.ndarray:
    """What `in_file` was given: the file has as many pixels or more, so nothing is lost."""
    return np.rint(boxes / _factors(photograph)).astype(np.int32)


def _factors(photograph: Photograph) -> np.ndarray:
    rows, columns = photograph.pixels.shape[:2]
    return np.array([photograph.width / columns, photograph.height / rows] * 2)
