"""The pipeline under DVC: what runs again when one parameter changes."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import yaml
from dvc.repo import Repo
from stand_in import PARAMS, STAGES, lay_out

from opam.models.systems import SYSTEMS

BASELINES = [f"train_baseline@{name}" for name in PARAMS["baselines"]]
FIRST = ["check_params", "record_environment"]
"""They look at every parameter, and what they write stays the same unless networks differ."""
ALL = [stage for stage in STAGES if stage not in FIRST]


def leaves(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    found = {}
    for key, value in content.items():
        found |= leaves(value, f"{prefix}.{key}" if prefix else key)
    return found


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
    "evaluate",
    "draw_examples",
    "export_bundle",
    "compare",
    "report",
]
FROM_OBJECTS = FROM_CLASSNET[2:]
FROM_SCORES = FROM_CLASSNET[-7:]
FROM_PARTS = ["select_parts", "align_parts", "train_partnet", "fit_probes", *FROM_SCORES]
FROM_ALIGNMENT = FROM_PARTS[1:]
FROM_FILTERNET = ["train_filternet", "score_patches", "filter_patches", *FROM_CLASSNET]
TRAINING = [
    "epochs",
    "batch_size",
    "input_size",
    "resize",
    "min_area",
    "rate",
    "head_rate_factor",
    "momentum",
    "weight_decay",
    "schedule",
    "step_iterations",
    "warmup_iterations",
    "label_smoothing",
    "frozen_batch_norm",
    "frozen_until",
]

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
    "execution.deterministic": [],
    "execution.compile": [],
    "execution.tensorboard": [],
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
    "backbone.name": ["colocalize", *FROM_FILTERNET, *BASELINES],
    "backbone.weights": ["colocalize", *FROM_FILTERNET, *BASELINES],
    **{
        f"proposals.{name}": [
            "propose_patches",
            *(stage for stage in FROM_FILTERNET if stage != "train_filternet"),
        ]
        for name in ("engine", "mode", "max_side", "min_side", "max_boxes")
    },
    **{f"filternet.{name}": FROM_FILTERNET for name in TRAINING},
    "scoring": FROM_FILTERNET[1:],
    "filter.threshold": ["filter_patches", *FROM_CLASSNET],
    **{f"classnet.{name}": FROM_CLASSNET for name in [*TRAINING, "patches_per_image"]},
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
    **{f"objectnet.{name}": ["train_objectnet", *FROM_SCORES] for name in TRAINING},
    **{f"partnet.{name}": ["train_partnet", *FROM_SCORES] for name in TRAINING},
    "probes.input_size": ["fit_probes", *FROM_SCORES],
    "probes.part_size": ["fit_probes", *FROM_SCORES],
    "probes.views": ["fit_probes", *FROM_SCORES],
    "mirrored": [*FROM_SCORES, *BASELINES],
    "fusion.scores": FROM_SCORES[1:],
    "fusion.step": FROM_SCORES[1:],
    "fusion.folds": FROM_SCORES[1:],
    "fusion.rule": FROM_SCORES[1:],
    "evaluation.bootstrap_samples": FROM_SCORES[2:],
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
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, check=True)
    return folder


def other(value: Any) -> Any:
    """A value that differs; the stand-ins do not check ranges."""
    if value in ("data/photographs", "package"):  # DVC looks whether these are there
        return "elsewhere" if value == "data/photographs" else "timm"
    if value in ("exact", "shared"):
        return "shared" if value == "exact" else "exact"
    if value in SYSTEMS:
        return "finetune" if value != "finetune" else "bcnn"
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}-other"


def reproduce(folder: Path) -> list[str]:
    log = folder / "ran.txt"
    log.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EXECUTIONS", str(log))
        Repo(folder).reproduce()
    return log.read_text().split() if log.exists() else []


def would_run(folder: Path) -> list[str]:
    """The stages that DVC would execute now, and all that use what these write.

    But for `FIRST`: what they write is the same again.
    """
    repo = Repo(folder)
    changed = [stage for stage in repo.reproduce(dry=True) if stage.addressing not in FIRST]
    users = repo.index.graph.reverse()
    found = {*changed}.union(*(nx.descendants(users, stage) for stage in changed))
    return [stage.addressing for stage in found]


@pytest.mark.slow
def test_one_parameter_runs_exactly_the_stages_of_the_table(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stand_in)
    assert sorted(reproduce(stand_in)) == sorted(STAGES)
    assert reproduce(stand_in) == would_run(stand_in) == []
    # DVC tracks a section as a whole: one parameter stands for its neighbours of equal effect.
    kinds = {
        (
            name.rpartition(".")[0] if name.startswith("baselines.") else name.partition(".")[0],
            *stages,
        ): name
        for name, stages in EXPECTED.items()
    }
    for name in kinds.values():
        content = copy.deepcopy(PARAMS)
        *sections, leaf = name.split(".")
        inner = content
        for section in sections:
            inner = inner[section]
        inner[leaf] = other(inner[leaf])
        (stand_in / "params.yaml").write_text(yaml.safe_dump(content))
        assert sorted(would_run(stand_in)) == sorted(EXPECTED[name]), name
        if name == "fusion.rule":  # what DVC says it would run is what it runs
            assert sorted(reproduce(stand_in)) == sorted(["check_params", *EXPECTED[name]])
            (stand_in / "params.yaml").write_text(yaml.safe_dump(PARAMS))
            reproduce(stand_in)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "runs", "spared"),
    [
        ("src/opam/saliency.py", "extract_saliency", "train_classnet"),
        ("src/opam/parts.py", "select_parts", "extract_objects"),
        ("src/opam/report/summary.py", None, "evaluate"),
        ("src/opam/report/page/figures.py", "report", "compare"),
    ],
)
def test_editing_code_runs_what_uses_it(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, file: str, runs: str | None, spared: str
) -> None:
    monkeypatch.chdir(stand_in)
    reproduce(stand_in)
    path = stand_in / file
    path.write_text(path.read_text() + "# edited\n")
    ran = reproduce(stand_in)
    assert spared not in ran
    assert runs in ran if runs else {*ran} <= {"check_params"}


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
        assert "fetch_data" in reproduce(stand_in)
        assert Repo(stand_in).status() == {}

    weights.write_text("2")
    assert list(Repo(stand_in).status()) == ["record_environment"]
    ran = reproduce(stand_in)
    assert {"train_filternet", "colocalize", *BASELINES} <= {*ran}
    assert not {"fetch_data", "prepare", "propose_patches"} & {*ran}

    lock = stand_in / "requirements.lock"
    lock.write_text(lock.read_text().replace("cv2==1", "cv2==2"))
    ran = reproduce(stand_in)
    assert {"propose_patches", "train_filternet"} <= {*ran}
    lock.write_text(lock.read_text() + "moto==2\n")
    assert reproduce(stand_in) == ["record_environment"]
    lock.write_text(lock.read_text().replace("torch==1", "torch==2"))
    ran = reproduce(stand_in)
    assert "train_filternet" in ran
    assert not {"propose_patches", "select_parts", "extract_objects"} & {*ran} - {*FROM_OBJECTS}


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
    assert reproduce(stand_in) == [*FIRST, "compare", "report"]
    code = stand_in / "src/opam/models/nts_net.py"
    code.write_text(code.read_text() + "# edited\n")
    # Its stand-in gives the same again, so that nothing is to be compared anew.
    assert reproduce(stand_in) == ["check_params", "train_baseline@nts_net"]
