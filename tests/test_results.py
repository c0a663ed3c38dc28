"""docs/results.md: every figure of a run stands in it, with what it was measured on."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from made_up_run import make_up_run
from small_project import ROOT, preset

from opam.evaluation.lineage import COLUMNS, LOOKS
from opam.pipeline.artifacts import read_table, write_csv
from opam.pipeline.errors import OpamError
from opam.pipeline.revision import commit
from opam.report import summary
from opam.report.results import (
    ABLATION,
    combinations_text,
    keep_ablation_rows,
    markdown_table,
    measured,
    preset_of,
    presets_text,
    results_text,
    steps_text,
)
from opam.report.tables import SYSTEM_COLUMNS, system_cells

COMPARISON = pd.DataFrame(
    [
        {
            "system": "opam",
            "accuracy": 0.5,
            "accuracy_low": 0.4,
            "accuracy_high": 0.6,
            "macro_f1": 0.48,
            "mcnemar_p": 1.0,
            "parameters": 16_000_000,
        },
        {
            "system": "bcnn",
            "accuracy": 0.25,
            "accuracy_low": 0.2,
            "accuracy_high": 0.3,
            "macro_f1": 0.2,
            "mcnemar_p": 0.0123,
            "parameters": None,
        },
    ]
)


def test_a_row_a_system_and_an_empty_cell_for_what_was_not_measured() -> None:
    cells = system_cells(COMPARISON, list(SYSTEM_COLUMNS))
    assert markdown_table(*cells).splitlines() == [
        "| system | accuracy | 95% interval | macro F1 | McNemar's p | parameters |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| opam | 50.0% | 40.0% to 60.0% | 0.480 | 1 | 16.0 M |",
        "| bcnn | 25.0% | 20.0% to 30.0% | 0.200 | 0.012 |  |",
    ]


def test_the_summary_names_all_branches_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(make_up_run(tmp_path, 4, ["a", "b"]))
    monkeypatch.setenv("COLUMNS", "80")
    summary.main()
    shown = capsys.readouterr().out
    words = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert " ".join(words).endswith("original + object + part")
    assert "…" not in shown
    assert "opam predict" not in shown
    comparison = COMPARISON.assign(pointing=0.998, training_seconds=12345.0)
    write_csv(Path("data/comparison.csv"), comparison)
    summary.main()
    systems = [line for line in capsys.readouterr().out.splitlines() if "12345 s" in line]
    assert ["".join(line.split()) for line in systems] == [
        "│opam│50.0%│40.0%to60.0%│1│99.8%│12345s│",
        "│bcnn│25.0%│20.0%to30.0%│0.012│99.8%│12345s│",
    ]
    Path("data/bundle").mkdir()
    summary.main()
    assert "opam predict" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_preset_is_known_wherever_its_photographs_lie(path: Path) -> None:
    params = preset(path.stem)
    params["dataset"]["path"] = "/elsewhere"
    params["execution"]["threads"] = 7
    assert preset_of(params, ROOT / "presets") == f"preset `{path.stem}`"
    left_out = [*params["baselines"]][-2:]
    for name in left_out:
        del params["baselines"][name]
    less = f" without {', '.join(sorted(left_out))}"
    assert preset_of(params, ROOT / "presets") == f"preset `{path.stem}`{less}"
    params["seed"] += 1
    assert preset_of(params, ROOT / "presets") == "params of its own"


def test_the_page_is_written_from_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_up_run(tmp_path, 4, ["one", "two"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OpamError, match=r"comparison\.csv: not found"):
        results_text()
    write_csv(Path("data/comparison.csv"), COMPARISON)
    text = results_text()
    assert "| bcnn | 25.0% |" in text
    assert "| original + object + part | 50.0% | 40.0% to 60.0% |" in text
    assert "2 classes (photographs: 2 train, 0 val, 4 test)" in text
    assert "counts 0 results" in text
    look = ["0" * 64, "opam", "c0ffee", "ab", "0123abc", "0.5"]
    write_csv(LOOKS, pd.DataFrame([look, ["1" * 64, *look[1:]]], columns=COLUMNS))
    text = results_text()
    assert "counts 1 results" in text
    assert "| 1 | opam | c0ffee | 0123abc | 50.0% |" in text


def test_presets_stand_side_by_side_for_each_set_of_photographs() -> None:
    how = {"commit": "0123abc", "hardware": "two cores", "set": "cub200", "photographs": 40}
    how |= {"pixels": 9, "test": 20, "mean_iou": 0.65}
    wrong = [f"{number}" for number in range(10)]
    own = {"run": "frozen", "seed": 0, "seconds": 540.0, "accuracy": 0.95, "corloc": 0.875, **how}
    alone = {**own, "run": "finetune", "seconds": 1350.0, "corloc": None, "mean_iou": None}
    rows = [{**own, "wrong": wrong[:1]}, {**alone, "wrong": wrong[1:], "accuracy": 0.55}]
    text = presets_text(rows)
    assert "| frozen | 1 | 9.0 min | 1.00 | 95.0% | 87.5% | 0.65 | 0.021 |" in text
    assert "| finetune | 1 | 22.5 min | 2.50 | 55.0% |  |  |  |" in text
    assert "cub200, 40 photographs, 20 of them test. On\ntwo cores, commit 0123abc." in text
    more = [{**row, "seed": 1, "accuracy": row["accuracy"] - 0.01} for row in rows]
    others = [{**row, "set": "flowers"} for row in rows]
    text = presets_text([*rows, *more, *others])
    assert "| frozen | 2 | 9.0 min | 1.00 | 94.5 ± 6.4% | 87.5% | 0.65 | 0.021, 0.021 |" in text
    assert text.index("cub200, 40") < text.index("flowers, 40")


def test_the_page_shows_an_ablation_of_the_same_params_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_up_run(tmp_path, 4, ["one", "two"])
    monkeypatch.chdir(tmp_path)
    write_csv(Path("data/comparison.csv"), COMPARISON)
    params = yaml.safe_load(Path("params.yaml").read_text())
    row = {"variant": "as it is", "commit": "0123abc", "object": 0.5, "fused": 0.25}
    rows = [{**row, "seed": seed} for seed in (3, 4)]
    manifest = read_table(Path("data/manifest.parquet"), "manifest")
    alike = measured({**params, "seed": 9, "baselines": {}}, manifest)
    keep_ablation_rows(ABLATION, alike, rows)
    text = " ".join(results_text().split())
    assert "means over 2 seeds." in text
    assert "Measured at 0123abc." in text
    params["parts"]["n_parts"] += 1
    for other in (measured(params, manifest), {**alike, "pixels": alike["pixels"] * 2}):
        ABLATION.unlink()
        keep_ablation_rows(ABLATION, other, rows)
        assert "0123abc" not in results_text()


def test_a_commit_stands_for_its_code_whatever_the_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The params are told beside it: those of a preset with a path of one's own are a change."""
    monkeypatch.chdir(tmp_path)
    assert commit() is None

    def git(*command: str) -> str:
        own = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *command]
        return subprocess.run(own, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "src").mkdir()
    for name in ("params.yaml", "src/code.py"):
        (tmp_path / name).write_text("old")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")[:12]
    (tmp_path / "params.yaml").write_text("new")
    assert commit() == head
    (tmp_path / "src/code.py").write_text("new")
    assert commit() == f"{head}, with changes that are not committed"


def test_changes_are_compared_between_runs_of_the_same_seed() -> None:
    fused = {("as it is", 0): 0.90, ("as it is", 1): 0.80, ("bare", 0): 0.88, ("bare", 1): 0.76}
    rows = [{"variant": v, "seed": s, "object": 0.5, "fused": f} for (v, s), f in fused.items()]
    # differences -2 and -4 points: mean -3, standard error 1, t of one degree of freedom 12.706
    assert steps_text(rows).splitlines()[2:] == [
        "| as it is | 50.0% | 85.0% |  |",
        "| bare | 50.0% | 82.0% | -3.0 ± 12.7 |",
    ]


def test_combinations_are_of_the_unchanged_runs() -> None:
    rows = [
        {"variant": "as it is", "seed": 0, "object": 0.5, "equal weights": 0.9, "fused": 0.90},
        {"variant": "as it is", "seed": 1, "object": 0.6, "equal weights": 0.8, "fused": 0.80},
        {"variant": "bare", "seed": 0, "object": 0.1, "equal weights": 0.1, "fused": 0.1},
    ]
    for row, on_val in zip(rows, (0.4, 0.7, 0.2), strict=True):
        row["object on val"] = on_val
    # fused ahead of object by 40 and 20 points: mean 30, standard error 10
    assert combinations_text(rows).splitlines()[2:] == [
        "| object | 55.0 ± 63.5 | +30.0 ± 127.1 | 55.0 |",
        "| equal weights | 85.0 ± 63.5 |  |  |",
        "| fused | 85.0 ± 63.5 |  |  |",
    ]
