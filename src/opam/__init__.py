"""Object-Part Attention Model: fine-grained recognition from image labels alone."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opam.app.classifier import Classifier

# Threads that wait for each other sleep instead of spinning: as fast where the cores are free, and
# several times faster where something else wants one of them. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__all__ = ["Classifier"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: a stage without networks must not load torch.
    if name == "Classifier":
        return import_module("opam.app.classifier").Classifier
    raise AttributeError(f"module 'opam' has no attribute '{name}'")
