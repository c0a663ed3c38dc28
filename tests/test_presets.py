"""Presets load, and the README tells the truth about commands and files."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_project import leaves, preset

from opam.app.check_params import check
from opam.app.preset import main as preset_main
from opam.engine.training.params import PatchNetworkParams
from opam.photographs.datasets import PUBLISHED
from opam.pipeline.errors import OpamError
from opam.pipeline.params import NETWORKS, read_params
from opam.pipeline.presets import laid_over

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
README = (ROOT / "README.md").read_text()


def test_they_are_the_promised_ones() -> None:
    assert {path.stem for path in PRESETS} == {
        "defaults",
        "cub200-vgg19bn-paper",
        "cub200-resnet50",
        "cub-small-cpu",
        "cub-small-gpu",
        "convnext-tiny",
        "dinov2-small",
        "frozen",
        "swin-base-384",
        "imagefolder",
    }


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_makes_a_whole_file_and_the_readme_names_it(path: Path, tmp_path: Path) -> None:
    made = tmp_path / "params.yaml"
    made.write_text(laid_over(ROOT / "presets/defaults.yaml", path))
    check(made)
    assert f"| `{path.stem}` |" in README
    default, content = (yaml.safe_load(each.read_text()) for each in (ROOT / "params.yaml", made))
    assert list(content) == list(default)
    # What a preset says is there, and all else is as in the defaults.
    for name, value in leaves(yaml.safe_load(path.read_text())).items():
        assert leaves(content)[name] == value
    assert made.read_text().startswith(path.read_text().splitlines()[0])
    assert "seed: 0 # of order" in made.read_text()


def test_laying_over_keeps_numbers_numbers_and_comments(tmp_path: Path) -> None:
    defaults, preset_ = tmp_path / "defaults.yaml", tmp_path / "mine.yaml"
    defaults.write_text("# Defaults.\na: {b: 1, c: null} # why\nd:\n  e: 2 # because\n")
    preset_.write_text("# Mine.\na: {b: 0.00001}\nf: {g: null, h: {i: -2.0e-7}}\n")
    text = laid_over(defaults, preset_)
    assert yaml.safe_load(text) == {
        "a": {"b": 1e-5, "c": None},
        "d": {"e": 2},
        "f": {"g": None, "h": {"i": -2e-7}},
    }
    assert text.startswith("# Mine.\n")
    assert "# why" in text
    assert "e: 2 # because" in text


def test_a_preset_that_is_not_there_or_is_wrong_leaves_the_params_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "presets", "presets")
    Path("params.yaml").write_text("mine")
    for name, content, told in (
        ("nothing", None, "presets/nothing.yaml: not found; there is convnext-tiny, cub-small-cpu"),
        ("broken", "a: [", "presets/broken.yaml: not valid YAML"),
        (
            "unknown",
            "filter: {treshold: 1}",
            "presets/unknown.yaml over the defaults: unknown parameter",
        ),
        ("empty", "", "presets/empty.yaml: expected sections"),
        ("list", "- a", "presets/list.yaml: expected sections"),
        ("itself", "training: &t {epochs: *t}", "presets/itself.yaml: an anchor stands inside"),
    ):
        if content is not None:
            Path(f"presets/{name}.yaml").write_text(content)
        monkeypatch.setattr(sys, "argv", ["preset", name])
        with pytest.raises(OpamError, match=re.escape(told)):
            preset_main()
        assert Path("params.yaml").read_text() == "mine"
    monkeypatch.setattr(sys, "argv", ["preset", "cub-small-cpu"])
    preset_main()
    assert "dataset:\n  name: cub200" in Path("params.yaml").read_text()


def test_what_networks_share_stands_once_and_their_own_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["training"]["rate"] = 0.125
    content["partnet"]["rate"] = 0.5
    content["baselines"]["bcnn"]["training"] = {"rate": 0.25}
    path.write_text(yaml.safe_dump(content))
    found = check(path)
    rates = {name: found[name].rate for name in ("filternet", "classnet", "partnet")}
    assert rates == {"filternet": 0.125, "classnet": 0.125, "partnet": 0.5}
    bcnn = found["baselines"]["bcnn"]
    assert (bcnn.training.rate, bcnn.classifier_training.rate) == (0.25, 0.05)
    assert found["baselines"]["finetune"].training.rate == 0.125
    assert found["baselines"]["finetune"].classifier_training is None
    content["training"]["rate"] = -1
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(OpamError) as caught:
        check(path)
    assert str(caught.value).count("parameter 'training.rate' is -1") == 1
    content["training"]["rate"], content["classnet"]["rate"] = 0.1, -1
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(OpamError, match=r"parameter 'classnet\.rate' is -1"):
        check(path)


def test_an_old_full_file_is_told_what_to_do_and_serves_when_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    shared = content.pop("training")
    for name in NETWORKS:
        content[name] = shared | content[name]
    for entry in content["baselines"].values():
        entry["training"] = shared | entry.get("training", {})
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(OpamError, match=r"'training' is missing; .*add the line `training: \{\}`"):
        check(path)
    with pytest.raises(OpamError, match=r"'training' is missing; .*add the line `training: \{\}`"):
        read_params("classnet", PatchNetworkParams, path)
    path.write_text(yaml.safe_dump(content | {"training": {}}))
    expected = check(ROOT / "params.yaml")
    assert check(path)["partnet"] == expected["partnet"]


def test_contrast_between_the_parts_of_one_part_is_told_at_once(tmp_path: Path) -> None:
    params = preset("cub-small-cpu")
    assert params["alignment"] == {**params["alignment"], "similarity": "contrast", "clusters": 2}
    params["parts"]["n_parts"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(OpamError, match=r"params\.yaml: alignment\.similarity: .*n_parts is 1"):
        check(tmp_path / "params.yaml")
    params["alignment"]["clusters"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    check(tmp_path / "params.yaml")


def test_the_project_starts_with_the_defaults() -> None:
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "presets/defaults.yaml").read_bytes()


def test_the_papers_preset_holds_the_papers_settings() -> None:
    params = preset("cub200-vgg19bn-paper")
    assert params["backbone"]["name"] == "vgg19_bn"
    for network in NETWORKS:
        training = params["training"] | params[network]
        assert (training["input_size"], training["resize"]) == (224, 256)
        assert (training["rate"], training["momentum"]) == (1e-4, 0.9)
        assert (training["weight_decay"], training["batch_size"]) == (5e-4, 16)
        assert (training["schedule"], training["step_iterations"]) == ("step", 25_000)
    assert params["proposals"]["max_boxes"] == 1000
    assert params["filter"]["threshold"] == 0.95
    assert params["objects"]["map"] == "cam"
    assert (params["parts"]["n_parts"], params["alignment"]["clusters"]) == (2, 2)
    assert (params["fusion"]["rule"], params["fusion"]["scores"]) == ("mean", "networks")


def test_everything_wrong_in_a_file_is_told_at_once(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["filter"]["threshold"] = 2
    content["classnet"]["epochs"] = "many"
    content["parts"]["wings"] = 2
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(OpamError) as caught:
        check(path)
    for name in ("filter.threshold", "classnet.epochs", "parts.wings"):
        assert name in str(caught.value)


def test_the_readme_names_targets_stages_and_files_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in stages:
        assert f"`{stage}`" in README
    for name in PUBLISHED:
        assert f"`{name}`" in README
    for name in re.findall(r"\]\((docs/[^)]+)\)", README):
        assert (ROOT / name).is_file()


def test_the_sheet_shows_eight_species_four_times() -> None:
    with Image.open(ROOT / "docs/synthetic_birds.jpg") as sheet:
        width, height = sheet.size
    assert width >= 8 * 100
    assert height >= 4 * 100


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"training": {"epochs": 1, "rate": float("inf")}}, "training.rate"),
        ({"baselines": {"a; ls": {"system": "finetune"}}}, "a; ls"),
        ({"baselines": {"a/b": {"system": "finetune"}}}, "a/b"),
        ({"baselines": {"b": {"system": "bcnn", "method": {"channels": 10**30}}}}, "channels"),
    ],
)
def test_what_no_stage_could_use_is_told_at_once(tmp_path: Path, changes: dict, told: str) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content | changes))
    with pytest.raises(OpamError, match=re.escape(told)):
        check(tmp_path / "params.yaml")
