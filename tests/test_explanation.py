"""Why a photograph got its answer: exact to the last place, and of what the bundle knows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_project import Undisturbed
from typer.testing import CliRunner

from opam import Classifier
from opam.app import cli
from opam.app.bundle import KNOWN
from opam.app.classifier import Classification, as_photograph, in_file, in_pixels
from opam.app.explanation import (
    NEAREST,
    Known,
    Neighbour,
    explain,
    nearest,
    read_known,
)
from opam.app.predict import write_predictions
from opam.engine.crops.cutting import centre_boxes, cut
from opam.method.saliency import difference_maps
from opam.networks.backbones.backbone import Backbone
from opam.networks.cam_network import CamNetwork
from opam.photographs.decoding.archive import open_archive
from opam.photographs.decoding.images import decode_image
from opam.pipeline.artifacts import read_json, read_table, write_table
from opam.pipeline.errors import OpamError
from opam.report.panels import Sketch


@pytest.mark.parametrize("rooted", [None, 256])
def test_the_places_add_up_to_the_lead(rooted: int | None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CamNetwork(Backbone("test_efficientnet"), 4, rooted=rooted).eval()
        crops = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    first, second = np.array([0, 2, 3]), np.array([1, 0, 2])
    with torch.inference_mode():
        maps, _ = network.maps_and_logits(network.maps(crops))
        answers = network(crops)[:, 0].numpy()
    weights, bias = (each.detach().double().numpy() for each in (*network.head.parameters(),))
    found = difference_maps(maps.numpy(), weights[first], weights[second])
    literal = np.zeros_like(found)
    for image, (one, other) in enumerate(zip(first, second, strict=True)):
        for unit, own in enumerate(maps[image].numpy()):
            literal[image] += (weights[one, unit] - weights[other, unit]) * own / own.size
    np.testing.assert_allclose(found, literal, atol=1e-9)
    lead = answers[range(3), first] - answers[range(3), second]
    np.testing.assert_allclose(found.sum((1, 2)) + bias[first] - bias[second], lead, atol=1e-4)


def test_the_nearest_of_a_class_come_first() -> None:
    labels = np.array([0, 1, 0, 0, 0, 2])
    names, pictures = np.array([*"abcdef"]), np.array([b"x"] * 6)
    known = Known(names, labels, torch.zeros(6, 2), pictures)
    similarity = torch.tensor([0.1, 0.9, 0.5, -0.2, 0.5, 0.0])
    assert [each.image_id for each in nearest(known, similarity, 0)] == ["c", "e", "a"]
    assert nearest(known, similarity, 1) == [Neighbour("b", pytest.approx(0.9), b"x")]
    assert nearest(known, similarity, 3) == []


def test_boxes_go_to_the_file_and_back() -> None:
    rng = np.random.default_rng(0)
    for width, height in ((1700, 1301), (96, 64), (4000, 37)):
        photograph = as_photograph(np.zeros((height, width, 3), np.uint8), 333)
        rows, columns = photograph.pixels.shape[:2]
        boxes = rng.integers(0, [columns, rows] * 2, (50, 4), endpoint=True)
        np.testing.assert_array_equal(in_pixels(in_file(boxes, photograph), photograph), boxes)


def test_red_is_for_the_answer_and_blue_against_it() -> None:
    def reddish(values: list[list[float]]) -> np.ndarray:
        sketch = Sketch(np.full((80, 80, 3), (40, 160, 70), np.uint8))
        sketch.signed(np.array(values))
        pixels = np.asarray(sketch.picture).astype(int)
        return pixels[..., 0] - pixels[..., 2]

    found = reddish([[1.0, -0.5], [0.0, 0.0]])
    assert found[0, 0] > 100
    assert -100 < found[0, -1] < -30  # half as far from grey
    assert np.abs(found[-1]).max() <= 1
    np.testing.assert_array_equal(found, reddish([[40.0, -20.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(reddish([[0.0, 0.0], [0.0, 0.0]]), 0)


@pytest.fixture(scope="module")
def bundle(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, far from the project's data."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "birds"
    return shutil.copytree(undisturbed.untouched / "data/bundle", elsewhere)


@pytest.fixture(scope="module")
def files(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Path of every photograph of training and test, by image_id."""
    folder = tmp_path_factory.mktemp("photographs")
    data = undisturbed.untouched / "data"
    raw = open_archive(data / "raw.zip").root
    found = {}
    for row in read_table(data / "manifest.parquet", "manifest").itertuples():
        member = row.path.partition("raw.zip/")[2]
        found[row.image_id] = folder / member.replace("/", "_")
        found[row.image_id].write_bytes(raw.read(member))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("branch", ["object", "original"])
def test_the_map_is_of_the_network_that_is_named(
    bundle: Path, files: dict[str, Path], branch: str
) -> None:
    classifier = Classifier.load(bundle, "cpu")
    if branch == "original":
        classifier.networks["object"].pooled = "class_token"  # of which no place can be told
    looks = [classifier.look(path) for path in list(files.values())[:5]]
    every = classifier.classify_looked_at(looks)
    network, settings = classifier.networks[branch], classifier.settings[branch]
    fraction = settings["input_size"] / settings["resize"]
    assert explain(classifier, read_known(classifier), [], []) == []
    found = explain(classifier, read_known(classifier), looks, every)
    for look, own, each in zip(looks, every, found, strict=True):
        pixels = look.photograph.pixels
        box = own.object_box if branch == "object" else np.array([0, 0, *pixels.shape[1::-1]])
        shown = centre_boxes(box[None], fraction)
        assert each.branch == branch
        assert np.abs(each.box - shown[0]).max() <= 0.5
        answer, other = each.labels
        assert answer == own.label
        others = np.delete(own.probabilities["fused"], answer)
        assert own.probabilities["fused"][other] == others.max()
        with torch.inference_mode():
            logits = network(cut(pixels, shown, settings["input_size"]))[0, 0]
        lead = float(logits[answer] - logits[other])
        assert each.map.sum() + each.bias == pytest.approx(lead, abs=1e-3)


@pytest.mark.slow
def test_a_known_photograph_is_the_nearest_to_itself(
    bundle: Path, files: dict[str, Path], undisturbed: Undisturbed
) -> None:
    data = undisturbed.untouched / "data"
    manifest = read_table(data / "manifest.parquet", "manifest").set_index("image_id")
    training = manifest[manifest["split"] == "train"]
    objects = read_table(data / "objects.parquet", "objects").set_index("image_id")
    classifier = Classifier.load(bundle, "cpu")
    known = read_known(classifier)
    assert [*known.image_ids] == [*training.index]
    assert known.labels.tolist() == training["label"].tolist()
    looks = [classifier.look(files[image_id]) for image_id in known.image_ids]
    found = classifier.classify_looked_at(looks)
    told = 0
    for row, each in enumerate(explain(classifier, known, looks, found)):
        image_id = known.image_ids[row]
        x0, y0, x1, y1 = objects.loc[image_id, ["x0", "y0", "x1", "y1"]]
        picture = decode_image(known.pictures[row], image_id)
        assert picture.shape[1] / picture.shape[0] == pytest.approx((x1 - x0) / (y1 - y0), rel=0.05)
        for label, near in zip(each.labels, each.nearest, strict=True):
            assert 0 < len(near) <= NEAREST
            assert all(training["label"][own.image_id] == label for own in near)
            similarities = [own.similarity for own in near]
            assert similarities == sorted(similarities, reverse=True)
            if training["label"][image_id] == label:
                told += 1
                assert near[0].image_id == image_id
                assert near[0].similarity == pytest.approx(1, abs=2e-3)
    assert told > 4


@pytest.mark.slow
def test_predict_explains_each_photograph_and_goes_on(
    bundle: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    paths = list(files.values())[:6]
    classifier = Classifier.load(bundle, "cpu", batch_size=16)  # two photographs together
    whole = tmp_path / "whole"
    how = {"quiet": True, "explain": whole}
    assert write_predictions(tmp_path / "all.csv", classifier, paths, 2, **how) == []
    assert sorted(each.name for each in whole.iterdir()) == sorted(
        f"{path.stem}.{ending}" for path in paths for ending in ("jpg", "json")
    )
    rows = pd.read_csv(tmp_path / "all.csv").set_index("photograph")
    for path in paths:
        told = json.loads((whole / f"{path.stem}.json").read_text())
        row = rows.loc[told["photograph"]]
        for rank, side in ((1, "answer"), (2, "runner_up")):
            assert told[side]["class"] == row[f"top_{rank}"]
            assert told[side]["fused"] == row[f"top_{rank}_fused"]
            assert len(told[side]["nearest"]) == 2  # of each class
        assert told["difference"] == pytest.approx(np.sum(told["map"]) + told["bias"], abs=1e-3)
        assert told["object"]["x1"] == row["object_x1"]
        assert told["parts"][0]["cluster"] == row["part_0_cluster"]
        assert Image.open(whole / f"{path.stem}.jpg").width > 800

    told_of = classifier.classify_looked_at
    part = tmp_path / "some.csv.part"

    def killed(looks: list) -> list[Classification]:
        if part.read_text().count("\n") > 2:
            raise KeyboardInterrupt
        return told_of(looks)

    again = tmp_path / "again"
    how = {"quiet": True, "explain": again}
    classifier.classify_looked_at = killed  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path / "some.csv", classifier, paths, 2, **how)
    classifier.classify_looked_at = told_of  # type: ignore[method-assign]
    done = {each.name: each.stat().st_mtime_ns for each in again.iterdir()}
    assert len(done) == 4
    assert write_predictions(tmp_path / "some.csv", classifier, paths, 2, **how) == []
    for each in whole.iterdir():
        assert (again / each.name).read_bytes() == each.read_bytes()
    for name, time in done.items():
        assert (again / name).stat().st_mtime_ns == time


@pytest.mark.slow
def test_a_bundle_without_its_photographs_labels_and_does_not_explain(
    bundle: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    lacking = tmp_path / "lacking"
    shutil.copytree(bundle, lacking)
    (lacking / KNOWN).unlink()
    photograph, broken = next(iter(files.values())), tmp_path / "broken.jpg"
    broken.write_bytes(photograph.read_bytes()[:200])
    arguments = ["predict", str(broken), str(photograph), "--device", "cpu", "--bundle"]
    out = ["--out", str(tmp_path / "results.csv"), "--quiet"]
    done = CliRunner().invoke(cli.app, [*arguments, str(lacking), *out])
    assert str(done.exception) == "1 of 2 photographs could not be read"
    why = ["--explain", str(tmp_path / "why")]
    done = CliRunner().invoke(cli.app, [*arguments, str(lacking), *out, *why])
    assert isinstance(done.exception, OpamError)
    assert "--explain shows photographs of it" in str(done.exception)
    done = CliRunner().invoke(cli.app, [*arguments, str(bundle), "--overlay", why[1], *why])
    assert "name two folders" in str(done.exception)
    done = CliRunner().invoke(cli.app, [*arguments, str(bundle), *out, *why])
    assert str(done.exception) == "1 of 2 photographs could not be read"
    drawn = sorted(each.name for each in (tmp_path / "why").iterdir())
    assert drawn == [f"{photograph.stem}.jpg", f"{photograph.stem}.json"]

    table = read_table(bundle / KNOWN, "known")
    classes = len(read_json(bundle / "bundle.json")["classes"])
    for other in (
        table.assign(label=classes),
        table.assign(features=[each[:-1] for each in table["features"]]),
        table.iloc[:0],
    ):
        write_table(lacking / KNOWN, "known", other)
        with pytest.raises(OpamError, match="does not fit the rest of the bundle"):
            read_known(Classifier.load(lacking, "cpu"))
    (lacking / KNOWN).write_bytes(b"no")
    with pytest.raises(OpamError, match=r"known\.parquet: cannot be read"):
        read_known(Classifier.load(lacking, "cpu"))
