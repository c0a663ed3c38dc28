"""The steps of the method run as their modules say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

METHOD = Path(__file__).parents[1] / "src/opam/method"


@pytest.mark.parametrize("name", sorted(path.stem for path in METHOD.glob("[a-z]*.py")))
def test_the_example_of_a_step_gives_what_it_says(name: str) -> None:
    found = doctest.testmod(import_module(f"opam.method.{name}"))
    assert found.attempted >= 1
    assert found.failed == 0
