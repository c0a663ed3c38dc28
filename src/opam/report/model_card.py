"""The text beside a bundle: what it is, what it was measured at, what it is for."""

from typing import Any

from opam.method.fusion import FUSED, branch_shares


def model_card(bundle: dict[str, Any], backbone: str, metrics: dict[str, Any]) -> str:
    """Markdown.

    Args:
        bundle: content of ``bundle.json``.
        backbone: its timm name.
        metrics: content of ``metrics.json``.
    """
    accuracy, fused = metrics["accuracy"], metrics["fused"]
    shares = branch_shares(bundle["fusion"]["weights"][FUSED])
    weights = ", ".join(f"{branch} {share:.0%}" for branch, share in shares.items())
    levels = metrics.get("levels", {}).items()
    coarser = {
        f"fused, {name.replace('_', ' ')} ({level['names']} parents)": level["accuracy"]
        for name, level in levels
    }
    rows = "\n".join(f"| {by} | {value:.1%} |" for by, value in {**accuracy, **coarser}.items())
    box = metrics.get("object_box", {})
    localisation = (
        f"The object box has IoU of at least 0.5 with the true one in {box['corloc']:.1%} of the "
        f"photographs (mean IoU {box['mean_iou']:.2f}); no box was trained on.\n"
        if "corloc" in box
        else "The data set has no boxes, so that localisation was not measured.\n"
    )
    if box.get("whole_photograph"):
        localisation += (
            f"In {box['whole_photograph']:.1%} of the photographs no one object was found.\n"
        )
    lineage = bundle["lineage"]
    photographs = lineage["photographs"]
    classes = "\n".join(f"- {name}" for name in bundle["classes"])
    versions = ", ".join(
        f"{name} {number}" for name, number in bundle["lineage"]["versions"].items()
    )
    return f"""# Object-Part Attention Model, {len(bundle["classes"])} classes

Tells apart the classes below in photographs that show one object of one of them. It gives the
class, the object's box, its parts, and the probabilities by the whole photograph, the object,
its parts, and all of them fused. Trained from photographs with a label each; backbone {backbone}.

## Measured

On {metrics["images"]} photographs of the test split, which nothing was chosen on:

| by | accuracy |
|---|---|
{rows}

Fused: 95% interval {fused["accuracy_low"]:.1%} to {fused["accuracy_high"]:.1%}, macro F1
{fused["macro_f1"]:.3f}, expected calibration error {fused["calibration_error"]:.3f}. Fusion
weights, searched on the val split: {weights}.

{localisation}
## Use

For photographs like those it was trained on. It always answers with one of its classes: a
photograph of anything else gets one of them too, and its probability is no measure of that.
Where the calibration error above is large, read probabilities as an order and not as
frequencies. Measure it on your own photographs before decisions depend on it.

    opam predict photographs/ --bundle . --out results.csv

`known.parquet` holds small pictures of the training photographs, which `--explain` shows; all else
works without it.

## Made from

{photographs["train"]} photographs for training, {photographs["val"]} for val and
{photographs["test"]} for test (SHA-256 with labels and splits: `{photographs["sha256"][:16]}`),
seed {lineage["seed"]}, commit {lineage["commit"] or "not known"}, {versions}. Results on these test
photographs that were looked at so far, this one included: {lineage["looks_at_test"]}. Every
parameter is in `bundle.json`.

## Classes

{classes}
"""
