"""Presets load, and the README tells the truth about commands and files."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from opam.datasets import PUBLISHED
from opam.errors import OpamError
from opam.report.check_params import check

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
README = (ROOT / "README.md").read_text()


def test_they_are_the_promised_ones() -> None:
    assert {path.stem for path in PRESETS} == {
        "synthetic",
        "cub200-vgg19bn-paper",
        "cub200-resnet50",
        "cub-small-cpu",
        "cub-small-gpu",
        "imagefolder",
    }


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_and_the_readme_names_it(path: Path) -> None:
    check(path)
    assert f"| `{path.stem}` |" in README
    default = yaml.safe_load((ROOT / "params.yaml").read_text())
    content = yaml.safe_load(path.read_text())
    assert list(content) == list(default)


def test_contrast_between_the_parts_of_one_part_is_told_at_once(tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "presets/cub-small-cpu.yaml").read_text())
    assert params["alignment"] == {**params["alignment"], "similarity": "contrast", "clusters": 2}
    params["parts"]["n_parts"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(OpamError, match=r"params\.yaml: alignment\.similarity: .*n_parts is 1"):
        check(tmp_path / "params.yaml")
    params["alignment"]["clusters"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    check(tmp_path / "params.yaml")


def test_the_default_is_the_synthetic_preset() -> None:
    assert (ROOT / "params.yaml").read_bytes() == (ROOT / "presets/synthetic.yaml").read_bytes()


def test_the_papers_preset_holds_the_papers_settings() -> None:
    params = yaml.safe_load((ROOT / "presets/cub200-vgg19bn-paper.yaml").read_text())
    assert params["backbone"]["name"] == "vgg19_bn"
    for network in ("filternet", "classnet", "objectnet", "partnet"):
        training = params[network]
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
