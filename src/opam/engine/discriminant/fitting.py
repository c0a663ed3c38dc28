"""A network whose linear layers are discriminants, one for each kind of box."""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from opam.engine.discriminant.analysis import Discriminant, fit_discriminant
from opam.networks.backbones.backbone import Backbone
from opam.networks.cam_network import CamNetwork, Pooled
from opam.pipeline.params import Params

NAMED = ["image_id", "path", "sha256", "width", "height", "label", "group"]
"""Of the manifest, what rows with boxes have."""
Features = Callable[[pd.DataFrame, str], Iterator[np.ndarray]]
"""Of rows with boxes, and their name: float32 n x V x D piece by piece, the box itself first."""


class ProbeParams(Params):
    """What the probes are shown."""

    enabled: bool = Field(
        description="false: there are none, as where the networks are discriminants themselves"
    )
    input_size: int = Field(
        224, ge=32, le=2048, description="side of the crop of a photograph or object, pixels"
    )
    part_size: int = Field(224, ge=32, le=2048, description="side of the crop of a part, pixels")
    pooled: Pooled = Field(
        "mean",
        description="what they read of a crop: the mean of its maps, a transformer's class token, "
        "or both",
    )
    views: int = Field(
        8,
        ge=0,
        le=1000,
        description="random crops of each box that are seen beside the box and its mirror image",
    )


def whole_photographs(manifest: pd.DataFrame) -> pd.DataFrame:
    """`NAMED` of photographs, and the box of all that each shows."""
    named = manifest[NAMED]
    return named.assign(x0=0, y0=0, x1=named["width"], y1=named["height"])


def by_cluster(parts: pd.DataFrame, clusters: int) -> dict[str, pd.DataFrame]:
    """The rows of each cluster, by a name; one that no part went to gets those of all parts."""
    found = {}
    for cluster in range(clusters):
        own = parts[parts["cluster"] == cluster]
        found[f"parts of cluster {cluster}"] = own if len(own) else parts
    return found


def held_out(kinds: dict[str, pd.DataFrame], discriminants: list[Discriminant]) -> pd.DataFrame:
    """What each discriminant says of boxes that it was not fitted on, a row a box.

    Args:
        kinds: the rows of boxes that each was fitted on.
        discriminants: one for each of ``kinds``, which is its ``head``.

    Returns:
        The rows with ``head`` and ``probabilities``, photograph by photograph; of parts those of
        the head's own ``cluster``, for one that had none was fitted on those of others.
    """
    rows = [
        own.assign(head=head, probabilities=list(found.held_out))[found.known]
        for head, (own, found) in enumerate(zip(kinds.values(), discriminants, strict=True))
    ]
    found = pd.concat(rows).sort_values("image_id", kind="stable")
    return found[found["cluster"] == found["head"]] if "cluster" in found else found


def fit_network(
    backbone: Backbone,
    kinds: dict[str, pd.DataFrame],
    features: Features,
    classes: int,
    seed: int,
    device: torch.device,
    pooled: Pooled = "mean",
) -> tuple[CamNetwork, list[Discriminant]]:
    """The backbone with a discriminant for each kind of box, and the discriminants.

    Args:
        backbone: whose features these are.
        kinds: by a name for people, rows with a box, ``label`` and ``group``, one or more.
        features: gives those of rows.
        classes: number of classes.
        seed: of the folds.
        device: computes.
        pooled: which features these are.
    """
    found = []
    for name, rows in kinds.items():
        labels, groups = rows["label"].to_numpy(), rows["group"].to_numpy()
        own = partial(features, rows, name)
        found.append(fit_discriminant(own, labels, classes, seed, groups, device))
        print(
            f"discriminant of {name}: shrinkage {found[-1].shrinkage}, right in "
            f"{found[-1].accuracy:.1%} of the training photographs left out",
            file=sys.stderr,
            flush=True,
        )
    network = CamNetwork(backbone, classes, len(found), found[0].weights.shape[1], pooled)
    weights = np.concatenate([each.weights for each in found])
    bias = np.concatenate([each.bias for each in found])
    network.head.load_state_dict(
        {"weight": torch.from_numpy(weights).float(), "bias": torch.from_numpy(bias).float()}
    )
    return network, found
