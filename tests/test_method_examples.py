"""The steps of the method run as their modules say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

METHOD = Path(__file__).parents[1] / "src/opam/method"
BESIDE = ("evaluation.doubts", "evaluation.hierarchy")


@pytest.mark.parametrize(
    "name", [*(f"method.{path.stem}" for path in sorted(METHOD.glob("[a-z]*.py"))), *BESIDE]
)
def test_the_example_of_a_step_gives_what_it_says(name: str) -> None:
    found = doctest.testmod(import_module(f"opam.{name}"))
    assert found.attempted >= 1
    assert found.failed == 0
