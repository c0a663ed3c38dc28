"""Trackers: what reaches MLflow's file store, TensorBoard, W&B; and what a failing one disturbs."""

import json
import os
import shutil
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from small_project import ROOT, Undisturbed, call, digests, script

from opam.engine.training.loop import train
from opam.engine.training.params import TrainingParams
from opam.engine.training.samples import whole_images
from opam.networks.backbones.backbone import BackboneParams, create_backbone
from opam.networks.cam_network import CamNetwork, write_network
from opam.pipeline import device, trackers
from opam.pipeline.device import ExecutionParams
from opam.pipeline.errors import OpamError
from opam.pipeline.params import read_params
from opam.pipeline.resume import finish
from opam.pipeline.revision import configuration
from opam.pipeline.trackers import RUNS, Tracker, tracked

PARAMS = {"seed": 3, "filter": {"threshold": 0.5}, "execution": {}}
EPOCHS = 2
ASKED = ("MLFLOW_", "WANDB_")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters; clients find none of the tester's own settings, and leave none."""
    folder = tmp_path / "birds"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [each for each in os.environ if each.startswith(ASKED)]:
        del os.environ[name]
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    return folder


def stored(folder: Path, experiment: str) -> dict[str, Run]:
    """Runs of an experiment in MLflow's file store, by name."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = MlflowClient(folder.as_uri())
    found = client.get_experiment_by_name(experiment)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def small_training(manifest: pd.DataFrame, *names: Tracker) -> dict[str, bytes]:
    """Every artifact of it, with its content."""
    torch.manual_seed(0)
    backbone = create_backbone(BackboneParams(name="mobilenetv3_small_050", weights="none"))
    network = CamNetwork(backbone, classes=2)
    whole, val = (whole_images(manifest[manifest["split"] == each]) for each in ("train", "val"))
    params = TrainingParams(epochs=EPOCHS, batch_size=4, input_size=32, resize=36, rate=0.01)
    execution = ExecutionParams(device="cpu", workers=0, trackers=[*names])
    train("net", network, lambda _epoch: whole, val, params, execution, seed=3)
    write_network(Path("data/net.safetensors"), network, {"backbone": "mobilenetv3_small_050"})
    finish("net")
    files = [path for path in Path("data").rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if path.name != "time.json"}


def without_times(artifacts: dict[str, bytes]) -> dict[str, bytes]:
    """DVCLive writes when each epoch ended."""
    found = {}
    for path, content in artifacts.items():
        if path.endswith(".tsv"):
            rows = [line.split(b"\t") for line in content.splitlines()]
            content = b"\n".join(b"\t".join([row[0], row[-1]]) for row in rows)
        found[path] = content
    return found


def test_a_training_in_mlflows_file_store(project: Path, photographs: pd.DataFrame) -> None:
    plain = small_training(photographs)
    assert not Path(RUNS).exists()
    assert without_times(small_training(photographs, "mlflow")) == without_times(plain)
    run = stored(project / RUNS / "mlflow", "birds")["net"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "filter.threshold": "0.5"}
    assert run.data.tags["commit"] == "no commit"
    assert run.data.tags["group"] == f"no-commit-{configuration()}"
    client = MlflowClient((project / RUNS / "mlflow").as_uri())
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        curve = client.get_metric_history(run.info.run_id, name)
        own = pd.read_csv(f"data/curves/net/plots/metrics/{name}.tsv", sep="\t")
        assert [each.step for each in curve] == [*range(EPOCHS)]
        assert [each.value for each in curve] == pytest.approx(own[name].tolist())


def test_a_training_on_tensorboard(project: Path, photographs: pd.DataFrame) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = small_training(photographs)
    assert without_times(small_training(photographs, "tensorboard")) == without_times(plain)
    found = EventAccumulator(
        str(project / RUNS / f"tensorboard/no-commit-{configuration()}/net")
    ).Reload()
    own = pd.read_csv("data/curves/net/plots/metrics/train_loss.tsv", sep="\t")["train_loss"]
    assert [each.value for each in found.Scalars("train_loss")] == pytest.approx(own.tolist())
    (text,) = found.Tensors("params/text_summary")
    assert b"filter.threshold: 0.5" in text.tensor_proto.string_val[0]


def test_the_clients_own_variables_say_where(project: Path, tmp_path: Path) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = (tmp_path / "elsewhere").as_uri()
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "warblers"
    with tracked("evaluate", ["mlflow"]) as log:
        log({"accuracy": {"fused": 0.75, "object": 0.5}, "system": "opam", "pointing": None})
    found = stored(tmp_path / "elsewhere", "warblers")["evaluate"].data.metrics
    assert found == {"accuracy.fused": 0.75, "accuracy.object": 0.5}
    assert not Path(RUNS).exists()


def test_an_experiment_in_a_folder_of_its_own_is_kept_with_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = project / ".dvc/tmp/exps/standalone/tmp1"
    temporary.mkdir(parents=True)
    shutil.copy("params.yaml", temporary)
    monkeypatch.chdir(temporary)
    with tracked("evaluate", ["mlflow"]) as log:
        log({"accuracy": 0.5})
    assert stored(project / RUNS / "mlflow", "birds")["evaluate"].data.metrics == {"accuracy": 0.5}


def test_work_that_fails_is_said_to_have_failed(project: Path) -> None:
    def killed() -> None:
        with tracked("net", ["mlflow"]) as log:
            log({"train_loss": 1.0})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    run = stored(project / RUNS / "mlflow", "birds")["net"]
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"train_loss": 1.0}


class StandIn(types.ModuleType):
    """W&B's client as far as it is used; it writes down its calls."""

    def __init__(self, breaks_at: int = -1) -> None:
        super().__init__("wandb", "")
        self.calls: list[Any] = []
        self.breaks_at = breaks_at

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def init(self, **settings: Any) -> "StandIn":
        self.calls.append({"mode": os.environ["WANDB_MODE"], **settings})
        return self

    def log(self, row: dict[str, float], step: int) -> None:
        if step == self.breaks_at:
            raise RuntimeError("disk\nquota exceeded")
        self.calls.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.calls.append(exit_code)


def test_weights_and_biases_stays_offline_unless_told(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", client)
    with tracked("net", ["wandb"]) as log:
        log({"train_loss": 1.0})
        log({"train_loss": 0.5})
    first, *rest = client.calls
    assert first["mode"] == "offline"
    assert first["project"] == "birds"
    assert first["name"] == "net"
    assert first["group"] == f"no-commit-{configuration()}"
    assert Path(first["dir"]) == project / RUNS
    assert first["config"] == {"commit": "no commit", "seed": 3, "filter.threshold": 0.5}
    assert rest == [(0, {"train_loss": 1.0}), (1, {"train_loss": 0.5}), 0]
    client.calls.clear()
    os.environ |= {"WANDB_MODE": "online", "WANDB_PROJECT": "warblers", "WANDB_RUN_GROUP": "mine"}
    with tracked("net", ["wandb"]):
        pass
    assert [client.calls[0][key] for key in ("mode", "project", "group")] == [
        "online",
        "warblers",
        "mine",
    ]


def test_a_tracker_that_breaks_is_told_once_and_the_others_go_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = StandIn(breaks_at=1)
    monkeypatch.setitem(sys.modules, "wandb", client)
    with tracked("net", ["wandb", "mlflow"]) as log:
        for loss in (1.0, 0.5, 0.25):
            log({"train_loss": loss})
    told = "wandb: disk quota exceeded; net goes on and is not sent there\n"
    assert capsys.readouterr().err == told
    assert client.calls[1:] == [(0, {"train_loss": 1.0})]
    assert stored(project / RUNS / "mlflow", "birds")["net"].data.metrics == {"train_loss": 0.25}


def test_a_server_that_is_away_costs_a_line(
    project: Path, photographs: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = small_training(photographs)
    capsys.readouterr()
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"  # nobody listens there
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    assert without_times(small_training(photographs, "mlflow")) == without_times(plain)
    lines = [line for line in capsys.readouterr().err.splitlines() if "mlflow:" in line]
    assert len(lines) == 1
    assert lines[0].endswith("net goes on and is not sent there")


def test_other_processes_of_a_training_send_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with tracked("net", ["mlflow"]) as log:
        log({"train_loss": 1.0})
    assert not Path(RUNS).exists()


@pytest.mark.parametrize(("value", "instead"), [("true", "[tensorboard]"), ("false", "[]")])
def test_the_parameter_of_before_is_told_what_to_write(
    tmp_path: Path, value: str, instead: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"execution: {{tensorboard: {value}}}\n")
    with pytest.raises(OpamError) as error:
        read_params("execution", ExecutionParams, path)
    assert str(error.value) == (
        f"{path}: execution: in place of the line `tensorboard: {value}` write "
        f"`trackers: {instead}`"
    )


def test_a_client_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("execution: {trackers: [mlflow, wandb]}\n")
    monkeypatch.setattr(device, "missing", lambda _names: ["wandb"])
    with pytest.raises(OpamError, match=r"install --editable '\.\[wandb\]'") as error:
        read_params("execution", ExecutionParams, path)
    assert "\n" not in str(error.value)
    path.write_text("execution: {trackers: [mlfow]}\n")
    with pytest.raises(OpamError, match=r"execution\.trackers\.0.*'tensorboard', 'mlflow' or 'wan"):
        read_params("execution", ExecutionParams, path)


def test_a_folder_of_a_clients_name_is_no_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "team_tracker").mkdir()  # as W&B leaves a folder wandb
    monkeypatch.syspath_prepend(str(tmp_path))
    assert trackers.missing(["team_tracker", "no_tracker", "mlflow"]) == [
        "team_tracker",
        "no_tracker",
    ]


@pytest.mark.slow
def test_what_stages_measure_is_sent_and_changes_no_artifact(
    undisturbed: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "birds"
    shutil.copytree(undisturbed.folder, folder, symlinks=True)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["execution"]["trackers"] = ["mlflow", "tensorboard"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in [each for each in os.environ if each.startswith(ASKED)]:
        monkeypatch.delenv(name)
    before = digests(folder)
    for stage in ("train_filternet", "evaluate", "compare"):
        done = call(folder, *script(stage))
        assert done.returncode == 0, done.stderr
    assert digests(folder) == before
    monkeypatch.setattr(os, "environ", os.environ.copy())
    runs = stored(folder / RUNS / "mlflow", "birds")
    assert {*runs} == {"filternet", "evaluate", "compare"}
    assert len({run.data.tags["group"] for run in runs.values()}) == 1
    assert len(runs["evaluate"].data.tags["commit"]) >= 12
    metrics = trackers.dotted(json.loads((folder / "data/metrics.json").read_text()))
    assert runs["evaluate"].data.metrics == pytest.approx(metrics)
    rows = json.loads((folder / "data/comparison.json").read_text())
    for row in rows:
        sent = runs["compare"].data.metrics[f"{row['system']}.accuracy"]
        assert sent == pytest.approx(row["accuracy"])
    shown = call(folder, "git", "status", "--porcelain", "runs")
    assert shown.stdout == "", "git ignores them"


def test_extras_hold_every_client() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*trackers.CLIENTS} <= {*extras["optional-dependencies"]}
