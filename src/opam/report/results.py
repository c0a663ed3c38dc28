"""docs/results.md: the figures of a finished run as text, with what they were measured on.

Run: ``make results``.
"""

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from scipy.stats import t

from opam.evaluation.lineage import LOOKS, PHOTOGRAPHS, looks_at
from opam.evaluation.metrics import mcnemar_p
from opam.pipeline.artifacts import atomic, read_json, read_table, write_json
from opam.pipeline.device import ExecutionParams, prepare_device
from opam.pipeline.errors import OpamError, run
from opam.pipeline.params import params_path, read_params, read_yaml, resolved
from opam.pipeline.presets import DEFAULTS, PRESETS, laid_over
from opam.pipeline.revision import commit
from opam.report.page.tables import fusion_weights
from opam.report.tables import SYSTEM_COLUMNS, branch_cells, location_cells, system_cells

DATA = Path("data")
RESULTS = Path("docs/results.md")
ABLATION = Path("benchmarks/ablation.json")
SIDE_BY_SIDE = Path("benchmarks/presets.json")
UNKNOWN = Path("benchmarks/unknown.json")
FINETUNE = "finetune"
"""The run of ``benchmarks/presets.py`` that the others are held against."""
ON_VAL = " on val"
"""Ends the name of a figure of the ablation that is of val, not of test."""


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """A table, its first column to the left, the others to the right."""
    rule = ["---"] + ["---:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, rule, *rows])


def steps_text(rows: list[dict[str, Any]]) -> str:
    """What each change of a step does: mean over the seeds, and its distance to no change.

    The distance is between runs of the same seed, with its 95% interval by Student's t.
    """
    table = pd.DataFrame(rows).set_index(["seed", "variant"])
    fused = table["fused"].unstack()
    kept = rows[0]["variant"]
    figures = ("original", "object", "part", "fused", "fused" + ON_VAL, "CorLoc")
    shown = [name for name in figures if name in table]
    lines = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        runs = table.xs(name, level="variant")
        apart = (fused[name] - fused[kept]).dropna()
        lines.append(
            [name, *(f"{runs[each].mean():.1%}" for each in shown), _distance(apart.to_numpy())]
        )
    return markdown_table(["changed", *shown, "fused, in points"], lines)


def combinations_text(rows: list[dict[str, Any]]) -> str:
    """Each branch, pair and fusion of the runs with nothing changed: mean over the seeds.

    With the mean, its 95% interval by Student's t, how far fused is from it, and the mean on val.
    """
    runs = pd.DataFrame([row for row in rows if row["variant"] == rows[0]["variant"]])
    lines = []
    for name in runs.columns.drop(["variant", "seed", "commit", "CorLoc"], errors="ignore"):
        if not name.endswith(ON_VAL):
            ahead = (runs["fused"] - runs[name]).to_numpy()
            on_val = f"{100 * runs[name + ON_VAL].mean():.1f}" if name + ON_VAL in runs else ""
            lines.append([name, _mean(runs[name].to_numpy(), "{:.1f}"), _distance(ahead), on_val])
    headings = ["combination", "accuracy, %", "fused ahead, in points", "on val, %"]
    return markdown_table(headings, lines)


def _distance(apart: np.ndarray) -> str:
    return _mean(apart, "{:+.1f}") if apart.any() else ""


def _mean(shares: np.ndarray, style: str) -> str:
    text = style.format(100 * shares.mean())
    if len(shares) > 1:
        half = t.ppf(0.975, len(shares) - 1) * shares.std(ddof=1) / np.sqrt(len(shares))
        text += f" ± {100 * half:.1f}"
    return text


def compared(params: dict[str, Any]) -> dict[str, Any]:
    """What the figures depend on: not where the photographs lie, nor on what machine it runs."""
    params = resolved(params, params_path())
    return {**params, "dataset": {**params["dataset"], "path": None}, "execution": None}


def of_networks(params: dict[str, Any]) -> dict[str, Any]:
    """What the ablation starts from: ``params``, but the probes are left out of the fusion.

    They depend on few of the steps, and hide what the others do to the networks.
    """
    return {**params, "fusion": {**params["fusion"], "scores": "networks"}}


def photographs(manifest: pd.DataFrame) -> dict[str, int]:
    """Their number and their pixels, which tell a data set from its smaller copies."""
    pixels = manifest["width"] * manifest["height"]
    return {"photographs": len(manifest), "pixels": int(pixels.sum())}


def measured(params: dict[str, Any], manifest: pd.DataFrame) -> dict[str, Any]:
    """What the ablation's figures depend on beside the seed: nothing of the other systems."""
    networks = {**compared(of_networks(params)), "baselines": None, "seed": None}
    return {"params": networks, **photographs(manifest)}


def ablation_rows(path: Path, ablated: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that ``path`` holds of what `measured` gave; none if it is not there."""
    found = read_json(path) if path.exists() else []
    return next((list(each["rows"]) for each in found if each["measured"] == ablated), [])


def keep_ablation_rows(path: Path, ablated: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Have ``path`` hold ``rows`` of what `measured` gave, beside those of other params."""
    found = read_json(path) if path.exists() else []
    others = [each for each in found if each["measured"] != ablated]
    write_json(path, [*others, {"measured": ablated, "rows": rows}])


def ablation_text(rows: list[dict[str, Any]]) -> str:
    """What each step is worth, by the rows of an ablation; the first names the unchanged run."""
    commits = ", ".join(sorted({row["commit"] or "unknown" for row in rows}))
    seeds = len({row["seed"] for row in rows})
    return f"""
## What each step is worth

Of the fine-tuned networks, without the probes. One thing changed at a time (`make ablation`); means
over {seeds} seeds. In the last column, how far fused is from the first row, between runs of the
same seed, with its 95% interval. Measured at {commits}.

{steps_text(rows)}

With nothing changed, each branch, each pair, all with equal weights, and all with those of val:

{combinations_text(rows)}
"""


def preset_of(params: dict[str, Any], presets: Path) -> str:
    """The preset that params.yaml is, whatever path and execution are, or that it is none.

    It may have fewer of the other systems.
    """
    for path in sorted(presets.glob("*.yaml")):
        preset = yaml.safe_load(laid_over(presets / DEFAULTS.name, path))
        left_out = preset["baselines"].keys() - params["baselines"].keys()
        for name in left_out:
            del preset["baselines"][name]
        if compared(preset) == compared(params):
            less = f" without {', '.join(sorted(left_out))}" if left_out else ""
            return f"preset `{path.stem}`{less}"
    return "params of its own"


def hardware() -> str:
    """What this machine trains on."""
    execution = read_params("execution", ExecutionParams)
    device = prepare_device(execution)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{execution.threads} of {os.cpu_count()} cores ({platform.machine()}), no GPU"


def looks_text(digest: str) -> str:
    """The looks at the test split of these photographs, by their SHA-256, that are on record."""
    looks = looks_at(digest)
    rows = [
        [str(number), row["system"], row["configuration"], row["commit"], f"{row['accuracy']:.1%}"]
        for number, row in enumerate(looks.to_dict("records"), start=1)
    ]
    return f"""
## Looks at test

{LOOKS} counts {len(looks)} results on the test split of these photographs; a configuration is the
digest of all parameters.

{markdown_table(["look", "system", "configuration", "commit", "accuracy"], rows)}
"""


def presets_text(rows: list[dict[str, Any]]) -> str:
    """Presets, and the fine-tuned network alone, a table for each set of photographs.

    Args:
        rows: what ``benchmarks/presets.py`` measured, of one or more seeds each.
    """
    text = f"""
## Presets side by side

Each run begins with nothing (`python benchmarks/presets.py`): time from photographs to accuracy on
test, over the first row's; means over the seeds, with 95% intervals by Student's t where there are
several. Splits differ where a preset holds back no val; test is the same. McNemar's p is against
`{FINETUNE}`, for each seed that both have.
"""
    headings = ["run", "seeds", "time", "over the first", "accuracy", "CorLoc", "mean IoU", "p"]
    for (name, count), table in pd.DataFrame(rows).groupby(["set", "photographs"], sort=False):
        runs = {run: table[table["run"] == run] for run in table["run"].unique()}
        first = runs[table["run"].iloc[0]]["seconds"].mean()
        commits = ", ".join(dict.fromkeys(table["commit"].fillna("unknown")))
        lines = [
            [
                run,
                str(len(own)),
                f"{own['seconds'].mean() / 60:.1f} min",
                f"{own['seconds'].mean() / first:.2f}",
                _mean(own["accuracy"].to_numpy(), "{:.1f}") + "%",
                "" if own["corloc"].isna().any() else f"{own['corloc'].mean():.1%}",
                "" if own["mean_iou"].isna().any() else f"{own['mean_iou'].mean():.2f}",
                ", ".join(f"{p:.2g}" for p in _against(own, runs.get(FINETUNE))),
            ]
            for run, own in runs.items()
        ]
        text += f"""
{name}, {count} photographs, {table["test"].iloc[0]} of them test. On
{", ".join(dict.fromkeys(table["hardware"]))}, commit {commits}.

{markdown_table(headings, lines)}
"""
    return text


def unknown_text(content: dict[str, Any]) -> str:
    """How well photographs of nothing that is known are told from those of known classes.

    Args:
        content: what ``benchmarks/unknown.py`` measured.
    """
    rows = [
        [
            f"{row['unknown']} ({row['photographs']})",
            row["score"],
            f"{row['auroc']:.3f}",
            f"{row['false_positives']:.0%}",
        ]
        for row in content["rows"]
    ]
    accepted = ", ".join(f"{found:.1%} at {asked}" for asked, found in content["accepted"].items())
    headings = ["unknown photographs", "score", "AUROC", "let pass where 95% of the known do"]
    return f"""
## What is unknown

{content["known"]} test photographs of known classes against photographs of other classes, by three
scores (`python benchmarks/unknown.py`): familiarity, as `opam predict` tells it, of objects at
{content["input_size"]} pixels; the largest fused probability; the energy of ObjectNet's logits (Liu
et al., NeurIPS 2020), an ObjectNet by {content["objectnet"]}. Of the known ones, called unknown:
{accepted} accepted.

{markdown_table(headings, rows)}
"""


def _against(own: pd.DataFrame, others: pd.DataFrame | None) -> list[float]:
    """McNemar's p between the runs of the same seed, from the photographs that each got wrong."""
    if others is None or own["run"].iloc[0] == FINETUNE:
        return []
    found = []
    for _, (one, other) in own.merge(others, on="seed")[["wrong_x", "wrong_y"]].iterrows():
        either = sorted({*one, *other})
        right = (np.array([each not in wrong for each in either]) for wrong in (one, other))
        found.append(mcnemar_p(*right))
    return found


def results_text() -> str:
    """All of docs/results.md.

    Raises:
        OpamError: an artifact of the run is missing.
    """
    params = read_yaml(params_path())
    manifest = read_table(DATA / "manifest.parquet", "manifest")
    metrics = read_json(DATA / "metrics.json")
    fusion = read_json(DATA / "fusion.json")
    try:
        ablation = pd.read_csv(DATA / "plots/ablation.csv")
        locations = pd.read_csv(DATA / "plots/part_locations.csv")
        comparison = pd.read_csv(DATA / "comparison.csv")
    except FileNotFoundError as error:
        raise OpamError(f"{error.filename}: not found; run `make repro-all`") from None
    sizes = manifest["split"].value_counts()
    counts = ", ".join(f"{sizes.get(split, 0)} {split}" for split in ("train", "val", "test"))
    text = f"""# Results

Written by `make results` from a finished `make repro-all`. Nothing was chosen on the test split;
intervals are 95% bootstrap intervals over its photographs.

**What was run**: {preset_of(params, PRESETS)}, data set `{params["dataset"]["name"]}` with
{manifest["label"].nunique()} classes (photographs: {counts}), backbone
`{params["backbone"]["name"]}`, commit {commit() or "unknown"}.
**On**: {hardware()}.

## The systems side by side

Same photographs, split, pretrained backbone, augmentation and evaluation. McNemar's p is against
OPAM. Pointing: the centre of the system's best region lies in the true box. GFLOPs, and
photographs a second, are of one whole classification, for OPAM all its networks; its training
seconds are those of its four networks.

{markdown_table(*system_cells(comparison, list(SYSTEM_COLUMNS)))}

## What each branch is worth

Each combination with weights of its own, chosen on val; there it is measured on the folds that they
were not chosen on.

{markdown_table(*branch_cells(ablation))}

Fusion weights, chosen by {len(fusion["folds"])}-fold cross-validation on val:
{fusion_weights(fusion)}.
McNemar's p of fused against original: {metrics["mcnemar_p"]:.2g}.
"""
    box = metrics.get("object_box", {})
    if "corloc" in box:
        text += f"""
## Where it looks

The object box has IoU of at least 0.5 with the true one in {box["corloc"]:.1%} of the test
photographs (mean IoU {box["mean_iou"]:.2f}). No box was trained on.
"""
    if len(locations):
        text += f"""
Share of test photographs in which a part of each cluster holds the named location:

{markdown_table(*location_cells(locations))}
"""
    beside = read_json(SIDE_BY_SIDE) if SIDE_BY_SIDE.exists() else []
    if beside:
        text += presets_text(beside)
    if UNKNOWN.exists():
        text += unknown_text(read_json(UNKNOWN))
    text += looks_text(read_json(PHOTOGRAPHS)["sha256"])
    rows = ablation_rows(ABLATION, measured(params, manifest))
    return text + ablation_text(rows) if rows else text


def main() -> None:
    """Write docs/results.md."""
    text = results_text()
    with atomic(RESULTS) as temporary:
        temporary.write_text(text)
    print(f"{RESULTS} written")


if __name__ == "__main__":
    run(main)
