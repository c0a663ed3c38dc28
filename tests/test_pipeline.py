"""The pipeline under DVC: what runs again when one parameter changes."""

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from small_project import PYTHON, leaves
from stand_in import PARAMS, STAGES, lay_out
from warm import modified

from opam.systems.systems import SYSTEMS

BASELINES = [f"train_baseline@{name}" for name in PARAMS["baselines"]]
FIRST = ["check_params", "record_environment"]
"""They look at every parameter, and what they write stays the same unless networks differ."""
ALL = [stage for stage in STAGES if stage not in FIRST]


FROM_CLASSNET = [
    "train_classnet",
    "extract_saliency",
    "extract_objects",
    "select_parts",
    "align_parts",
    "train_objectnet",
    "train_partnet",
    "fit_probes",
    "score_images",
    "fuse",
    "doubt_labels",
    "evaluate",
    "draw_examples",
    "export_bundle",
    "compare",
    "report",
]
FROM_OBJECTS = FROM_CLASSNET[2:]
FROM_SCORES = FROM_CLASSNET[-8:]
FROM_PARTS = ["select_parts", "align_parts", "train_partnet", "fit_probes", *FROM_SCORES]
FROM_ALIGNMENT = FROM_PARTS[1:]
FROM_FILTERNET = ["train_filternet", "score_patches", "filter_patches", *FROM_CLASSNET]
EXPECTED: dict[str, list[str]] = {
    "seed": [*FROM_FILTERNET, *BASELINES],
    "execution.engine": [],
    "execution.device": [],
    "execution.devices": [],
    "execution.nodes": [],
    "execution.threads": [],
    "execution.workers": [],
    "execution.batch_size": [],
    "execution.shard_size": [],
    "execution.decoded_gigabytes": [],
    "execution.gpu_gigabytes": [],
    "execution.deterministic": [],
    "execution.compile": [],
    "execution.trackers": [],
    "dataset.name": ALL,
    "dataset.path": ALL,
    **{
        f"dataset.columns.{name}": ALL
        for name in ("table", "image", "label", "split", "group", "box", "coarse")
    },
    "dataset.synthetic_birds.seed": ALL,
    "dataset.synthetic_birds.train_per_class": ALL,
    "dataset.synthetic_birds.test_per_class": ALL,
    "prepare.seed": ALL[1:],
    "prepare.test_fraction": ALL[1:],
    "prepare.val_fraction": ALL[1:],
    "prepare.on_bad_image": ALL[1:],
    "prepare.duplicates": ALL[1:],
    "prepare.bursts": ALL[1:],
    "prepare.max_side": ALL[1:],
    "backbone.name": ["colocalize", *FROM_FILTERNET, *BASELINES],
    "backbone.weights": ["colocalize", *FROM_FILTERNET, *BASELINES],
    "backbone.hub": ["colocalize", *FROM_FILTERNET, *BASELINES],
    **{
        f"proposals.{name}": [
            "propose_patches",
            *(stage for stage in FROM_FILTERNET if stage != "train_filternet"),
        ]
        for name in ("engine", "mode", "max_side", "min_side", "max_boxes")
    },
    **{f"training.{name}": [*FROM_FILTERNET, *BASELINES] for name in PARAMS["training"]},
    "filternet.by": FROM_FILTERNET,
    "filternet.epochs": FROM_FILTERNET,
    "scoring": FROM_FILTERNET[1:],
    "filter.threshold": ["filter_patches", *FROM_CLASSNET],
    **{f"classnet.{name}": FROM_CLASSNET for name in ("by", "epochs", "patches_per_image")},
    **{f"saliency.{name}": FROM_CLASSNET[1:] for name in ("input_size", "map_size")},
    "colocalization.layer": ["colocalize", *FROM_OBJECTS],
    "colocalization.input_size": ["colocalize", *FROM_OBJECTS],
    "objects.map": FROM_OBJECTS,
    "objects.threshold": FROM_OBJECTS,
    **{
        f"parts.{name}": FROM_PARTS
        for name in ("n_parts", "min_iou", "max_iou", "min_inside", "max_candidates", "spatial")
    },
    "alignment.clusters": FROM_ALIGNMENT,
    "alignment.convolution": FROM_ALIGNMENT,
    "alignment.similarity": FROM_ALIGNMENT,
    **{f"objectnet.{name}": ["train_objectnet", *FROM_SCORES] for name in ("by", "epochs", "rate")},
    **{f"partnet.{name}": ["train_partnet", *FROM_SCORES] for name in ("by", "epochs", "rate")},
    "probes.enabled": ["fit_probes", *FROM_SCORES],
    "probes.input_size": ["fit_probes", *FROM_SCORES],
    "probes.part_size": ["fit_probes", *FROM_SCORES],
    "probes.views": ["fit_probes", *FROM_SCORES],
    "mirrored": [*FROM_SCORES, *BASELINES],
    "fusion.scores": FROM_SCORES[1:],
    "fusion.step": FROM_SCORES[1:],
    "fusion.folds": FROM_SCORES[1:],
    "fusion.rule": FROM_SCORES[1:],
    "evaluation.bootstrap_samples": FROM_SCORES[3:],
}

EXPECTED |= {
    f"baselines.{name}.{leaf}": [f"train_baseline@{name}", "compare", "report"]
    for name, settings in PARAMS["baselines"].items()
    for leaf in leaves(settings)
}


def test_the_table_names_every_parameter() -> None:
    assert set(EXPECTED) == set(leaves(PARAMS))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand_in")
    lay_out(folder)
    (folder / "data/photographs/a.jpg").write_text("a")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/b.jpg").write_text("b")
    subprocess.run([PYTHON, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, check=True)
    return folder


def other(value: Any) -> Any:
    """A value that differs; the stand-ins do not check ranges."""
    if value in ("data/photographs", "package"):  # DVC looks whether these are there
        return "elsewhere" if value == "data/photographs" else "timm"
    if value in ("exact", "shared"):
        return "shared" if value == "exact" else "exact"
    if value in ("training", "discriminant"):
        return "discriminant" if value == "training" else "training"
    if value in SYSTEMS:
        return "finetune" if value != "finetune" else "bcnn"
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}-other"


def reproduce(folder: Path, *targets: str) -> list[str]:
    log = folder / "ran.txt"
    log.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EXECUTIONS", str(log))
        environment.setattr("dvc.dvcfile.modify_yaml", modified)
        Repo(folder).reproduce(targets=[*targets] or None)
    return log.read_text().split() if log.exists() else []


def users(repo: Repo, changed: set[str]) -> set[str]:
    """These stages, and all that use what they write."""
    graph = repo.index.graph.reverse()
    stages = [stage for stage in repo.index.stages if stage.addressing in changed]
    found = {*stages}.union(*(nx.descendants(graph, stage) for stage in stages))
    return {stage.addressing for stage in found}


@pytest.mark.slow
def test_one_parameter_runs_exactly_the_stages_of_the_table(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what DVC has read of dvc.yaml; that it does so is seen for some below."""
    monkeypatch.chdir(stand_in)
    repo = Repo(stand_in)
    depends = {
        stage.addressing: [
            name
            for dep in stage.deps
            if isinstance(dep, ParamsDependency) and Path(dep.fs_path).name == "params.yaml"
            for name in dep.params
        ]
        for stage in repo.index.stages
    }
    for leaf, expected in EXPECTED.items():
        changed = {
            stage
            for stage, names in depends.items()
            if any(f"{leaf}.".startswith(f"{name}.") for name in names)
        }
        if leaf == "dataset.path":  # a dependency by its content
            changed.add("fetch_data")
        assert users(repo, changed - {*FIRST}) == {*expected}, leaf


@pytest.mark.slow
def test_a_changed_parameter_runs_what_the_table_says(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_in)
    assert sorted(reproduce(stand_in)) == sorted(STAGES)
    assert reproduce(stand_in) == []
    for leaf in ("fusion.rule", "baselines.nts_net.system", "partnet.by", "execution.device"):
        content = copy.deepcopy(PARAMS)
        *sections, last = leaf.split(".")
        inner = content
        for section in sections:
            inner = inner[section]
        inner[last] = other(inner[last])
        (stand_in / "params.yaml").write_text(yaml.safe_dump(content))
        ran = {*reproduce(stand_in)}
        assert ran - {*FIRST} == {*EXPECTED[leaf]}, leaf
        (stand_in / "params.yaml").write_text(yaml.safe_dump(PARAMS))
        reproduce(stand_in)


TRAINED = ["train_filternet", "train_classnet", "train_objectnet", "train_partnet"]
CLASSNETS = ["score_patches", "extract_saliency", "align_parts", "score_images", "compare"]
"""Stages that use a network with class activation maps, and train none."""
CROPPED = [*TRAINED, *BASELINES, *CLASSNETS, "colocalize", "fit_probes"]
READ = [*CROPPED, "fetch_data", "prepare", "propose_patches", "draw_examples", "report"]
PREPARED = ["prepare"]
SHOWN = ["draw_examples", "report"]
BUNDLED = ["export_bundle", "compare"]
FUSED = ["fuse", "doubt_labels", "evaluate", "draw_examples", "report", *BUNDLED]

CODE: dict[str, list[str]] = {
    "__init__": [],
    "app/bundle": BUNDLED,
    "app/classifier": ["compare"],
    "app/": [],
    "engine/crops/": CROPPED,
    "engine/discriminant/features": ["fit_probes", "score_images"],
    "engine/discriminant/": ["fit_probes"],
    "engine/familiarity": ["fit_probes"],
    "engine/forward": CROPPED,
    "engine/scoring": ["score_patches", "score_images", "compare", *BASELINES],
    "engine/training/": [*TRAINED, *BASELINES],
    "evaluation/cost": ["compare", *BASELINES],
    "evaluation/lineage": ["evaluate", "report", *BUNDLED],
    "evaluation/metrics": ["evaluate", "compare", *SHOWN],
    "evaluation/doubts": ["doubt_labels"],
    "evaluation/scores": ["fuse", "doubt_labels", "evaluate", "report"],
    "method/alignment": ["align_parts", "compare"],
    "method/colocalization": ["colocalize", *BUNDLED],
    "method/filtering": ["filter_patches"],
    "method/fusion": FUSED,
    "method/objects": ["extract_objects", *SHOWN, *BUNDLED],
    "method/parts": ["select_parts", *SHOWN, *BUNDLED],
    "method/proposals": ["propose_patches", *BUNDLED],
    "method/saliency": ["extract_saliency", "extract_objects", "select_parts", *SHOWN, *BUNDLED],
    "networks/backbones/backbone": [*CROPPED, "prepare", "record_environment", "export_bundle"],
    "networks/backbones/bodies": [*CROPPED, "prepare", "record_environment", "export_bundle"],
    "networks/backbones/stages": [*CROPPED, "prepare", "record_environment", "export_bundle"],
    "networks/backbones/folding": [*CROPPED, "prepare", "record_environment", "export_bundle"],
    "networks/backbones/pretrained": [*CROPPED, "prepare", "record_environment", "export_bundle"],
    "networks/backbones/weights": [*CROPPED, "prepare", "record_environment"],
    "networks/familiarity": ["fit_probes", "compare"],
    "networks/cam_network": [*TRAINED, *BASELINES, *CLASSNETS, "fit_probes"],
    "photographs/datasets/": ["fetch_data", "prepare"],
    "photographs/decoding/": READ,
    "photographs/folds": ["prepare", *TRAINED, "fit_probes", *FUSED],
    "photographs/": PREPARED,
    "pipeline/environment": ["record_environment"],
    "pipeline/": [],
    "report/fonts": ["draw_examples"],
    "report/model_card": ["export_bundle"],
    "report/page/": ["report"],
    "report/panels": ["draw_examples"],
    "report/show": ["draw_examples"],
    "report/show_system": [],
    "report/": [],
    "systems/baselines": BASELINES,
    "systems/prediction": BASELINES,
    "systems/regions": BASELINES,
    "systems/released": BASELINES,
    "systems/systems": BASELINES,
    **{f"systems/{name}": [f"train_baseline@{name}"] for name in PARAMS["baselines"]},
}
"""Stages that a module computes for, before all that use what they write; a folder stands for
modules that are not named."""


def test_the_table_says_for_every_module_which_stages_run_again(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_in)
    source = Path("src/opam")
    depends = {
        stage.addressing: [
            Path(os.path.relpath(dep.fs_path, stand_in))
            for dep in stage.deps
            if not isinstance(dep, ParamsDependency)
        ]
        for stage in Repo(stand_in).index.stages
    }
    used = set()
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source).with_suffix("").as_posix()
        found = {
            stage
            for stage, paths in depends.items()
            if any(path.is_relative_to(each) for each in paths)
        }
        if path.name == "__init__.py" and len(path.read_text().splitlines()) < 9:
            continue  # a few words
        key = max((key for key in CODE if name == key or name.startswith(key)), key=len)
        used.add(key)
        assert found == {*CODE[key]}, name
    assert used == set(CODE)


@pytest.mark.slow
def test_editing_code_runs_what_it_computes_for_and_rewording_runs_nothing(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_in)
    reproduce(stand_in)
    for name in ("pipeline/errors", "pipeline/progress", "pipeline/resume", "pipeline/cluster"):
        edit(stand_in / f"src/opam/{name}.py")
    for name in ("app/cli", "app/predict", "report/summary", "pipeline/params", "__init__"):
        edit(stand_in / f"src/opam/{name}.py")
    assert reproduce(stand_in) == []
    edit(stand_in / "src/opam/method/parts.py")
    # A stand-in gives the same again, so that what uses it has nothing to do.
    assert {*reproduce(stand_in)} == {*CODE["method/parts"]}
    edit(stand_in / "src/opam/report/page/figures.py")
    assert reproduce(stand_in) == ["report"]


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "# edited\n")


@pytest.mark.slow
def test_what_lies_outside_is_known_by_its_content(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photographs, a weights file, the versions of packages: another content runs what it touches.

    The check costs at most 3 s for 12,000 photographs: ``benchmarks/bench.py team``.
    """
    monkeypatch.chdir(stand_in)
    photographs = stand_in / "elsewhere"
    weights = stand_in / "my weights.pth"
    weights.write_text("1")
    params = copy.deepcopy(PARAMS)
    params["dataset"]["path"] = str(photographs)
    params["backbone"]["weights"] = str(weights)
    (stand_in / "params.yaml").write_text(yaml.safe_dump(params))
    reproduce(stand_in)
    assert Repo(stand_in).status() == {}

    changes = {  # none leads back to what DVC has seen: it would restore that
        "added": lambda: (photographs / "new.jpg").write_text("b"),
        "replaced": lambda: (photographs / "b.jpg").write_text("c"),
        "removed": lambda: (photographs / "new.jpg").unlink(),
    }
    for change in changes.values():
        change()
        assert "fetch_data" in Repo(stand_in).status()
        assert {"fetch_data", "prepare"} <= {*reproduce(stand_in, "prepare")}
        assert not {"fetch_data", "prepare"} & {*Repo(stand_in).status()}
    assert "propose_patches" in reproduce(stand_in)
    assert Repo(stand_in).status() == {}

    weights.write_text("2")
    assert list(Repo(stand_in).status()) == ["record_environment"]
    ran = reproduce(stand_in)
    assert {"train_filternet", "colocalize", *BASELINES} <= {*ran}
    assert not {"fetch_data", "prepare", "propose_patches"} & {*ran}

    # Of what a raised package touches DVC is asked before it runs: what a stand-in of prepare
    # writes then would touch all the rest.
    lock = stand_in / "requirements.lock"
    lock.write_text(lock.read_text() + "moto==2\n")
    assert reproduce(stand_in) == ["record_environment"]
    for package, runs, stays in (
        ("sklearn", {"align_parts", "evaluate"}, {"propose_patches", "train_filternet", "prepare"}),
        ("torch", {"train_filternet"}, {"propose_patches", "select_parts", "extract_objects"}),
        ("cv2", {"propose_patches", "train_filternet"}, {"fuse"}),
    ):
        lock.write_text(lock.read_text().replace(f"{package}==1", f"{package}==2"))
        assert reproduce(stand_in, "record_environment") == ["record_environment"]
        touched = {*Repo(stand_in).status()}
        assert runs <= touched
        assert not stays & touched


@pytest.mark.slow
def test_a_system_more_or_less_runs_itself_and_the_comparison(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_in)
    content = copy.deepcopy(PARAMS)
    path = stand_in / "params.yaml"
    path.write_text(yaml.safe_dump(content))
    reproduce(stand_in)
    content["baselines"]["res2net"] = content["baselines"]["finetune"]
    path.write_text(yaml.safe_dump(content))
    assert reproduce(stand_in) == [*FIRST, "train_baseline@res2net", "compare", "report"]
    del content["baselines"]["res2net"]
    path.write_text(yaml.safe_dump(content))
    # What was checked before is not checked again.
    assert [stage for stage in reproduce(stand_in) if stage not in FIRST] == ["compare", "report"]
    code = stand_in / "src/opam/systems/nts_net.py"
    code.write_text(code.read_text() + "# edited\n")
    # Its stand-in gives the same again, so that nothing is to be compared anew.
    assert reproduce(stand_in) == ["train_baseline@nts_net"]
