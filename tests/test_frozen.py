"""The pipeline that trains nothing: discriminants for networks, features kept by content."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from small_project import STAGES, Undisturbed, call, digests, preset, script

from opam import Classifier
from opam.app.check_params import check
from opam.engine.discriminant import features
from opam.engine.discriminant.features import features_of
from opam.networks.backbones.backbone import Backbone
from opam.photographs.decoding.images import Photographs, read_image
from opam.pipeline import kept
from opam.pipeline.artifacts import read_table
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.params import NETWORKS

BEHIND_PREPARE = STAGES[STAGES.index("propose_patches") : STAGES.index("train_baseline@finetune")]
BRANCHES = {"classnet": 1, "objectnet": 1, "partnet": 2}


def frozen(params: dict) -> dict:
    """The parameters of a run without training."""
    for name in NETWORKS:
        params[name] |= {"by": "discriminant", "views": 1}
    params["prepare"]["val_fraction"] = 0.0
    params["probes"]["enabled"] = False
    params["fusion"]["scores"] = "networks"
    params["baselines"] = {"finetune": params["baselines"]["finetune"]}
    return params


def untrained(stage: str) -> list[str]:
    """The command of a stage, of a network by its discriminants."""
    command = script(stage)
    if "network_by_training" in command[1]:
        command[1] = "stages/network_by_discriminant.py"
    return command


@pytest.mark.slow
def test_the_whole_pipeline_trains_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed.untouched, folder)
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(frozen(yaml.safe_load(path.read_text()))))
    shutil.rmtree(folder / "data/out_of_fold")
    shutil.rmtree(folder / "data/scores")
    for stage in ["prepare", *BEHIND_PREPARE]:
        done = call(folder, *untrained(stage))
        assert done.returncode == 0, f"{stage}:\n{done.stderr}"

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
    for stage in ("train_baseline@finetune", "compare", "report"):
        done = call(folder, *script(stage))
        assert done.returncode == 0, done.stderr

    # From features that are kept, to the same bytes.
    before = digests(folder)
    for stage in ("train_partnet", "score_images"):
        done = call(folder, *untrained(stage))
        assert done.returncode == 0, done.stderr
    assert digests(folder) == before


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
    how = size, views, 0, execution, "photographs", read
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
        how = 64, 2, 0, execution, "photographs", read_image
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
