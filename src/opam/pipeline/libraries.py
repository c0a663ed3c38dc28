"""torch, timm and torchvision without torch's compiler, as long as nothing is compiled.

torchvision asks the compiler one question, and timm marks one function for it, as they are loaded;
for that all of it is loaded: a third of the time before a stage begins to work. Here both wait
until they are asked for. torch's optimizers load it too, to keep it away from themselves; see
`without_compiler`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from types import ModuleType
from typing import Any

import torch  # first, and whole
from torch.overrides import TorchFunctionMode

COMPILER = ("torch._dynamo", "torch._dynamo.utils")


class _Later(ModuleType):
    """A stand-in whose functions load the module when what they make is called."""

    __path__: list[str] = []  # noqa: RUF012  as of a package: there are modules in it

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def function(*values: Any, **named: Any) -> Any:
            @cache
            def found() -> Any:
                return getattr(import_module(self.__name__), name)(*values, **named)

            if not (values and callable(values[0])):
                return found()
            return wraps(values[0])(lambda *inner, **more: found()(*inner, **more))

        return function


def _loaded() -> tuple[Any, Any]:
    missing = [name for name in COMPILER if name not in sys.modules]
    sys.modules.update({name: _Later(name) for name in missing})
    try:
        import_module("torchvision.ops")
        return import_module("timm"), import_module("torchvision")
    finally:
        for name in missing:
            del sys.modules[name]


class _Absent(ModuleType):
    """What torch's compiler is to code that it does not compile; asked for more, it is loaded."""

    @staticmethod
    def disable(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        return function

    @staticmethod
    def graph_break() -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Run what only tells torch's compiler to leave it alone: it is not loaded for that.

    For optimizers, and for counting operations, of networks that are not compiled; where the
    compiler is loaded already this does nothing.
    """
    name = COMPILER[0]
    if name in sys.modules:
        yield
        return
    sys.modules[name] = absent = _Absent(name)
    try:
        yield
    finally:
        if sys.modules.get(name) is absent:
            del sys.modules[name]


DRAWN = {
    *("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_"),
    *("xavier_normal_", "xavier_uniform_", "erfinv_", "mul_", "add_", "clamp_"),
}
"""Functions of torch that draw a network's first weights, in place."""


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), named: Any = None
    ) -> Any:
        named = named or {}
        if getattr(function, "__name__", "") in DRAWN:
            return args[0] if args else named["tensor"]
        return function(*args, **named)


@contextmanager
def without_weights() -> Iterator[None]:
    """Build networks on torch's meta device: of shapes alone.

    Nor is anything drawn; torch would load an algebra system for that.
    """
    with torch.device("meta"), _NothingDrawn(), without_compiler():
        yield


timm, torchvision = _loaded()
__all__ = ["timm", "torch", "torchvision", "without_compiler", "without_weights"]
