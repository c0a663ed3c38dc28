"""The pipeline that trains nothing: discriminants for networks, features kept by content."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from small_project import STAGES, Undisturbed, call, digests, preset, scripts

from opam import Classifier
from opam.app.check_params import check
from opam.engine import scoring
from opam.engine.crops.batches import CropBatches
from opam.engine.discriminant import features
from opam.engine.discriminant.features import features_of
from opam.engine.forward import forward_by_maps, kept_as
from opam.engine.scoring import score_crops_shared
from opam.networks.backbones.backbone import Backbone
from opam.networks.cam_network import CamNetwork
from opam.photographs.decoding.archive import open_archive
from opam.photographs.decoding.images import Photographs, read_image
from opam.pipeline import kept
from opam.pipeline.artifacts import read_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.params import NETWORKS

BEHIND_PREPARE = STAGES[STAGES.index("propose_patches") : STAGES.index("train_baseline@finetune")]
LOOKS = (
    *(f"train_{name}" for name in NETWORKS),
    *("score_patches", "extract_saliency", "colocalize", "align_parts", "score_images"),
)
"""Stages that show photographs to a network."""
BRANCHES = {"classnet": 1, "objectnet": 1, "partnet": 2}


def frozen(params: dict) -> dict:
    """The parameters of a run without training."""
    for name in NETWORKS:
        params[name] |= {"by": "discriminant", "views": 1}
    params["scoring"] = "shared"
    params["prepare"]["val_fraction"] = 0.0
    params["probes"]["enabled"] = False
    params["fusion"]["scores"] = "networks"
    params["baselines"] = {"finetune": params["baselines"]["finetune"]}
    return params


def run(folder: Path, stages: Sequence[str]) -> None:
    """Stages one after the other, networks by their discriminants."""
    by = "network_by_training", "network_by_discriminant"
    done = call(folder, *(part.replace(*by) for part in scripts(stages)))
    assert done.returncode == 0, done.stderr


LOOKED = """

_body_maps = Backbone._body_maps


def counted(self: Backbone, images: torch.Tensor) -> torch.Tensor:
    with open("looked_at.txt", "a") as file:
        file.write(f"{len(images)}\\n")
    return _body_maps(self, images)


Backbone._body_maps = counted
"""


@pytest.mark.slow
def test_the_whole_pipeline_trains_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed.untouched, folder)
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(frozen(yaml.safe_load(path.read_text()))))
    with (folder / "src/opam/networks/backbones/backbone.py").open("a") as file:
        file.write(LOOKED)
    shutil.rmtree(folder / "data/out_of_fold")
    shutil.rmtree(folder / "data/scores")
    run(folder, ["prepare", *BEHIND_PREPARE])

    manifest = read_table(folder / "data/manifest.parquet", "manifest")
    training = manifest[manifest["split"] == "train"]
    assert set(manifest["split"]) == {"train", "test"}
    for name, heads in BRANCHES.items():
        held_out = read_table(folder / f"data/out_of_fold/{name}.parquet", "out_of_fold")
        assert set(held_out["image_id"]) == set(training["image_id"])
        assert set(held_out["head"]) == {*range(heads)}
    predicted = read_table(folder / "data/predictions.parquet", "predictions")
    assert set(predicted["split"]) == {"test"}
    metrics = json.loads((folder / "data/metrics.json").read_text())
    assert metrics["images"] == len(predicted)

    answers = Classifier.load(folder / "data/bundle", device="cpu")
    for row in predicted.head(3).itertuples():
        photograph = manifest.set_index("image_id")["path"][row.image_id]
        found = answers(Photographs(manifest, 0.0)(str(folder / photograph)))
        np.testing.assert_allclose(found.probabilities["fused"], row.probabilities, atol=2e-3)

    # Another system beside it, trained on all of them though there is no val.
    run(folder, ["train_baseline@finetune", "compare", "report"])

    # From features and maps that are kept, to the same bytes.
    before = digests(folder)
    (folder / "looked_at.txt").unlink()
    run(folder, LOOKS)
    assert digests(folder) == before
    assert not (folder / "looked_at.txt").exists()


@pytest.mark.slow
def test_a_class_renamed_or_new_leaves_most_of_what_was_looked_at(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(undisturbed.untouched, folder)
    manifest = read_table(folder / "data/manifest.parquet", "manifest")
    raw = open_archive(folder / "data/raw.zip").root
    for row in manifest.itertuples():
        to = mine / row.class_name / row.image_id.replace("/", "_")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(raw.read(row.path.partition("raw.zip/")[2]))
    params = frozen(yaml.safe_load((folder / "params.yaml").read_text()))
    params["dataset"] |= {"name": "imagefolder", "path": str(mine)}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    with (folder / "src/opam/networks/backbones/backbone.py").open("a") as file:
        file.write(LOOKED)
    for name in ("out_of_fold", "scores"):
        shutil.rmtree(folder / "data" / name)
    first, *_, last = sorted(mine.iterdir())
    last.rename(tmp_path / "later")
    counter = folder / "looked_at.txt"

    def looks() -> int:
        """Crops that a network is shown, from the photographs on."""
        counter.write_text("")
        run(folder, ["fetch_data", "prepare", *BEHIND_PREPARE])
        return sum(map(int, counter.read_text().split()))

    def of_test() -> set[str]:
        manifest = read_table(folder / "data/manifest.parquet", "manifest")
        return set(manifest.loc[manifest["split"] == "test", "sha256"])

    every, before = looks(), of_test()
    first.rename(mine / "zz renamed")
    assert looks() < every / 4  # folds are dealt anew, and boxes move that hang on them
    assert of_test() == before
    assert json.loads((folder / "data/classes.json").read_text())[-1] == "zz renamed"
    (tmp_path / "later").rename(mine / last.name)
    assert 0 < looks() < every / 2
    assert of_test() > before


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept features of its own, and a project to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "_space", kept._Space())
    monkeypatch.setattr(kept, "_sound", set())


@pytest.fixture
def rows(photographs: pd.DataFrame) -> pd.DataFrame:
    """Whole photographs, as boxes of them."""
    digest = [f"{number:064x}" for number in range(len(photographs))]
    boxes = photographs.assign(x0=0, y0=0, x1=photographs["width"], y1=photographs["height"])
    return boxes.assign(sha256=digest)


def computed(
    rows: pd.DataFrame, views: int | None = 2, size: int = 64
) -> tuple[np.ndarray, list[str]]:
    """Features, and the photographs that were read for them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = Backbone("test_efficientnet").eval()
    seen: list[str] = []

    def read(path: str) -> np.ndarray:
        seen.append(Path(path).name)
        return read_image(path)

    execution = ExecutionParams(device="cpu", threads=1, workers=0, batch_size=12)
    how = size, "mean", views, 0, execution, "photographs", read
    found = np.concatenate([*features_of(backbone, "weights", rows, *how)])
    shutil.rmtree(".resume")
    return found, seen


@pytest.mark.usefixtures("apart")
def test_one_more_photograph_costs_its_own_features(rows: pd.DataFrame) -> None:
    first, seen = computed(rows.iloc[:7])
    assert seen == rows["image_id"][:7].tolist()
    again, seen = computed(rows.iloc[:7])
    assert seen == []
    assert np.array_equal(again, first)
    more, seen = computed(rows.iloc[[3, 9, *range(3)]])
    assert seen == ["09.png"]
    assert np.array_equal(more[[0, 2, 3, 4]], first[[3, 0, 1, 2]])
    # Whatever was there first, they are the bytes of computing all of them.
    shutil.rmtree("cache")
    fresh, seen = computed(rows.iloc[[3, 9, *range(3)]])
    assert len(seen) == 5
    assert np.array_equal(fresh, more)


class Looked(torch.nn.Module):
    """A backbone that counts the crops that it sees."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.network = CamNetwork(Backbone("test_efficientnet"), 3, rooted=256).eval()
        self.seen = 0

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return self.network.maps(images)


BY_MAPS = ExecutionParams(device="cpu", threads=1, workers=0, batch_size=4)
VIEWS = np.array([[0.0, 0.0, 1.0, 1.0]] * 2)


def by_maps(rows: pd.DataFrame, kept_as: str | None, first: int = 0) -> tuple[np.ndarray, int]:
    """Means over both views of each photograph, and how many crops were looked at."""
    looked = Looked()
    read = Photographs(rows, 1.0)
    paths, boxes = rows["path"].tolist(), [VIEWS] * len(rows)
    batches = CropBatches(paths, boxes, 64, 4, [False, True], unit=True, read=read)

    def function(maps: torch.Tensor) -> tuple[torch.Tensor]:
        return (maps.flatten(1).mean(1).view(-1, 2).mean(1),)

    how = batches, kept_as, BY_MAPS, "maps", first, 2
    found = [each for (each,) in forward_by_maps(looked, looked.maps, function, *how)]
    return np.concatenate(found), looked.seen


@pytest.fixture
def files(rows: pd.DataFrame) -> pd.DataFrame:
    """Photographs as `Photographs` wants them."""
    digest = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in rows["path"]]
    return rows.assign(sha256=digest)


@pytest.mark.usefixtures("apart")
def test_maps_are_computed_once_for_each_crop(files: pd.DataFrame) -> None:
    plain, seen = by_maps(files.iloc[:5], None)
    assert seen == 10
    first, seen = by_maps(files.iloc[:5], "maps")
    assert seen == 12  # the last batch is filled up
    np.testing.assert_allclose(first, plain, rtol=1e-4)
    again, seen = by_maps(files.iloc[:5], "maps")
    assert seen == 0
    assert np.array_equal(again, first)
    rest, seen = by_maps(files.iloc[:5], "maps", first=1)
    assert seen == 0
    assert np.array_equal(rest, first[2:])
    more, seen = by_maps(files.iloc[[7, *range(4)]], "maps")
    assert seen == 4  # two views of one, filled up
    assert np.array_equal(more[1:], first[:4])
    _, seen = by_maps(files.iloc[:5], "of another backbone")
    assert seen == 12
    # Whatever was there first, they are the bytes of computing all of them.
    shutil.rmtree("cache")
    fresh, _ = by_maps(files.iloc[[7, *range(4)]], "maps")
    assert np.array_equal(fresh, more)


@pytest.mark.usefixtures("apart")
def test_shared_scores_of_kept_maps(files: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = scoring.shared_maps

    def counted(network: CamNetwork, image: torch.Tensor) -> torch.Tensor:
        seen.append(image.shape[2])
        return real(network, image)

    monkeypatch.setattr(scoring, "shared_maps", counted)
    boxes = np.array([[0, 0, 80, 60], [0, 0, 20, 20]])
    network = Looked().network

    def scores(rows: pd.DataFrame, kept_as: str | None) -> list[np.ndarray]:
        seen.clear()
        paths, read = rows["path"].tolist(), Photographs(rows, 1.0)
        how = [boxes] * len(paths), 64, BY_MAPS, "scores", 0, read, kept_as
        return list(score_crops_shared(network, paths, *how))

    plain = scores(files.iloc[:3], None)
    assert seen == [64, 192] * 3
    for count, looked in ((3, 3), (3, 0), (4, 1)):
        found = scores(files.iloc[:count], "maps")
        assert seen == [64, 192] * looked
        assert all(map(np.array_equal, plain, found[:3]))


@pytest.mark.usefixtures("apart")
def test_features_come_in_blocks_whatever_the_batches(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BLOCK", 5)
    every, _ = computed(rows)
    backbone = Backbone("test_efficientnet").eval()
    for shards in (1, 16):
        execution = ExecutionParams(
            device="cpu", threads=1, workers=0, batch_size=12, shard_size=shards
        )
        how = 64, "mean", 2, 0, execution, "photographs", read_image
        for _ in range(2):  # the second time from what the first one left in .resume
            pieces = [*features_of(backbone, "weights", rows, *how)]
            assert [*map(len, pieces)] == [5, 5, 2]
            assert np.array_equal(np.concatenate(pieces), every)
        shutil.rmtree(".resume")


@pytest.mark.usefixtures("apart")
def test_features_of_another_box_size_or_photograph_are_others(rows: pd.DataFrame) -> None:
    few = rows.iloc[:2]
    first, _ = computed(few)
    for found, seen in (
        computed(few.assign(x1=40)),
        computed(few, size=48),
        computed(few.assign(width=160, height=120)),
        computed(few.assign(sha256=rows["sha256"].iloc[5:7].to_numpy())),
    ):
        assert len(seen) == 2
        assert found.shape == first.shape
        assert not np.array_equal(found, first)
    alone, seen = computed(few, views=None)
    assert (alone.shape[1], len(seen)) == (1, 2)


@pytest.mark.usefixtures("apart")
def test_without_room_they_are_computed_each_time(
    rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = computed(rows.iloc[:3])
    monkeypatch.setattr(kept, "keep", lambda *_: None)
    shutil.rmtree("cache")
    for _ in range(2):
        again, seen = computed(rows.iloc[:3])
        assert len(seen) == 3
        assert np.array_equal(again, first)


def test_fusion_wants_photographs_that_no_network_learned(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    params = preset("frozen")
    path.write_text(yaml.safe_dump(params))
    check(path)
    for change, told in (
        ({"classnet": {"by": "training"}}, r"val_fraction is 0, and classnet\.by is training"),
        ({"probes": {"enabled": True}, "fusion": {"scores": "all"}}, "fusion asks probes"),
        ({"fusion": {"scores": "probes"}}, r"fusion\.scores is probes, and probes\.enabled false"),
    ):
        other = {
            name: {**own, **change.get(name, {})}
            for name, own in params.items()
            if isinstance(own, dict)
        }
        path.write_text(yaml.safe_dump(params | other))
        with pytest.raises(OpamError, match=told):
            check(path)


def test_a_gpu_and_a_cpu_have_names_of_their_own_for_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bf16 on the one, float32 on the other."""
    named = {}
    for on_gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=on_gpu: found)
        named[on_gpu] = [kept_as("maps", ExecutionParams(device=each)) for each in ("auto", "cpu")]
    assert named[False] == [named[True][1]] * 2
    assert named[True][0] != named[True][1]
