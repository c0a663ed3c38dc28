"""The bundle: what the pipeline said, again, elsewhere; and `opam predict` on it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image
from small_project import Undisturbed
from typer.testing import CliRunner

from opam import Classifier
from opam.app import cli
from opam.app.classifier import Classification, LookedAt
from opam.app.predict import _state, drawings, write_predictions
from opam.evaluation.scores import read_scores
from opam.method.fusion import BRANCHES, fuse_named
from opam.photographs.decoding.archive import open_archive
from opam.pipeline.artifacts import BOX, read_json, read_table
from opam.pipeline.errors import OpamError

pytestmark = pytest.mark.slow

SAME = 1e-5
"""Batches of another size sum in another order."""


@pytest.fixture(scope="module")
def data(undisturbed: Undisturbed) -> Path:
    return undisturbed.untouched / "data"


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, far from the project's data."""
    return shutil.copytree(data / "bundle", tmp_path_factory.mktemp("elsewhere") / "birds")


@pytest.fixture(scope="module")
def photographs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Path of each test photograph, by image_id."""
    folder = tmp_path_factory.mktemp("photographs")
    manifest = read_table(data / "manifest.parquet", "manifest")
    found = {}
    raw = open_archive(data / "raw.zip").root
    for row in manifest[manifest["split"] == "test"].itertuples():
        member = row.path.partition("raw.zip/")[2]
        found[row.image_id] = folder / member.replace("/", "_")
        found[row.image_id].write_bytes(raw.read(member))
    return found


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Classifier:
    return Classifier.load(bundle, "cpu")


def test_probabilities_boxes_and_clusters_are_the_pipelines(
    data: Path, classifier: Classifier, photographs: dict[str, Path]
) -> None:
    predictions = read_table(data / "predictions.parquet", "predictions").set_index("image_id")
    objects = read_table(data / "objects.parquet", "objects").set_index("image_id")
    parts = dict(
        iter(read_table(data / "aligned_parts.parquet", "aligned_parts").groupby("image_id"))
    )
    images, scores = read_scores(data / "scores")
    fusion = read_json(data / "fusion.json")
    row = {image_id: number for number, image_id in enumerate(images["image_id"])}
    answers = {
        branch: fuse_named(scores, fusion["weights"][branch], fusion["rule"]) for branch in BRANCHES
    }
    found = classifier.classify(list(photographs.values()))
    assert len(found) == len(photographs) > 10
    for image_id, each in zip(photographs, found, strict=True):
        expected = predictions.loc[image_id]
        np.testing.assert_allclose(
            each.probabilities["fused"], expected["probabilities"], atol=SAME
        )
        for branch, probabilities in answers.items():
            np.testing.assert_allclose(
                each.probabilities[branch], probabilities[row[image_id]], atol=SAME
            )
        assert each.label == expected["fused"]
        assert each.object_box.tolist() == objects.loc[image_id, BOX].tolist()
        assert each.parts.tolist() == parts[image_id][BOX].to_numpy().tolist()
        assert each.clusters.tolist() == parts[image_id]["cluster"].tolist()


def test_one_photograph_in_every_form(classifier: Classifier, photographs: dict[str, Path]) -> None:
    path = next(iter(photographs.values()))
    image = Image.open(path)
    of_path = classifier(path).probabilities["fused"]
    assert of_path.sum() == pytest.approx(1, abs=1e-5)
    for form in (str(path), image, np.asarray(image.convert("RGB"))):
        np.testing.assert_allclose(classifier(form).probabilities["fused"], of_path, atol=SAME)
    assert classifier.classify([]) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3)])
def test_odd_sizes_are_classified(classifier: Classifier, size: tuple[int, int]) -> None:
    found = classifier(Image.new("L", size))
    assert np.isfinite(found.probabilities["fused"]).all()
    assert (found.parts[:, 2:] <= size).all()


@pytest.mark.parametrize(
    "array", [np.zeros((9, 9)), np.zeros((9, 9, 4), np.uint8), np.zeros((0, 9, 3), np.uint8)]
)
def test_other_arrays_are_refused(classifier: Classifier, array: np.ndarray) -> None:
    with pytest.raises(OpamError, match="uint8 height x width x 3"):
        classifier(array)


def test_a_damaged_bundle_is_told(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OpamError, match=r"bundle\.json: not found"):
        Classifier.load(tmp_path)
    with pytest.raises(OpamError, match="unknown 'gpu'"):
        Classifier.load(bundle, "gpu")
    good = json.loads((bundle / "bundle.json").read_text())
    for change, message in (
        ({"format": 99}, "format 99"),
        ({"fusion": {}}, "not written by export_bundle"),
        ({"classes": ["one"]}, "export the bundle anew"),
        ({"params": {}}, "missing"),
        ({"parents": [["one"]]}, "'parents'"),
    ):
        folder = tmp_path / message.replace(" ", "_")
        shutil.copytree(bundle, folder)
        (folder / "bundle.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(OpamError, match=message):
            Classifier.load(folder)
    (folder / "bundle.json").write_text(json.dumps(good))
    (folder / "classnet.safetensors").write_bytes(b"no")
    with pytest.raises(OpamError, match=r"classnet\.safetensors"):
        Classifier.load(folder)


def test_the_card_says_what_was_measured(data: Path, bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    accuracy = json.loads((data / "metrics.json").read_text())["accuracy"]["fused"]
    assert f"| fused | {accuracy:.1%} |" in card
    assert "CorLoc" in card or "IoU" in card


def test_it_is_measured_how_often_there_is_no_one_object(data: Path) -> None:
    objects = read_table(data / "objects.parquet", "objects").set_index("image_id")
    answered = read_table(data / "predictions.parquet", "predictions")
    test = answered.loc[answered["split"] == "test", "image_id"]
    none = (objects.loc[test, "fallback"] != "none").mean()
    metrics = json.loads((data / "metrics.json").read_text())
    assert metrics["object_box"]["whole_photograph"] == pytest.approx(none)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_predict_writes_a_row_a_photograph(
    bundle: Path, photographs: dict[str, Path], tmp_path: Path, ending: str
) -> None:
    folder = next(iter(photographs.values())).parent
    out = tmp_path / f"results.{ending}"
    arguments = ["predict", str(folder), "--bundle", str(bundle), "--out", str(out), "--top", "2"]
    done = CliRunner().invoke(cli.app, [*arguments, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    read = {
        "csv": pd.read_csv,
        "jsonl": lambda path: pd.read_json(path, lines=True),
        "parquet": pd.read_parquet,
    }
    table = read[ending](out)
    assert sorted(table["photograph"]) == sorted(map(str, photographs.values()))
    assert (table["class"] == table["top_1"]).all()
    assert (table["top_1_fused"] >= table["top_2_fused"]).all()
    assert "top_3" not in table
    assert (table["object_x1"] > table["object_x0"]).all()
    assert {"part_0_cluster", "part_1_y1", "top_1_part"} <= set(table)
    assert table["familiarity"].between(0, 1).all()
    assert (table["unknown"] == (table["familiarity"] <= 0.05)).all()
    done = CliRunner().invoke(cli.app, [*arguments, "--device", "cpu", "--accept-error", "1"])
    assert done.exit_code == 0, done.output
    assert read[ending](out)["unknown"].all()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_predict_answers_with_a_class_or_a_parent_that_is_sure_enough(
    bundle: Path, photographs: dict[str, Path], tmp_path: Path, ending: str
) -> None:
    nested = shutil.copytree(bundle, tmp_path / "nested")
    content = json.loads((nested / "bundle.json").read_text())
    assert content["parents"] == []
    content["parents"] = [[f"parent {label // 3}" for label in range(len(content["classes"]))]]
    (nested / "bundle.json").write_text(json.dumps(content))
    classifier = Classifier.load(nested, "cpu")
    found = classifier.classify(sorted(photographs.values()))
    fused = np.stack([each.probabilities["fused"] for each in found]).astype(float)
    parents = [f"parent {number}" for number in range(3)]
    sums = np.add.reduceat(fused, [0, 3, 6], axis=1)
    for each, own in zip(found, sums, strict=True):
        assert list(each.by_level[0]) == classifier.classes
        assert each.by_level[1] == pytest.approx(dict(zip(parents, own, strict=True)))
    sure = float(np.median(np.maximum(sums.max(1), fused.max(1))))
    out = tmp_path / f"results.{ending}"
    arguments = ["predict", *map(str, sorted(photographs.values())), "--bundle", str(nested)]
    arguments += ["--out", str(out), "--device", "cpu", "--sure", f"{sure:.6f}"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out) if ending == "csv" else pd.read_parquet(out)
    assert {*table["answer_level"].fillna(-1)} >= {-1, 1}
    for row, each, own in zip(table.to_dict("records"), fused, sums, strict=True):
        if row["answer_level"] == 0:
            assert row["answer"] == row["class"]
            assert row["answer_probability"] == pytest.approx(each.max(), abs=SAME)
        elif row["answer_level"] == 1:
            assert row["answer"] == parents[own.argmax()]
            assert row["answer_probability"] == pytest.approx(own.max(), abs=SAME)
            assert each.max() < sure + SAME
        else:
            assert not row["answer"] or pd.isna(row["answer"])
            assert max(each.max(), own.max()) < sure + SAME


def test_boxes_are_in_pixels_of_the_file_however_large_it_is(
    classifier: Classifier, photographs: dict[str, Path], tmp_path: Path
) -> None:
    image = Image.open(next(iter(photographs.values())))
    width, height = image.size
    large = image.resize((4 * width, 4 * height), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(classifier.steps, "max_side", max(width, height))
        found = classifier.classify([tmp_path / "large.png", np.asarray(large), image])
    for each in found[:2]:
        assert np.abs(each.object_box - 4 * found[2].object_box).max() <= 4 * width // 20
        assert each.object_box.max() > max(width, height)
        np.testing.assert_allclose(
            each.probabilities["fused"], found[2].probabilities["fused"], atol=0.1
        )


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_killed_prediction_goes_on_where_it_stood(
    bundle: Path,
    photographs: dict[str, Path],
    tmp_path: Path,
    ending: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = []
    for number, path in enumerate(photographs.values()):  # like names, as in class folders
        paths.append(tmp_path / f"of {number % 2}/{number // 2}.jpg")
        paths[-1].parent.mkdir(exist_ok=True)
        shutil.copy(path, paths[-1])
    classifier = Classifier.load(bundle, "cpu", batch_size=32)  # four photographs together
    looks: list[Path] = []
    look = classifier.look

    def counted(path: Path) -> LookedAt:
        looks.append(path)
        return look(path)

    classifier.look = counted  # type: ignore[method-assign, assignment]
    whole, drawn_whole = tmp_path / f"whole.{ending}", tmp_path / "all"
    write_predictions(whole, classifier, paths, 2, drawn_whole, quiet=True)
    assert sorted(looks) == sorted(paths)

    out = tmp_path / f"results.{ending}"
    part = tmp_path / f"results.{ending}.part"
    told = classifier.classify_looked_at

    def killed(looked_at: list[LookedAt]) -> list[Classification]:
        if part.read_text().count("\n") > 8:
            raise KeyboardInterrupt
        return told(looked_at)

    classifier.classify_looked_at = killed  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        write_predictions(out, classifier, paths, 2, tmp_path / "drawn", quiet=True)
    assert not out.exists()
    assert part.read_text().count("\n") == 9
    part.write_text(part.read_text() + '["half a li')
    classifier.classify_looked_at = told  # type: ignore[method-assign]
    looks.clear()
    assert write_predictions(out, classifier, paths, 2, tmp_path / "drawn", quiet=True) == []
    assert sorted(looks) == sorted(paths[8:])
    assert "8 photographs are done" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()
    drawn = {each.name: each.read_bytes() for each in (tmp_path / "drawn").iterdir()}
    assert drawn == {each.name: each.read_bytes() for each in drawn_whole.iterdir()}
    assert len(drawn) == len(paths)
    left = sorted(each.name for each in tmp_path.iterdir() if each.is_file())
    assert left == [out.name, whole.name]


def test_two_predictions_do_not_write_one_file(
    classifier: Classifier, photographs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "results.csv"
    alone, told = FileLock(tmp_path / "results.csv.lock"), "another prediction writes it"
    with alone, pytest.raises(OpamError, match=told):
        write_predictions(out, classifier, list(photographs.values()), 2)
    assert not out.exists()


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_name_that_is_no_text_is_written_out(
    classifier: Classifier, photographs: dict[str, Path], tmp_path: Path, ending: str
) -> None:
    good, bad = (tmp_path / os.fsdecode(name) for name in (b"a\xff.jpg", b"b\xff.jpg"))
    shutil.copy(next(iter(photographs.values())), good)
    bad.write_bytes(b"no")
    out = tmp_path / f"results.{ending}"
    [error] = write_predictions(out, classifier, [good, bad], 2)
    assert r"b\xff.jpg: cannot be decoded" in error
    assert rb"a\xff.jpg" in out.read_bytes().replace(rb"\\", b"\\")


def test_dark_photographs_of_sixteen_bits_are_told(
    classifier: Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    values = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)
    for path, scale in zip(paths, (1, 16), strict=True):
        Image.fromarray(values * np.uint16(scale)).save(path)
    out = tmp_path / "results.csv"
    assert write_predictions(out, classifier, paths[:1], 2, quiet=True) == []
    assert "a.png: no value is above 4095 (12 bits)" in capsys.readouterr().err
    write_predictions(out, classifier, paths, 2, quiet=True)
    assert "12 bits" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", ["", "top", "bundle", "overlay", "explain", "sure", "photograph", "damaged"]
)
def test_rows_of_another_prediction_are_not_taken(
    classifier: Classifier, photographs: dict[str, Path], tmp_path: Path, change: str
) -> None:
    paths = [shutil.copy(path, tmp_path) for path in list(photographs.values())[:3]]
    how = {"top": 2, "overlay": None, "accept_error": 0.05, "explain": None, "sure": None}
    begun: dict[str, object] = {"bundle": classifier.digest, **how}
    lines = [
        json.dumps([_state(Path(path)), {"photograph": path, "error": "kept"}]) for path in paths
    ]
    if change == "photograph":
        Path(paths[0]).write_bytes(Path(paths[1]).read_bytes())
    if change in begun:
        begun[change] = "another"
    first = "{" if change == "damaged" else json.dumps(begun)
    (tmp_path / "results.csv.part").write_text("\n".join([first, *lines]) + "\n")
    errors = write_predictions(
        tmp_path / "results.csv", classifier, [*map(Path, paths)], 2, quiet=True
    )
    assert errors == ([] if change else ["kept"] * 3)


def test_a_broken_photograph_is_a_row_and_the_rest_is_done(
    bundle: Path, photographs: dict[str, Path], tmp_path: Path
) -> None:
    good = list(photographs.values())[:2]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(good[0].read_bytes()[:300])
    out, drawings = tmp_path / "results.csv", tmp_path / "drawn"
    command = [sys.executable, "-c", "from opam.app.cli import main; main()", "predict"]
    command += [str(good[0]), str(bad), str(good[1]), "--bundle", str(bundle)]
    command += ["--out", str(out), "--overlay", str(drawings)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "bad.jpg: cannot be decoded" in done.stderr
    assert "1 of 3 photographs could not be read" in done.stderr
    assert "Traceback" not in done.stderr
    table = pd.read_csv(out)
    assert table["error"].notna().tolist() == [False, True, False]
    assert table["class"].notna().tolist() == [True, False, True]
    assert pd.api.types.is_float_dtype(table["top_1_fused"])
    assert "." not in out.read_text().splitlines()[1].split(",")[-3]
    sizes = {path.name: Image.open(path).size for path in drawings.iterdir()}
    assert sizes == {f"{path.stem}.jpg": Image.open(path).size for path in good}


def test_what_cannot_be_predicted_is_told(bundle: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([str(tmp_path / "no")], "no such file or folder"),
        ([str(tmp_path)], "no photograph found"),
        ([str(tmp_path), "--out", "results.txt"], "cannot tell the format"),
    ):
        done = CliRunner().invoke(cli.app, ["predict", *arguments, "--bundle", str(bundle)])
        assert isinstance(done.exception, OpamError)
        assert message in str(done.exception)


def test_no_drawing_takes_the_place_of_another() -> None:
    paths = [Path(each) for each in ("x/a.jpg", "y/a.png", "y/a-2.jpg", "z/A.jpg", "z/b.jpg")]
    names = drawings(Path("drawn"), paths)
    drawn = [names[path].name for path in paths]
    assert drawn == ["a.jpg", "a-2.jpg", "a-2-2.jpg", "A-3.jpg", "b.jpg"]
