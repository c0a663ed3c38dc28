"""Photographs and weights outside the project: found, seen by DVC, or told how to be written."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_project import PYTHON, call, git_commit, project

from opam.app.check_params import check, check_networks
from opam.networks.backbones.backbone import Backbone, BackboneParams, create_backbone
from opam.pipeline.artifacts import write_json
from opam.pipeline.environment import installed_versions, tell_other_pins, tell_other_versions
from opam.pipeline.errors import OpamError
from opam.pipeline.outside import (
    PHOTOGRAPHS,
    check_photographs,
    check_photographs_path,
    check_weights_path,
    given_photographs,
    weights_file,
)

ROOT = Path(__file__).parents[1]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / "data/photographs").mkdir(parents=True)
    (folder / "data/photographs/.gitignore").write_text("*")
    (folder / "data/weights").mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_folder_as_it_comes_is_no_source(here: Path) -> None:
    assert given_photographs("data/photographs") is None
    assert given_photographs("elsewhere") == Path("elsewhere")
    (here / "data/photographs/wren").mkdir()
    assert given_photographs("data/photographs") == PHOTOGRAPHS


def test_photographs_that_are_not_there_are_told_unless_a_colleague_has_shared_them(
    here: Path,
) -> None:
    made = here / "data/raw.zip"
    check_photographs_path("data/photographs", made)
    with pytest.raises(OpamError, match=r"dataset\.path: birds is not there; correct it"):
        check_photographs_path("birds", made)
    made.write_text("")
    write_lock = (here / "dvc.lock").write_text
    write_lock("stages: {fetch_data: {deps: [{path: birds}]}}")
    check_photographs_path("birds", made)
    with pytest.raises(OpamError, match=r"dataset\.path: owls is not there; correct it"):
        check_photographs_path("owls", made)
    for path in (".", "..", str(here)):
        with pytest.raises(OpamError, match=r"holds this project"):
            check_photographs_path(path, made)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~/birds", r"DVC takes '~/birds' as it stands; write /.*/birds"),
        ("s3://bucket/birds", r"`dvc import-url s3://bucket/birds`"),
    ],
)
def test_a_path_that_dvc_would_not_find_is_told_how_to_be_written(
    here: Path, path: str, message: str
) -> None:
    with pytest.raises(OpamError, match=message):
        check_photographs_path(path, here / "data/raw.zip")
    with pytest.raises(OpamError, match=message):
        check_weights_path("backbone.weights", path, here / "data/environment.json")


def test_a_relative_path_in_an_experiment_of_its_own_is_told_how_to_be_written(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "birds").mkdir()
    (here / "data/weights/mine.pth").write_text("")
    temporary = here / ".dvc/tmp/exps/standalone/tmp1"
    (temporary / "data").mkdir(parents=True)
    (temporary / "data/raw.zip").write_text("")
    monkeypatch.chdir(temporary)
    with pytest.raises(OpamError, match=rf"write -S dataset\.path={here}/birds$"):
        check_photographs_path("birds", Path("data/raw.zip"))
    with pytest.raises(OpamError, match=rf"-S backbone\.weights={here}/data/weights/mine\.pth$"):
        check_weights_path("backbone.weights", "mine.pth", Path("data/environment.json"))
    check_photographs_path(str(here / "birds"), Path("data/raw.zip"))


def test_weights_lie_where_dvc_looks(here: Path) -> None:
    made = here / "data/environment.json"
    name = "baselines.bcnn.backbone.weights"
    mine = here / "mine.pth"
    mine.write_text("")
    for word in ("package", "timm", "none"):
        check_weights_path("backbone.weights", word, made)
    check_weights_path("backbone.weights", str(mine), made)
    with pytest.raises(OpamError, match=rf"does not see whether it changes; write {mine}, or link"):
        check_weights_path("backbone.weights", "mine.pth", made)
    with pytest.raises(OpamError, match=r"no file 'other\.pth' in data/weights/: correct it"):
        check_weights_path("backbone.weights", "other.pth", made)
    with pytest.raises(OpamError, match=rf"{name}: {mine} lies where DVC does not see"):
        check_weights_path(name, str(mine), made)
    (here / "data/weights/mine.pth").symlink_to(mine)
    check_weights_path(name, "mine.pth", made)
    assert weights_file("mine.pth") == Path("data/weights/mine.pth")
    mine.write_text("another of that name, which DVC does not look at")
    (here / "data/weights/mine.pth").unlink()
    state = Backbone("resnet10t").body.state_dict()
    torch.save(state, here / "data/weights/mine.pth")
    found = create_backbone(BackboneParams(name="resnet10t", weights="mine.pth"))
    assert torch.equal(found.body.conv1[0].weight, state["conv1.0.weight"])
    assert weights_file(str(mine)) == mine


@pytest.mark.slow
def test_an_experiment_in_a_folder_of_its_own_stops_with_a_line(tmp_path: Path) -> None:
    folder = project(tmp_path)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["dataset"] |= {"name": "imagefolder", "path": "birds"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "birds/wren").mkdir(parents=True)
    git_commit(folder)
    done = call(folder, PYTHON, "-m", "dvc", "exp", "run", "--temp", "fetch_data")
    assert done.returncode != 0
    assert f"write -S dataset.path={folder}/birds" in done.stdout + done.stderr


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such backbone": ({"backbone.name": "resnet_of_my_own"}, r"backbone\.name"),
    "no class token": ({"probes.pooled": "both"}, r"probes\.pooled: .*no class token"),
    "no such layer": ({"colocalization.layer": "blocks.77"}, r"colocalization\.layer.*blocks\.77"),
    "no such convolution": (
        {"alignment.convolution": "blocks.5.conv"},
        r"alignment\.convolution: no convolution or linear layer 'blocks\.5\.conv'",
    ),
    "no such layer to freeze": (
        {"objectnet.frozen_until": "layer3"},
        r"objectnet\.frozen_until: the backbone has no 'layer3'",
    ),
    "nor in a system": (
        {"baselines.nts_net.training.frozen_until": "layer3"},
        r"baselines\.nts_net\.training\.frozen_until",
    ),
    "a system that the backbone cannot serve": (
        {"backbone.name": "vit_tiny_patch16_224", "colocalization.layer": None},
        r"baselines\.ap_cnn: .*cannot be run in stages; take a network.*a ResNet.*or remove "
        r"baselines\.ap_cnn",
    ),
    "a backbone of a system that is not there": (
        {"baselines.finetune.backbone": {"name": "nope", "weights": "none"}},
        r"baselines\.finetune: backbone\.name: timm has no model 'nope'",
    ),
    "a crop larger than what it is cut from": (
        {"training.input_size": 200},
        r"filternet: resize is 108, less than input_size, 200; raise",
    ),
    "no part can fit": (
        {"parts.min_iou": 0.6, "parts.max_iou": 0.5},
        r"parts: max_iou is 0\.5, not above min_iou, 0\.6",
    ),
    "no box can be so large": (
        {"proposals.min_side": 500},
        r"proposals: min_side is 500, more than max_side, 200",
    ),
    "more clusters than parts": ({"alignment.clusters": 3}, r"parts\.n_parts"),
}


def test_what_dvc_cannot_read_is_told_before_it_looks(here: Path) -> None:
    """It would stop with a raw error, or hang at a pipe."""
    mine = here / "mine/wren"
    mine.mkdir(parents=True)
    (mine / "0.jpg").write_bytes(b"x")
    (mine / "g\u00e4nse.jpg").write_bytes(b"x")
    check_photographs("mine")
    check_photographs("mine/wren/0.jpg")
    with pytest.raises(OpamError, match=r"none is not there; correct it, or.*repro --pull"):
        check_photographs("none")
    for make, told in (
        (lambda: os.mkfifo(mine / "pipe"), "pipe: is no file; remove"),
        (lambda: (mine / "link").symlink_to("nothing"), "link: links to nothing; remove"),
        (lambda: Path(os.fsdecode(bytes(mine / "") + b"/caf\xe9.jpg")).touch(), "not UTF-8 text"),
    ):
        make()
        with pytest.raises(OpamError, match=told):
            check_photographs("mine")
        for path in [*mine.iterdir()]:
            if path.name not in ("0.jpg", "g\u00e4nse.jpg"):
                path.unlink()


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_before_anything_is_computed(tmp_path: Path, name: str) -> None:
    changes, message = WRONG[name]
    params = copy.deepcopy(PARAMS)
    for dotted, value in changes.items():
        *sections, leaf = dotted.split(".")
        inner = params
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    with pytest.raises(OpamError, match=message):
        check_networks(check(path), path)


def test_everything_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    params = copy.deepcopy(PARAMS)
    params["colocalization"]["layer"] = "one"
    params["filternet"]["frozen_until"] = "two"
    params["baselines"]["ap_cnn"]["training"] = {"frozen_until": "three"}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    with pytest.raises(OpamError, match=r"(?s)'one'.*'two'.*'three'"):
        check_networks(check(path), path)


@pytest.mark.slow
def test_repro_stops_at_the_check(tmp_path: Path) -> None:
    folder = project(tmp_path)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["alignment"]["convolution"] = "nowhere"
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    done = call(folder, PYTHON, "-m", "dvc", "repro")
    assert done.returncode != 0
    assert "alignment.convolution: no convolution or linear layer 'nowhere'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "data/raw.zip").exists()


def test_other_versions_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell_other_versions()  # nothing is recorded yet
    versions = installed_versions()
    assert versions["numpy"].partition(".")[0].isdigit()
    recorded = {**versions, "torch": "1.0"}
    write_json(here / "data/environment.json", {"versions": recorded})
    tell_other_versions()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"torch 1.0, but {versions['torch']} computes on this machine" in lines[0]
    lock = here / "requirements.lock"
    lock.write_text(
        f"numpy=={versions['numpy']} ; python_version > '3' \\\n    --hash=sha256:00\n"
        "numpy==0.1 ; python_version < '3' \\\ntimm==0.1 \\\n"
    )
    tell_other_pins(lock)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "timm 0.1" in lines[0]
