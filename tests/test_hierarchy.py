"""Classes in their parents: figures at each level, answers that are sure enough, the page."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_run import make_up_run, report, run_stage

from opam.app.classifier import Classification
from opam.app.predict import ANSWER, columns, row, write_rows
from opam.evaluation.hierarchy import (
    level_figures,
    parent_indices,
    parent_probabilities,
    probabilities_by_level,
    sure_answer,
)
from opam.evaluation.metrics import bootstrap_interval
from opam.method.fusion import BRANCHES, FUSED
from opam.photographs.preparation import class_parents
from opam.pipeline.artifacts import read_json, read_table, write_table
from opam.pipeline.errors import OpamError
from opam.report.model_card import model_card
from opam.report.page.levels import levels
from opam.report.summary import level_words

CLASSES = ["gull", "tern", "tit", "wren"]
PARENTS = ["sea", "sea", "land", "land"]


# What a set says of its classes


def said(*rows: tuple[str, int, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A photograph a row, of a class with a coarser label."""
    table = pd.DataFrame(rows, columns=["class_name", "level", "label"])
    table["image_id"] = [str(number) for number in range(len(table))]
    return table[["image_id", "class_name"]], table[["image_id", "level", "label"]]


def test_a_class_without_a_coarser_label_stands_for_itself() -> None:
    images, coarse = said(("gull", 1, "sea"), ("tern", 1, "sea"), ("gull", 2, "bird"))
    assert class_parents(images, coarse, ["gull", "owl", "tern"]) == [
        ["sea", "owl", "sea"],
        ["bird", "owl", "bird"],
    ]
    assert class_parents(images, coarse.head(0), ["gull", "tern"]) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("gull", 1, "sea"), ("gull", 1, "land")], "'gull' lies in 'sea' and in 'land'"),
        (
            [("gull", 1, "sea"), ("tern", 1, "sea"), ("gull", 2, "bird"), ("tern", 2, "fish")],
            "'sea' lies in 'bird' and in 'fish' \\(level 2",
        ),
    ],
)
def test_two_parents_are_told(rows: list[tuple[str, int, str]], message: str) -> None:
    with pytest.raises(OpamError, match=message) as caught:
        class_parents(*said(*rows), ["gull", "tern"])
    assert "\n" not in str(caught.value)


# Figures


def test_figures_of_a_level_are_those_of_literal_sums() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 60)
    probabilities = rng.dirichlet(np.full(4, 0.6), 60).astype(np.float32)
    right, within, between = [], 0, 0
    for own, label in zip(probabilities, labels, strict=True):
        sums = {"sea": 0.0, "land": 0.0}
        for each, parent in zip(own, PARENTS, strict=True):
            sums[parent] += float(each)
        right.append(max(sums, key=lambda name: sums[name]) == PARENTS[label])
        answer = int(own.argmax())
        within += answer != label and PARENTS[answer] == PARENTS[label]
        between += PARENTS[answer] != PARENTS[label]
    assert min(within, between) > 0
    found = level_figures(probabilities, labels, PARENTS, 200, 3)
    low, high = bootstrap_interval(np.array(right), 200, 3)
    assert found == {
        "names": 2,
        "accuracy": pytest.approx(np.mean(right)),
        "accuracy_low": low,
        "accuracy_high": high,
        "errors_within": pytest.approx(within / (within + between)),
        "errors_between": pytest.approx(between / (within + between)),
    }
    names, of_class = parent_indices(PARENTS)
    assert names == ["land", "sea"]
    sums = parent_probabilities(probabilities, of_class)
    np.testing.assert_allclose(sums[:, 1], probabilities[:, :2].sum(1), rtol=1e-6)


def test_where_nothing_is_wrong_there_are_no_shares_of_it() -> None:
    found = level_figures(np.eye(4), np.arange(4), PARENTS, 100, 0)
    assert found["accuracy"] == 1
    assert found["errors_within"] is found["errors_between"] is None
    assert level_words(found) == "2 parents, accuracy 100.0%"
    wrong = level_figures(np.eye(4)[[1, 0, 0, 3]], np.arange(4), PARENTS, 100, 0)
    assert level_words(wrong) == (
        "2 parents, accuracy 75.0%; 67% of the wrong classes are of the right parent"
    )


# Answers that are sure enough


@pytest.mark.parametrize(
    ("probabilities", "sure", "expected"),
    [
        ([0.96, 0.02, 0.01, 0.01], 0.95, ("gull", 0, 0.96)),
        ([0.5, 0.45, 0.03, 0.02], 0.95, ("sea", 1, 0.95)),
        ([0.4, 0.1, 0.3, 0.2], 0.95, ("", None, None)),
        ([0.4, 0.0, 0.3, 0.3], 0.6, ("land", 1, 0.6)),  # not the parent of the best class
        ([0.3, 0.2, 0.3, 0.2], 0.5, ("land", 1, 0.5)),  # of two alike the first by name
        ([0.4, 0.1, 0.4, 0.1], 0.4, ("gull", 0, 0.4)),
        ([0.25, 0.25, 0.25, 0.25], 0.0, ("gull", 0, 0.25)),
        ([1.0, 0.0, 0.0, 0.0], 1.0, ("gull", 0, 1.0)),
        ([0.3, 0.7, 0.0, 0.0], 1.0, ("sea", 1, 1.0)),
        ([0.3, 0.6, 0.1, 0.0], 1.0, ("", None, None)),
    ],
)
def test_the_finest_level_that_is_sure_enough_answers(
    probabilities: list[float], sure: float, expected: tuple[str, int | None, float | None]
) -> None:
    own = np.array(probabilities, dtype=np.float32)
    assert sure_answer(probabilities_by_level(own, CLASSES, [PARENTS]), sure) == expected


def test_without_parents_a_class_answers_or_nothing_and_with_more_levels_they_do() -> None:
    own = np.array([0.5, 0.4, 0.1, 0.0])
    alone = probabilities_by_level(own, CLASSES, [])
    assert sure_answer(alone, 0.5) == ("gull", 0, 0.5)
    assert sure_answer(alone, 0.6) == ("", None, None)
    deep = probabilities_by_level(own, CLASSES, [PARENTS, ["bird"] * 4])
    assert sure_answer(deep, 0.95) == ("bird", 2, 1.0)


def classified(probabilities: list[float]) -> Classification:
    own = np.array(probabilities)
    box = np.array([0, 0, 9, 9])
    return Classification(
        *(int(own.argmax()), CLASSES[own.argmax()], dict.fromkeys((*BRANCHES, "fused"), own)),
        *(box, box[None], np.zeros(1, int), 1.0, "none", "none"),
        by_level=probabilities_by_level(own, CLASSES, [PARENTS]),
    )


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_answers_stand_in_every_format_and_only_where_they_are_asked_for(
    tmp_path: Path, ending: str
) -> None:
    classifier: Any = SimpleNamespace(
        classes=CLASSES, steps={"parts": SimpleNamespace(n_parts=1)}, levels=[PARENTS]
    )
    shown = [[0.97, 0.01, 0.01, 0.01], [0.5, 0.46, 0.04, 0.0], [0.4, 0.2, 0.2, 0.2]]
    found = [(Path(f"{number}.jpg"), classified(each)) for number, each in enumerate(shown)]
    broken = {"photograph": "bad.jpg", "error": "no"}
    out = tmp_path / f"results.{ending}"
    for sure in (None, 0.95):
        rows = [row(path, each, CLASSES, 2, 0.05, sure) for path, each in found]
        write_rows(out, [*rows, broken], columns(classifier, 2, sure))
        table = {
            "csv": pd.read_csv,
            "jsonl": lambda path: pd.read_json(path, lines=True),
            "parquet": pd.read_parquet,
        }[ending](out)
        assert set(ANSWER) & set(table) == (set() if sure is None else {*ANSWER})
    assert table["answer"].fillna("").tolist() == ["gull", "sea", "", ""]
    assert table["answer_level"].fillna(-1).tolist() == [0, 1, -1, -1]
    assert table["answer_probability"].fillna(-1).tolist() == [0.97, 0.96, -1, -1]
    if ending == "jsonl":
        last = [json.loads(line)["answer"] for line in out.read_text().splitlines()[2:]]
        assert last == ["", None]  # not sure, and not read


# The stages


def run_evaluate(folder: Path) -> dict[str, Any]:
    keypoints = pd.DataFrame(columns=["image_id", "part", "x", "y", "visible"])
    write_table(folder / "data/keypoints.parquet", "keypoints", keypoints)
    done = run_stage(folder, "evaluate")
    assert done.returncode == 0, done.stderr
    return read_json(folder / "data/metrics.json")


def test_metrics_and_the_page_tell_of_parents_where_there_are_any(tmp_path: Path) -> None:
    evil = "<b>sea</b>"
    parents = [evil, evil, "land", "land"]
    folder = make_up_run(tmp_path / "nested", 80, CLASSES, parents=parents)
    metrics = run_evaluate(folder)
    predictions = read_table(folder / "data/predictions.parquet", "predictions")
    assert list(metrics["levels"]) == ["level_1"]
    sums = np.stack(predictions["probabilities"].to_list()).reshape(-1, 2, 2).sum(2)
    right = sums.argmax(1) == predictions["label"].to_numpy() // 2
    assert metrics["levels"]["level_1"]["accuracy"] == pytest.approx(right.mean())

    assert report(folder).returncode == 0
    html = (folder / "data/report/index.html").read_text()
    section = html[html.index('<section id="levels"') : html.index('<section id="trust"')]
    assert '<a href="#levels">' in html
    assert evil not in html
    assert f"{right.mean():.1%}" in section
    wrong = predictions[predictions["fused"] != predictions["label"]]
    crossed = (wrong["fused"] // 2 != wrong["label"] // 2).mean()
    assert metrics["levels"]["level_1"]["errors_between"] == pytest.approx(crossed)
    assert f"{crossed:.0%}" in section
    assert 'data-show-actual="0" data-show-predicted="1">gull</button>' in section
    for title in ("levels", "parents", "between", "within"):
        scrolled = f'tabindex="0" role="region" aria-labelledby="{title}-title"'
        assert scrolled in section
        assert section.count(f'id="{title}-title"') == 1

    flat = make_up_run(tmp_path / "flat", 80, CLASSES)
    assert "levels" not in run_evaluate(flat)
    assert report(flat).returncode == 0
    assert "#levels" not in (flat / "data/report/index.html").read_text()
    assert 'id="levels"' not in (flat / "data/report/index.html").read_text()


def test_tables_of_parents_count_what_became_of_their_photographs() -> None:
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    answers = np.array([0, 1, 1, 2, 1, 2, 0])
    found = levels(labels, answers, [["sea", "sea", "land", "moor"]], CLASSES)
    assert found is not None
    land, moor, sea = found["parents"]
    assert [land[name] for name in ("name", "classes", "photographs")] == ["land", 1, 2]
    assert [land[name] for name in ("right", "within", "between", "kept")] == [0.5, 0, 0.5, 0.5]
    assert [sea[name] for name in ("right", "within", "between", "kept")] == [0.4, 0.4, 0.2, 0.8]
    assert sea["low"] < 0.8 < sea["high"]
    assert moor["photographs"] == 0
    assert np.isnan(moor["right"])
    pairs = [(row["actual"], row["answer"], row["photographs"]) for row in found["between"]]
    assert pairs == [("land", "sea", 1), ("sea", "land", 1)]
    assert [row["share"] for row in found["between"]] == [0.5, 0.2]
    [within] = found["within"]
    assert [within[name] for name in ("actual", "answer", "photographs", "parent")] == [
        0,
        1,
        2,
        "sea",
    ]
    assert (within["actual_name"], within["answer_name"]) == ("gull", "tern")
    assert levels(labels, answers, [], CLASSES) is None


def test_the_card_of_a_bundle_has_a_row_a_level() -> None:
    interval = {"accuracy_low": 0.4, "accuracy_high": 0.6, "macro_f1": 0.5}
    metrics: dict[str, Any] = {
        "images": 4,
        "accuracy": {"fused": 0.5},
        "fused": {**interval, "calibration_error": 0.1},
    }
    photographs = {"train": 1, "val": 1, "test": 1, "sha256": "0" * 64}
    lineage = {"photographs": photographs, "versions": {}, "seed": 0, "commit": None}
    bundle = {
        "classes": CLASSES,
        "fusion": {"weights": {FUSED: {"original": 1.0}}},
        "lineage": {**lineage, "looks_at_test": 1},
    }
    assert "level" not in model_card(bundle, "x", metrics).partition("## Use")[0]
    metrics["levels"] = {"level_1": {"names": 2, "accuracy": 0.75}}
    assert "| fused, level 1 (2 parents) | 75.0% |" in model_card(bundle, "x", metrics)
