"""Training in two processes: the same batches, the same gradients, one that writes."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml
from small_project import Undisturbed, call, script

from opam.engine.crops.batches import TrainingCrops
from opam.engine.training.loop import _Batches
from opam.pipeline import distributed
from opam.pipeline.artifacts import atomic
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError

PIXELS = 24


class Unread(TrainingCrops):
    """Rows of a sample table, told by their labels."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.input_size = PIXELS
        self.labels = np.arange(count)
        self.heads = np.full(count, -1)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.full((3, PIXELS, PIXELS), row, dtype=torch.uint8)


@pytest.mark.parametrize("count", [1, 16, 17, 40])
@pytest.mark.parametrize("together", [1, 2, 3])
def test_each_sample_is_seen_once_in_its_batch(
    count: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, list[int]] = {}
    monkeypatch.setenv("WORLD_SIZE", str(together))
    for rank in range(together):
        monkeypatch.setenv("RANK", str(rank))
        batches = _Batches(Unread(count), 16, False, None)
        for number in range(len(batches)):
            images, labels, heads = batches[number]
            assert len(images) == len(labels) == len(heads)
            assert images[:, 0, 0, 0].tolist() == labels.tolist()
            seen.setdefault(number, []).extend(labels.tolist())
    for number, rows in seen.items():
        assert sorted(rows) == list(range(number * 16, min(number * 16 + 16, count)))
    assert sum(map(len, seen.values())) == count


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with atomic(tmp_path / "a.json") as temporary:
        temporary.write_text("1")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    with atomic(tmp_path / "a.json") as temporary:
        temporary.write_text("0")
    assert (tmp_path / "a.json").read_text() == "0"


def test_several_machines_must_know_where_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(OpamError, match=r"execution\.nodes: 2 machines .* MASTER_ADDR"):
        distributed.launch(ExecutionParams(nodes=2))


@pytest.mark.parametrize(
    ("execution", "options"),
    [
        ({"devices": 4}, ["--nproc-per-node=4", "--nnodes=1", "--standalone"]),
        (
            {"devices": 2, "nodes": 3},
            [
                "--nproc-per-node=2",
                "--nnodes=3",
                "--rdzv-backend=c10d",
                f"--rdzv-endpoint=first:{distributed.PORT}",
            ],
        ),
    ],
)
def test_torchrun_runs_the_script_again(
    execution: dict, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(os, "execv", lambda _path, command: started.extend(command))
    monkeypatch.setattr(sys, "argv", ["stages/train_baseline.py", "bcnn"])
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    distributed.launch(ExecutionParams(**execution))
    module = [sys.executable, "-m", "torch.distributed.run"]
    assert started == [*module, *options, "stages/train_baseline.py", "bcnn"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "weights", "curves"),
    [
        ("train_partnet", "models/partnet", "curves/partnet"),
        (
            "train_baseline@finetune",
            "baselines/finetune/weights",
            "baselines/finetune/curves/training",
        ),
    ],
)
def test_two_processes_train_what_one_does(
    undisturbed: Undisturbed, tmp_path: Path, stage: str, weights: str, curves: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed.untouched, folder)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    # Batch norm that is not frozen takes its statistics from a process's share of the batch.
    for training in (params["partnet"], params["baselines"]["finetune"].setdefault("training", {})):
        training |= {"frozen_batch_norm": True, "epochs": 1}  # rounding errors grow with steps
    found = []
    for devices in (1, 2):
        params["execution"] |= {"devices": devices, "threads": 1}
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        (folder / f"data/{weights}.safetensors").unlink()
        shutil.rmtree(folder / f"data/{curves}")
        done = call(folder, *script(stage))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("epoch 1, train_loss") == 1, "more than one process writes"
        curve = pd.read_csv(folder / f"data/{curves}/plots/metrics/train_loss.tsv", sep="\t")
        found.append((curve, safetensors.torch.load_file(folder / f"data/{weights}.safetensors")))
    (curve_alone, alone), (curve_together, together) = found
    np.testing.assert_allclose(curve_together["train_loss"], curve_alone["train_loss"], rtol=1e-4)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        distance = (together[name].float() - value.float()).norm() / value.float().norm().clamp(1)
        assert distance < 1e-3, f"{name}: {distance}"
    assert [path.name for path in (folder / ".resume").glob("*.pt")] == []
