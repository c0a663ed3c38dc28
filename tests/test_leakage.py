"""Nothing of val and test reaches what is trained: their pixels and labels may be any."""

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_project import BASELINES, Undisturbed, call, digests, scripts

from opam.pipeline.artifacts import read_table, write_table

TRAINING = [
    "propose_patches",
    "train_filternet",
    "score_patches",
    "filter_patches",
    "train_classnet",
    "extract_saliency",
    "colocalize",
    "extract_objects",
    "select_parts",
    "align_parts",
    "train_objectnet",
    "train_partnet",
    "fit_probes",
    *(f"train_baseline@{name}" for name in BASELINES),
]
OF_TRAINING = {
    "data/patch_scores.parquet",
    "data/kept_patches.parquet",
    "data/common_component.json",
    "data/neuron_clusters.json",
    *(
        f"data/models/{name}.safetensors"
        for name in ("filternet", "classnet", "objectnet", "partnet", "probes", "part_probes")
    ),
    *(f"data/baselines/{name}/weights.safetensors" for name in BASELINES),
}
ROWS_OF_TRAINING = {
    "proposals": "proposals",
    "saliency": "saliency",
    "object_maps": "object_maps",
    "objects": "objects",
    "parts": "parts",
    "aligned_parts": "aligned_parts",
}


def alter(archive: Path, manifest: pd.DataFrame) -> None:
    """Noise for every photograph of val and test, in as many pixels; the manifest is told."""
    rng = np.random.default_rng(0)
    sizes = {
        row.path.removeprefix("data/raw.zip/"): (row.height, row.width, 3)
        for row in manifest[manifest["split"] != "train"].itertuples()
    }
    whole = zipfile.ZipFile(io.BytesIO(archive.read_bytes()))
    with zipfile.ZipFile(archive, "w") as to:
        for member in whole.infolist():
            content = whole.read(member)
            if member.filename in sizes:
                pixels = rng.integers(0, 256, sizes.pop(member.filename), dtype=np.uint8)
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "JPEG")
                content = stream.getvalue()
                own = manifest["path"] == f"data/raw.zip/{member.filename}"
                manifest.loc[own, "sha256"] = hashlib.sha256(content).hexdigest()
            to.writestr(member, content)
    assert not sizes


@pytest.mark.slow
def test_training_is_the_same_whatever_val_and_test_are(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(undisturbed.untouched, folder)
    path = folder / "data/manifest.parquet"
    manifest = read_table(path, "manifest")
    alter(folder / "data/raw.zip", manifest)
    held_out = manifest["split"] != "train"
    classes = manifest["label"].nunique()
    manifest.loc[held_out, "label"] = (manifest.loc[held_out, "label"] + 1) % classes
    write_table(path, "manifest", manifest)
    done = call(folder, *scripts(TRAINING))
    assert done.returncode == 0, done.stderr
    found = digests(folder)
    assert set(undisturbed.digests) >= OF_TRAINING
    assert [name for name in OF_TRAINING if found[name] != undisturbed.digests[name]] == []
    training = manifest.loc[~held_out, "image_id"]
    for name, schema in ROWS_OF_TRAINING.items():
        before, after = (
            read_table(each / f"data/{name}.parquet", schema).set_index("image_id")
            for each in (undisturbed.untouched, folder)
        )
        pd.testing.assert_frame_equal(before.loc[training], after.loc[training])
        if name == "object_maps":  # random weights find no one object, whatever is shown
            assert not np.concatenate(after["map"].to_list()).any()
        else:
            assert not before.equals(after), name
