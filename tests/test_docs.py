"""The documentation names what there is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "docs/reliability.md").read_text())


def test_promises_name_tests() -> None:
    assert len(NAMED) >= 15


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_every_promise_is_held_by_a_test_that_exists(file: str, test: str) -> None:
    source = (ROOT / "tests" / file).read_text()
    assert f"def {test or 'test_'}" in source
