"""The command line: help, version, completion, params, doctor, the model registry."""

import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from small_project import Undisturbed, preset
from typer.testing import CliRunner

from opam.app import cli, doctor
from opam.app.params_help import parameters
from opam.photographs.decoding.archive import pack
from opam.pipeline.errors import OpamError
from opam.pipeline.params import SECTIONS

ROOT = Path(__file__).parents[1]
COMMANDS = ("predict", "serve", "export-onnx", "export", "show", "params", "doctor")
PLAIN = {"TERM": "dumb", "COLUMNS": "80", "NO_COLOR": "1"}


def call(*arguments: str) -> str:
    """What a command prints."""
    done = CliRunner().invoke(cli.app, list(arguments), env=PLAIN)
    assert done.exit_code == 0, done.output
    return done.output


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from opam.app.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    command = [sys.executable, "-c", program, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown, _, loaded = done.stdout.partition("loaded:")
    for name in COMMANDS:
        assert f" {name} " in shown
    assert not {"torch", "timm", "fastapi", "numpy", "pandas", "dvc"} & set(loaded.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    shown = call(name, "--help")
    assert "Usage" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_version_is_the_packages() -> None:
    assert call("--version") == f"opam {version('opam')}\n"


def test_shells_can_complete() -> None:
    assert "--install-completion" in call("--help")


def test_dvcs_model_registry_finds_the_bundle() -> None:
    artifact = Repo(ROOT).artifacts.read()["dvc.yaml"]["opam"]
    assert (artifact.path, artifact.type) == ("data/bundle", "model")
    assert artifact.desc


@pytest.mark.slow
def test_quiet_shows_no_progress(undisturbed: Undisturbed) -> None:
    bundle = undisturbed.untouched / "data/bundle"
    photograph = ROOT / "docs/synthetic_birds.jpg"
    arguments = ["predict", str(photograph), "--bundle", str(bundle), "--device", "cpu"]
    for options, progress in ([], True), (["--quiet"], False):
        done = CliRunner().invoke(cli.app, [*arguments, *options])
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("photograph,")
        assert ("predict: 1 images" in done.stderr) == progress


def test_every_parameter_is_explained() -> None:
    found = list(parameters())
    assert list(dict.fromkeys(each.name.partition(".")[0] for each in found)) == list(SECTIONS)
    for each in found:
        assert each.kind, each.name
        assert each.description, f"{each.name} has no description"


def test_params_tells_range_default_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPAM_PARAMS", raising=False)
    shown = call("params", "parts")
    assert "parts.min_iou  number, >= 0, < 1\n      default 0.2\n" in shown
    assert "fusion" not in shown
    Path("params.yaml").write_text("parts: {min_iou: 0.15}\nbaselines: {one: {system: bcnn}}\n")
    assert "default 0.2; now 0.15" in call("params", "parts.min_iou")
    assert "must be given; one: bcnn" in call("params", "baselines.NAME.system")
    assert "of bcnn: " in call("params", "baselines")
    Path("params.yaml").write_text("training: {rate: 0.5}\nclassnet: {rate: 0.25}\n")
    assert "default 0.0001; now 0.5" in call("params", "training.rate")
    assert "default training.rate; now 0.25" in call("params", "classnet.rate")
    assert "default training.rate\n" in call("params", "partnet.rate")
    assert "default training.rate\n" in call("params", "baselines.NAME.training.rate")
    assert call("params", "baselines.bcnn.system") == call("params", "baselines.NAME.system")


def test_params_fits_80_columns() -> None:
    assert max(map(len, call("params").splitlines())) <= 80


def test_an_unknown_parameter_is_told_with_its_neighbours() -> None:
    done = CliRunner().invoke(cli.app, ["params", "parts.min_uio"])
    assert isinstance(done.exception, OpamError)
    assert "parts.min_iou" in str(done.exception)


def test_doctor_finds_nothing_wrong_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "presets/defaults.yaml", "params.yaml")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, check=True)
    shown = call("doctor")
    assert [line.split()[0] for line in shown.splitlines()].count("problem") == 0
    assert "no remote is configured" in shown
    team = tmp_path / "team"
    (team / "files/md5").mkdir(parents=True)
    command = [sys.executable, "-m", "dvc", "remote", "add", "-q", "--default", "team", str(team)]
    subprocess.run(command, check=True)
    assert doctor.run_check("remote") == doctor.Check("remote", "ok", f"{team}/files/md5")


def test_doctor_names_every_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("opam.app.doctor.shutil.which", lambda _name: None)
    params = yaml.safe_dump(preset("imagefolder"))
    params = params.replace("threshold:", "treshold:").replace("data/photographs", "nowhere")
    Path("params.yaml").write_text(params)
    found = {subject: doctor.run_check(subject) for subject in doctor.CHECKS}
    expected = {
        "git": "install it",
        "dvc": "run from the project's top folder",
        "params": "treshold",
        "data set": "does not exist; correct it",
    }
    for subject, advice in expected.items():
        assert found[subject].status == "problem"
        assert advice in found[subject].found
    done = CliRunner().invoke(cli.app, ["doctor"])
    assert isinstance(done.exception, OpamError)
    assert f"{len(expected)} of {len(doctor.CHECKS)} checks" in str(done.exception)


def test_doctor_knows_another_data_sets_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        folder = tmp_path / "photographs" / split / "elm_warbler"
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "docs/synthetic_birds.jpg", folder / "0001.jpg")
    pack(tmp_path / "photographs", tmp_path / "data/raw.zip")
    params = preset("imagefolder")
    for name, path, status, found in (
        ("imagefolder", "data/photographs", "ok", "in data/raw.zip"),
        ("cub200", "data/photographs", "problem", "cub200 is not downloaded; set dataset.path"),
        ("cub200", "photographs", "ok", "in photographs"),
        ("flowers102", "data/photographs", "ok", "downloaded by the first stage"),
    ):
        params["dataset"] |= {"name": name, "path": path}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        check = doctor.run_check("data set")
        assert check.status == status
        assert found in check.found


def test_a_remote_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.1)
    monkeypatch.setattr("opam.app.restore.open_remote", lambda _repo: time.sleep(5))
    began = time.monotonic()
    assert "no answer" in doctor.run_check("remote").found
    assert time.monotonic() - began < 3
