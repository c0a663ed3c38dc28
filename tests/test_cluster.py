"""Shards on a Ray cluster: two machines' daemons here, one of which dies."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import yaml
from ray.cluster_utils import Cluster
from small_project import Undisturbed, call, digests, script, start

from opam.pipeline.cluster import _slots
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.resume import RESUME, in_shards

MAPPED = {
    "propose_patches": "proposals.parquet",
    "score_patches": "patch_scores.parquet",
    "extract_saliency": "saliency.parquet",
    "colocalize": "object_maps.parquet",
    "select_parts": "parts.parquet",
    "fit_probes": "models/part_probes.safetensors",
    "score_images": "scores/clusters.parquet",
}

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head and a worker with two CPUs each, and no decoded photographs."""
    monkeypatch.setenv("OPAM_CACHE", str(tmp_path / "pixels"))
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    found.add_node(num_cpus=2)
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    found.shutdown()


@pytest.fixture
def folder(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    """A finished run whose next stages run on the cluster."""
    copy = tmp_path / "run"
    shutil.copytree(undisturbed.untouched, copy)
    params = yaml.safe_load((copy / "params.yaml").read_text())
    params["execution"] |= {"engine": "ray"}
    (copy / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return copy


def test_every_mapped_stage_gives_the_same_bytes(
    cluster: Cluster, undisturbed: Undisturbed, folder: Path
) -> None:
    for stage, artifact in MAPPED.items():
        (folder / "data" / artifact).unlink()
        done = call(folder, *script(stage))
        assert done.returncode == 0, done.stderr
        assert "shards" in done.stderr
    assert digests(folder) == undisturbed.digests
    assert list((folder / RESUME).glob("*/*")) == []


def test_a_machine_dies_and_the_bytes_are_the_same(
    cluster: Cluster, undisturbed: Undisturbed, folder: Path
) -> None:
    (folder / "data/proposals.parquet").unlink()
    process = start(folder, *script("propose_patches"))
    while not list(folder.glob(".resume/proposals/*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert digests(folder) == undisturbed.digests


def test_shards_of_a_dead_machine_are_computed_on_another(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    marks = tmp_path / "marks"
    marks.mkdir()
    doomed = cluster.list_all_nodes()[1]
    doomed_id = doomed.node_id

    def wait_until_it_works() -> None:
        deadline = time.monotonic() + 120
        while not list(marks.glob(f"*-{doomed_id}")):
            assert time.monotonic() < deadline, "no shard came to the second machine"
            time.sleep(0.01)

    def pieces_from(first: int) -> Iterator[pd.DataFrame]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        (marks / f"{first}-{node}").touch()
        if node == doomed_id:
            time.sleep(600)  # it dies meanwhile
        wait_until_it_works()
        yield pd.DataFrame({"image_id": [f"{first}"], "probabilities": [[float(first)]]})

    def kill() -> None:
        wait_until_it_works()
        cluster.remove_node(doomed, allow_graceful=False)

    execution = ExecutionParams(engine="ray", shard_size=1, threads=1)
    with ThreadPoolExecutor() as threads:
        killing = threads.submit(kill)
        rows = list(in_shards("work", {"key": "1"}, "crop_scores", 12, pieces_from, execution))
        killing.result()
    assert pd.concat(rows)["image_id"].tolist() == [str(each) for each in range(12)]
    tries = pd.Series([mark.name.split("-")[0] for mark in marks.iterdir()]).value_counts()
    assert len(tries) == 12
    assert tries.max() > 1, "no shard was lost with the machine"


def test_an_error_in_a_shard_is_told_in_one_line(cluster: Cluster, folder: Path) -> None:
    (folder / "data/proposals.parquet").unlink()
    (folder / "data/raw.zip").write_bytes(b"no archive")
    done = call(folder, *script("propose_patches"))
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error: data/raw.zip")]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("nodes", "cpus", "device", "slots", "gpus"),
    [
        ([{"CPU": 4.0}, {"CPU": 3.0}], 2, "auto", 3, 0),
        ([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}], 2, "auto", 1, 1),
        ([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}], 2, "cpu", 6, 0),
        ([{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}], 1, None, 12, 0),
        ([{"CPU": 4.0, "GPU": 4.0}], 2, "cuda", 2, 1),
    ],
)
def test_as_many_shards_run_as_there_is_room(
    nodes: list[dict], cpus: int, device: str | None, slots: int, gpus: int
) -> None:
    alive = [{"Resources": each, "Alive": True} for each in nodes]
    dead = {"Resources": {"CPU": 64.0, "GPU": 8.0}, "Alive": False}
    assert _slots([*alive, dead], cpus, device) == (slots, gpus)


@pytest.mark.parametrize(("cpus", "device"), [(8, "auto"), (1, "cuda")])
def test_a_cluster_without_room_is_refused(cpus: int, device: str) -> None:
    with pytest.raises(OpamError, match=r"execution\.engine: ray: none of 1 machines has"):
        _slots([{"Resources": {"CPU": 4.0}, "Alive": True}], cpus, device)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    execution = ExecutionParams(engine="ray")
    shards = in_shards("work", {"key": "1"}, "crop_scores", 1, lambda _first: [], execution)
    with pytest.raises(OpamError, match=r"opam\[cluster\]"):
        next(shards)
    assert os.listdir(tmp_path) == []
