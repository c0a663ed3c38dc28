"""The trained pipeline in one piece: a photograph in; object, parts and probabilities out.

A bundle is a folder with everything that takes: the networks, what was computed from the
training photographs (the common component, the clusters of neurons, the fusion weights), the
classes and the parameters of the steps. `stages/export_bundle.py` writes it; it needs nothing
else of the project's data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from PIL import Image

from opam.app.bundle import BUNDLE, FORMAT, NETWORKS
from opam.engine.crops import centre_boxes, cut
from opam.engine.scoring import by_cluster, probabilities
from opam.method.alignment import assign_parts
from opam.method.colocalization import ColocalizationParams, object_map
from opam.method.fusion import BRANCHES, FUSED, PROBE, Rule, branch_answers
from opam.method.objects import ObjectParams, chosen_map, find_object
from opam.method.parts import PartParams, choose_parts
from opam.method.proposals import ProposalParams, propose
from opam.method.saliency import SaliencyParams, merged_cam, ten_crops, to_image
from opam.networks.cam_network import read_network
from opam.networks.probe_network import read_probes
from opam.photographs.decoding.images import read_image, to_rgb
from opam.pipeline.artifacts import read_json
from opam.pipeline.device import ExecutionParams, autocast, prepare_device
from opam.pipeline.errors import OpamError
from opam.pipeline.params import section_of

STEPS: dict[str, Any] = {
    "proposals": ProposalParams,
    "saliency": SaliencyParams,
    "colocalization": ColocalizationParams,
    "objects": ObjectParams,
    "parts": PartParams,
    "mirrored": bool,
}
"""Sections of params.yaml that a bundle carries."""

WHOLE = np.array([[0.0, 0.0, 1.0, 1.0]])


def read_branch(bundle: Path, branch: str) -> tuple[Any, dict[str, Any]]:
    """Load a bundle's network for a key of `NETWORKS`, and its settings; raises as its reader."""
    read = read_probes if branch.endswith("probes") else read_network
    return read(bundle / f"{NETWORKS[branch]}.safetensors")


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
        object_fallback: "none", or what stood in for the object's map (`opam.method.objects`).
        part_fallback: "none", or the rule that was relaxed (`opam.method.parts.Selection`).
    """

    label: int
    class_name: str
    probabilities: dict[str, np.ndarray]
    object_box: np.ndarray
    parts: np.ndarray
    clusters: np.ndarray
    object_fallback: str
    part_fallback: str


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
            fusion = content["fusion"]
            self.rule: Rule = fusion["rule"]
            self.weights = {name: dict(fusion["weights"][name]) for name in (*BRANCHES, FUSED)}
            self.response: str = content["alignment"]["response"]
            self.clusters = np.array(content["alignment"]["cluster_of_neuron"], dtype=np.int64)
            self.mean = np.array(content["common"]["mean"], dtype=np.float64)
            self.component = np.array(content["common"]["component"], dtype=np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise OpamError(
                f"{path / BUNDLE}: not written by export_bundle ({error!r}); export it anew"
            ) from None
        self.steps: dict[str, Any] = {
            name: section_of(content, f"params.{name}", kind, path / BUNDLE)
            for name, kind in STEPS.items()
        }
        self.execution = execution
        self.device = prepare_device(execution)
        self.networks: dict[str, Any] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        for branch, name in NETWORKS.items():
            network, self.settings[branch] = read_branch(path, branch)
            if network.classes != len(self.classes):
                raise OpamError(
                    f"{path}: {name} tells {network.classes} classes apart, {BUNDLE} names "
                    f"{len(self.classes)}; export the bundle anew"
                )
            self.networks[branch] = network.to(self.device)

    @classmethod
    def load(cls, path: str | Path = "data/bundle", device: str = "auto") -> "Classifier":
        """Load a bundle.

        Args:
            path: folder that `export_bundle` wrote.
            device: "auto" (a GPU where there is one), "cpu" or "cuda".

        Raises:
            OpamError: files are missing, damaged, or do not fit each other.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise OpamError(f"device: unknown '{device}'; use auto, cpu or cuda")
        return cls(Path(path), ExecutionParams.model_validate({"device": device}))

    def __call__(self, image: np.ndarray | Image.Image | str | Path) -> Classification:
        """Classify one photograph: RGB uint8 H x W x 3, a Pillow image, or a path.

        Raises:
            OpamError: the file cannot be read, or the array is no RGB photograph.
        """
        return self.classify([image])[0]

    def classify(
        self, images: Sequence[np.ndarray | Image.Image | str | Path]
    ) -> list[Classification]:
        """Classify several photographs at once; their order stays.

        Raises:
            OpamError: as for one.
        """
        if not images:
            return []
        photographs = [as_array(image) for image in images]
        workers = Parallel(n_jobs=max(1, self.execution.workers), prefer="threads")
        proposals = workers(delayed(propose)(each, self.steps["proposals"]) for each in photographs)
        sizes = np.array([image.shape[1::-1] for image in photographs])
        cams = self._cams(photographs)
        common = self._common_maps(photographs)

        boxes, parts, fallbacks = [], [], []
        for size, cam, shared, candidates in zip(sizes, cams, common, proposals, strict=True):
            width, height = size
            found = to_image(chosen_map(cam, shared, self.steps["objects"]), height, width)
            box, fallback = find_object(found, self.steps["objects"].threshold)
            chosen, selection = choose_parts(
                to_image(cam, height, width), np.array(box), candidates, self.steps["parts"]
            )
            boxes.append(np.array(box, dtype=np.int32))
            parts.append(chosen)
            fallbacks.append((fallback, selection.fallback))
        clusters = self._clusters(photographs, parts)

        whole = [np.array([[0, 0, *size]]) for size in sizes]
        first = [np.zeros(1, dtype=np.int64)] * len(images)
        by_parts = self._scores("part", photographs, parts, clusters)
        own = {
            "original": self._scores("original", photographs, whole, first)[0],
            "object": self._scores("object", photographs, [box[None] for box in boxes], first)[0],
            **{f"cluster {cluster}": each for cluster, each in enumerate(by_parts)},
        }
        if any(name.endswith(PROBE) for name in self.weights[FUSED]):
            both = [np.vstack(each) for each in zip(whole, boxes, strict=True)]
            by_probes = [
                *self._scores("probes", photographs, both, [np.arange(2)] * len(both)),
                *self._scores("part probes", photographs, parts, clusters),
            ]
            own |= {name + PROBE: each for name, each in zip([*own], by_probes, strict=True)}
        told = branch_answers(own, self.weights, self.rule)
        scores = {name: each.astype(np.float32) for name, each in told.items()}
        labels = scores["fused"].argmax(1)
        return [
            Classification(
                int(label),
                self.classes[label],
                {name: each[i] for name, each in scores.items()},
                boxes[i],
                parts[i],
                clusters[i],
                *fallbacks[i],
            )
            for i, label in enumerate(labels)
        ]

    @torch.inference_mode()
    def _cams(self, images: list[np.ndarray]) -> list[np.ndarray]:
        network, params = self.networks["original"], self.steps["saliency"]
        boxes, mirrored = ten_crops()
        weights = network.head.weight.float().cpu().numpy()
        found = []
        for image in images:
            shown = boxes * np.tile(image.shape[1::-1], 2)
            crops = cut(image, shown, params.input_size, mirrored).to(self.device)
            with autocast(self.device):
                features = network.backbone(crops).float()
                logits = network.head(features.mean((2, 3))).float()
            _, cam = merged_cam(
                features.cpu().numpy(), logits.cpu().numpy(), weights, params.map_size
            )
            found.append(cam)
        return found

    @torch.inference_mode()
    def _common_maps(self, images: list[np.ndarray]) -> list[np.ndarray | None]:
        if self.steps["objects"].map != "colocalization":
            return [None] * len(images)
        backbone, params = self.networks["probes"].backbone, self.steps["colocalization"]
        found: list[np.ndarray | None] = []
        for image in images:
            boxes = np.repeat(WHOLE, 2, axis=0) * np.tile(image.shape[1::-1], 2)
            crops = cut(image, boxes, params.input_size, [False, True]).to(self.device)
            with autocast(self.device):
                views = backbone.feature_maps(crops, params.layer).float().cpu().numpy()
            found.append(object_map(views, self.mean, self.component))
        return found

    @torch.inference_mode()
    def _clusters(self, images: list[np.ndarray], parts: list[np.ndarray]) -> list[np.ndarray]:
        found = []
        for image, boxes in zip(images, parts, strict=True):
            size = self.settings["original"]["input_size"]
            crops = cut(image, boxes, size).to(self.device)
            with autocast(self.device):
                responses = self.networks["original"].neuron_responses(crops, self.response)
            found.append(assign_parts(responses.float().cpu().numpy(), self.clusters))
        return found

    def _scores(
        self,
        branch: str,
        images: list[np.ndarray],
        boxes: list[np.ndarray],
        heads: list[np.ndarray],
    ) -> np.ndarray:
        """Float heads x B x C: by the crops of each head, their mean."""
        settings = self.settings[branch]
        size, fraction = settings["input_size"], settings["input_size"] / settings["resize"]
        crops = [
            cut(image, centre_boxes(each, fraction), size)
            for image, each in zip(images, boxes, strict=True)
        ]
        shown = torch.cat(crops).to(self.device)
        every = probabilities(self.networks[branch], shown, self.steps["mirrored"]).cpu().numpy()
        own = every[np.arange(len(every)), np.concatenate(heads)]
        return by_cluster(own, heads, self.networks[branch].heads)


def as_array(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """uint8 H x W x 3, RGB.

    Raises:
        OpamError: the file cannot be read, the array has another shape or type, or a Pillow image
            has samples of unknown range (`opam.photographs.decoding.depth`).
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise OpamError(
            f"photograph: an array of {image.dtype} {image.shape}; give uint8 height x width x 3"
        )
    return image
