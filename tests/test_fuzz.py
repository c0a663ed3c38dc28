"""What comes from outside, spoiled in thousands of ways: it is read, or told as an `OpamError`."""

import argparse
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_datasets import LAYOUTS, class_folders

from opam.app.check_params import check
from opam.networks.backbones.backbone import Backbone, BackboneParams, create_backbone
from opam.networks.backbones.pretrained import read_states
from opam.networks.cam_network import CamNetwork, read_network, write_network
from opam.photographs.datasets import read
from opam.photographs.datasets.source import take_over
from opam.photographs.datasets.table_rows import TableColumns, parse, read_rows
from opam.photographs.decoding.archive import FIRST_DATE
from opam.photographs.decoding.images import read_image
from opam.photographs.preparation import draw_test, make_manifest
from opam.pipeline.artifacts import (
    SCHEMAS,
    read_json,
    read_photographs,
    read_table,
    read_table_in_pieces,
    write_table,
)
from opam.pipeline.errors import OpamError

ROOT = Path(__file__).parents[1]
ODD = [b"\x00", b"\xff\xff\xff\xff", b"-1", b"..", b"/", b"\n", b"1e999", b"\xe2\x80\xae", b"nan"]

Edit = tuple[float, str, bytes]
edits: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["overwrite", "insert", "cut", "drop"]),
        st.one_of(st.sampled_from(ODD), st.binary(min_size=1, max_size=12)),
    ),
    min_size=1,
    max_size=5,
)


def spoil(content: bytes, changes: list[Edit]) -> bytes:
    for place, kind, payload in changes:
        at = int(place * len(content))
        if kind == "overwrite":
            content = content[:at] + payload + content[at + len(payload) :]
        elif kind == "insert":
            content = content[:at] + payload + content[at:]
        elif kind == "drop":
            content = content[:at] + content[at + 3 * len(payload) :]
        else:
            content = content[:at]
    return content


def cases(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def read_or_told(call: Callable[[], object]) -> object:
    """The result; an `OpamError` must be one that a person can use."""
    told = ""
    try:
        return call()
    except OpamError as error:
        told = str(error)
    assert len(told) < 5000
    assert ": " in told
    return None


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Files of every data set by name."""
    found = {}
    for name in [*LAYOUTS, "imagefolder"]:
        folder = tmp_path_factory.mktemp(name)
        if name == "imagefolder":
            class_folders(folder, {"a": 2, "b": 3})
        else:
            LAYOUTS[name][1](folder)
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        found[name] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return found


@cases(1500)
@given(st.data())
def test_files_of_data_sets(
    layouts: dict[str, dict[str, bytes]], tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(layouts)))
    files = dict(layouts[name])
    annotations = [file for file in files if not file.endswith(".jpg")]
    spoiled = data.draw(st.sampled_from(annotations or sorted(files)))
    if data.draw(st.integers(0, 9)) == 0:
        del files[spoiled]
    else:
        files[spoiled] = spoil(files[spoiled], data.draw(edits))
    archive = tmp_path / "raw.zip"
    with zipfile.ZipFile(archive, "w") as to:
        for file, content in files.items():
            to.writestr(zipfile.ZipInfo(file, FIRST_DATE), content)

    def manifest() -> pd.DataFrame:
        images = read(name, archive, TableColumns()).images  # type: ignore[arg-type]
        own = images["image_id"]
        images = draw_test(images.assign(group=own, sha256=own), 0.3, 0)
        return make_manifest(images.assign(width=40, height=30), 0.5, 0)[0]

    found = read_or_told(manifest)
    if isinstance(found, pd.DataFrame):
        inside = tuple(f"{archive}/{file}" for file in files)
        assert all(path in inside for path in found["path"])


def tables_of_labels() -> dict[str, bytes]:
    table = pd.DataFrame(
        {
            "image": ["a/0.jpg", "b/0.jpg", "b/1.jpg"],
            "label": ["auk", "crow", "crow"],
            "split": ["train", "train", "test"],
            "x0": [1, 2, 3],
            "y0": [1, 2, 3],
            "x1": [9, 9, 9],
            "y1": [9, 9.5, 9],
            "label_1": ["bird", "bird", "bird"],
        }
    )
    parquet = io.BytesIO()
    table.to_parquet(parquet)
    csv = table.to_csv(index=False)
    return {
        "a.csv": csv.encode(),
        "b.csv": csv.replace(",", ";").encode("utf-8-sig"),
        "c.parquet": parquet.getvalue(),
    }


@cases(1500)
@given(name=st.sampled_from(sorted(tables_of_labels())), changes=edits)
def test_tables_of_labels(name: str, changes: list[Edit]) -> None:
    there = {path: path for path in ("a/0.jpg", "b/0.jpg", "b/1.jpg")}
    content = spoil(tables_of_labels()[name], changes)

    def rows() -> pd.DataFrame:
        return read_rows(name, parse(name, content), TableColumns(), there)[0]

    found = read_or_told(rows)
    if isinstance(found, pd.DataFrame):
        assert set(found["path"]) <= set(there)
        assert found["class_name"].all()


@cases(500)
@given(st.data())
def test_the_packed_data_set(tmp_path: Path, data: st.DataObject) -> None:
    archive = tmp_path / "raw.zip"
    with zipfile.ZipFile(archive, "w") as to:
        for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
            to.writestr(zipfile.ZipInfo(name, FIRST_DATE), picture("PNG", "RGB"))
    archive.write_bytes(spoil(archive.read_bytes(), data.draw(edits)))

    def every_image() -> None:
        for path in read("imagefolder", archive, TableColumns()).images["path"]:
            read_image(path)

    read_or_told(every_image)


@cache
def picture(kind: str, mode: str) -> bytes:
    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode, np.uint8)
    shape = (12, 17) if bands == 1 else (12, 17, bands)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    pixels = rng.integers(0, 256, shape).astype(dtype)
    image = Image.fromarray(pixels) if mode != "CMYK" else Image.fromarray(pixels, mode)
    image.save(stream, kind, **({"exif": exif} if kind not in ("BMP", "JPEG2000") else {}))
    return stream.getvalue()


PICTURES = [
    ("JPEG", "RGB"),
    ("JPEG", "CMYK"),
    ("PNG", "RGBA"),
    ("PNG", "I;16"),
    ("PNG", "L"),
    ("TIFF", "RGB"),
    ("TIFF", "CMYK"),
    ("WEBP", "RGB"),
    ("GIF", "L"),
    ("BMP", "RGB"),
    ("TIFF", "F"),
    ("TIFF", "I"),
    ("PPM", "RGB"),
    ("JPEG2000", "RGB"),
    ("AVIF", "RGB"),
]


@pytest.mark.filterwarnings("ignore")
@cases(2000)
@given(kind=st.sampled_from(PICTURES), changes=edits)
def test_photographs(tmp_path: Path, kind: tuple[str, str], changes: list[Edit]) -> None:
    path = tmp_path / "photograph"
    path.write_bytes(spoil(picture(*kind), changes))
    image = read_or_told(lambda: read_image(path))
    if isinstance(image, np.ndarray):
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.size


PARAMS = (ROOT / "params.yaml").read_bytes()


@cases(1000)
@given(changes=edits)
def test_params_by_bytes(tmp_path: Path, changes: list[Edit]) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(spoil(PARAMS, changes))
    read_or_told(lambda: check(path))


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=4),
        st.dates(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@cases(500)
@given(data=st.data())
def test_params_by_values(tmp_path: Path, data: st.DataObject) -> None:
    content = yaml.safe_load(PARAMS)
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from(sorted(content)))
        if isinstance(content[section], dict) and data.draw(st.booleans()):
            name = data.draw(st.sampled_from([*content[section], "other"]))
            content[section][name] = data.draw(values)
        else:
            content[section] = data.draw(values)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    read_or_told(lambda: check(path))


@pytest.mark.parametrize(
    "text",
    [
        "seed: 2001-13-45",
        "seed: " + "[" * 1500,
        "a: &a [x]\n" + "\n".join(f"{n}: &{n} [{', '.join(['*a'] * 9)}]" for n in "bcdef"),
        "seed: &a [*a]",
        "seed: " + "9" * 5000,
        "seed: !!python/object/apply:os.system ['false']",
        "? [a]\n: 1",
        "- seed",
        "",
    ],
)
def test_params_that_are_traps(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(OpamError, match=r"params\.yaml") as caught:
        check(path)
    assert len(str(caught.value)) < 5000


def some_tables(folder: Path) -> dict[str, bytes]:
    tables = {}
    for schema in ("manifest", "saliency", "proposals", "scores"):
        rows = {}
        for field in SCHEMAS[schema]:
            kind = str(field.type)
            value = {"string": "a/b.jpg", "bool": True}.get(kind, 3)
            rows[field.name] = [[0.5, 1.0] if kind.startswith("list") else value] * 40
        write_table(folder / schema, schema, pd.DataFrame(rows))
        tables[schema] = (folder / schema).read_bytes()
    return tables


@cases(1500)
@given(data=st.data())
def test_tables(tmp_path: Path, data: st.DataObject) -> None:
    tables = some_tables(tmp_path)
    schema = data.draw(st.sampled_from(sorted(tables)))
    path = tmp_path / "spoiled.parquet"
    path.write_bytes(spoil(tables[schema], data.draw(edits)))
    read_or_told(lambda: read_table(path, schema))
    for first_id in ("", "a/b.jpg"):
        read_or_told(lambda first=first_id: list(read_table_in_pieces(path, schema, first)))
        read_or_told(lambda first=first_id: list(read_photographs(path, schema, first)))


@cases(300)
@given(content=st.one_of(st.binary(max_size=30), st.just(b"[" * 100_000), st.just(b"1e999")))
def test_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    read_or_told(lambda: read_json(path))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("network") / "a.safetensors"
    settings_of = {"backbone": "mobilenetv3_small_050", "input_size": 32, "resize": 36}
    write_network(path, CamNetwork(Backbone("mobilenetv3_small_050"), 3), settings_of)
    return path.read_bytes()


@cases(300)
@given(changes=edits, header=st.booleans())
def test_networks(network: bytes, tmp_path: Path, changes: list[Edit], header: bool) -> None:
    size = 8 + int.from_bytes(network[:8], "little") if header else len(network)
    path = tmp_path / "a.safetensors"
    path.write_bytes(spoil(network[:size], changes) + network[size:])
    read_or_told(lambda: read_network(path))


@pytest.mark.parametrize(
    "settings_of",
    [
        "[]",
        '{"backbone": "mobilenetv3_small_050"}',
        '{"backbone": "../../x", "classes": 3, "heads": 1}',
        '{"backbone": "mobilenetv3_small_050", "classes": 1000000000, "heads": 1000}',
        '{"backbone": "mobilenetv3_small_050", "classes": -3, "heads": -1}',
        '{"backbone": 5, "classes": 3, "heads": 1}',
        '{"backbone": "mobilenetv3_small_050", "classes": "3", "heads": 1}',
        "[" * 100_000,
    ],
)
def test_networks_with_odd_settings(network: bytes, tmp_path: Path, settings_of: str) -> None:
    path = tmp_path / "a.safetensors"
    state = safetensors.torch.load(network)
    path.write_bytes(safetensors.torch.save(state, metadata={"opam": settings_of}))
    with pytest.raises(OpamError, match=r"a\.safetensors|backbone"):
        read_network(path)


@cases(400)
@given(changes=edits, suffix=st.sampled_from([".pth", ".safetensors"]))
def test_weights_files(tmp_path: Path, changes: list[Edit], suffix: str) -> None:
    state = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    beside = {"args": argparse.Namespace(lr=0.1), "metric": np.float64(0.5)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, **beside}, path)
    else:
        safetensors.torch.save_file(state, path)
    path.write_bytes(spoil(path.read_bytes(), changes))
    read_or_told(lambda: read_states(path))


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.system, (f"touch {tmp_path / 'trapped'}",))

    for name, content in (("state.pth", {"a": Trap()}), ("bare.pth", Trap())):
        torch.save(content, tmp_path / name)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("state.pth", "bare.pth", "plain.pth"):
        params = BackboneParams(name="mobilenetv3_small_050", weights=str(tmp_path / name))
        with pytest.raises(OpamError, match=r"backbone\.weights"):
            create_backbone(params)
    assert not (tmp_path / "trapped").exists()


def archives() -> dict[str, bytes]:
    found = {}
    for mode in ("gz", "xz", ""):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=f"w:{mode}") as tar:
            for name in ("a/1.txt", "a/2.txt", "b/1.txt"):
                member = tarfile.TarInfo(name)
                member.size = 100
                tar.addfile(member, io.BytesIO(bytes(100)))
        found[f".tar.{mode}"] = stream.getvalue()
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as to:
            for name in ("a/1.txt", "a/2.txt", "b/1.txt"):
                to.writestr(name, bytes(100))
        found[f"{method}.zip"] = stream.getvalue()
    return found


@pytest.mark.filterwarnings("ignore")
@cases(1500)
@given(kind=st.sampled_from(sorted(archives())), changes=edits)
def test_archives(tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[Edit]) -> None:
    folder = tmp_path_factory.mktemp("archive")
    source = folder / f"set{kind}"
    source.write_bytes(spoil(archives()[kind], changes))
    (folder / "inside").mkdir()
    read_or_told(lambda: take_over(source, folder / "inside/raw"))
    assert {path.name for path in folder.iterdir()} == {source.name, "inside"}
    assert {path.name for path in (folder / "inside").iterdir()} <= {"raw"}
