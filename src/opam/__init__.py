"""Object-Part Attention Model: fine-grained recognition from image labels alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opam.classifier import Classifier

__all__ = ["Classifier"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: a stage without networks must not load torch.
    if name == "Classifier":
        return import_module("opam.classifier").Classifier
    raise AttributeError(f"module 'opam' has no attribute '{name}'")
