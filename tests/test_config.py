"""Parameters: what is wrong is named by its dotted name."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from opam.pipeline.errors import OpamError
from opam.pipeline.params import SECTIONS, Params, params_path, read_params, read_yaml

ROOT = Path(__file__).parents[1]


class Inner(Params):
    count: int = Field(ge=1)


class Outer(Params):
    name: Literal["red", "green"]
    share: float = Field(0.5, gt=0, lt=1)
    inner: Inner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def write(path: Path, **changes: object) -> None:
    dataset = {"name": "red", "share": 0.2, "inner": {"count": 3}, **changes}
    path.write_text(repr({"seed": 5, "dataset": dataset}))  # a dict's repr is YAML here


def test_sections_become_types(path: Path) -> None:
    write(path)
    outer = read_params("dataset", Outer, path)
    assert outer == Outer(name="red", share=0.2, inner=Inner(count=3))
    assert read_params("seed", int, path) == 5
    assert read_params("dataset.inner", Inner, path) == Inner(count=3)
    assert read_params("dataset.inner.count", int, path) == 3


def test_params_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Inner(count=1).count = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shore": 1}, r"unknown parameter 'dataset\.shore'; remove it or correct its spelling"),
        ({"inner": {"count": 1, "cuont": 2}}, r"unknown parameter 'dataset\.inner\.cuont'"),
        ({"inner": {}}, r"parameter 'dataset\.inner\.count' is missing; add it"),
        ({"inner": {"count": 0}}, r"parameter 'dataset\.inner\.count' is 0: .*greater than"),
        ({"inner": {"count": "3"}}, r"parameter 'dataset\.inner\.count' is '3': .*integer"),
        ({"inner": {"count": 3.0}}, r"parameter 'dataset\.inner\.count' is 3\.0: .*integer"),
        ({"share": "1e-9"}, r"dataset\.share.*to YAML it is text: write 1\.0e-9"),
        ({"share": 1.0}, r"parameter 'dataset\.share' is 1\.0: .*less than 1"),
        ({"name": "blue"}, r"parameter 'dataset\.name' is 'blue': .*'red' or 'green'"),
        ({"inner": 4}, r"parameter 'dataset\.inner' is 4"),
    ],
)
def test_wrong_values_are_named(path: Path, changes: dict, message: str) -> None:
    write(path, **changes)
    with pytest.raises(OpamError, match=message) as caught:
        read_params("dataset", Outer, path)
    assert str(caught.value).startswith(f"{path}: ")


def test_all_wrong_values_at_once(path: Path) -> None:
    write(path, share=2.0, name="blue", other=1)
    with pytest.raises(OpamError) as caught:
        read_params("dataset", Outer, path)
    for name in ("share", "name", "other"):
        assert f"'dataset.{name}'" in str(caught.value)


def test_scalar_of_the_wrong_type(path: Path) -> None:
    path.write_text("seed: true\n")
    with pytest.raises(OpamError, match="parameter 'seed' is True"):
        read_params("seed", int, path)


def test_missing_section(path: Path) -> None:
    path.write_text("seed: 1\n")
    for name in ("dataset", "dataset.name", "seed.deeper"):
        with pytest.raises(OpamError, match=f"'{name}' is missing; see presets/defaults"):
            read_params(name, Outer, path)


def test_unknown_section(path: Path) -> None:
    path.write_text("seed: 1\ndatset: {}\n")
    with pytest.raises(OpamError, match="unknown parameter 'datset'; known sections: seed"):
        read_params("seed", int, path)


@pytest.mark.parametrize("content", [b"a: [1,\n", b"seed: \xff\n", b"a: b: c\n"])
def test_not_yaml(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(OpamError, match=r"params\.yaml: not valid YAML .*correct the file"):
        read_yaml(path)


@pytest.mark.parametrize("content", ["", "- 1\n", "text\n"])
def test_no_sections(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(OpamError, match="expected sections"):
        read_yaml(path)


def test_missing_file(path: Path) -> None:
    with pytest.raises(OpamError, match=r"params\.yaml: not found; run from the project's top"):
        read_yaml(path)


def test_other_parameter_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPAM_PARAMS", raising=False)
    assert params_path() == Path("params.yaml")
    path.write_text("seed: 3\n")
    monkeypatch.setenv("OPAM_PARAMS", str(path))
    assert read_params("seed", int) == 3


def test_the_projects_file_has_every_section() -> None:
    assert set(read_yaml(ROOT / "params.yaml")) == set(SECTIONS)


def test_a_name_that_stands_twice_is_told(path: Path) -> None:
    path.write_text("seed: 5\ndataset: {name: red, inner: {count: 1}, name: green}\n")
    with pytest.raises(OpamError, match=r"'name' stands twice.*correct the file"):
        read_params("dataset", Outer, path)
    path.write_text("seed: 5\ndataset: &a {name: red}\nexecution: {<<: *a, name: green}\n")
    assert read_yaml(path)["execution"] == {"name": "green"}
