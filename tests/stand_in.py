"""dvc.yaml as it is, with scripts that hash what their stage declares instead of computing it."""

import json
import shutil
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
# Through JSON: what YAML shares between systems would change together.
PARAMS = json.loads(json.dumps(yaml.safe_load((ROOT / "params.yaml").read_text())))
STAGES: dict[str, dict] = {}
for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
    for key in PARAMS["baselines"] if "foreach" in stage else [""]:
        text = yaml.safe_dump(stage.get("do", stage)).replace("${key}", key)
        STAGES[f"{name}@{key}" if key else name] = yaml.safe_load(text)
ARTIFACTS = [out for stage in STAGES.values() for out in stage["outs"]]
FOLDERS = {out for out in ARTIFACTS if not Path(out).suffix}

SCRIPT = f"""
import hashlib, json, os, pathlib, sys, yaml

name, entry = sys.argv[1], "".join(sys.argv[2:])
stage = yaml.safe_load(open("dvc.yaml"))["stages"][name]
stage = yaml.safe_load(yaml.safe_dump(stage.get("do", stage)).replace("${{key}}", entry))
name += "@" + entry if entry else ""
digest = hashlib.sha256(name.encode())
params = yaml.safe_load(open("params.yaml"))
for section in stage.get("params", []):
    value = params
    for key in section.split("."):
        value = value[key]
    digest.update(json.dumps([section, value], sort_keys=True).encode())
for dependency in stage["deps"]:
    if dependency.startswith("data/"):
        path = pathlib.Path(dependency)
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(file.read_bytes())
for out in stage["outs"]:
    names = [out + "/one.txt", out + "/two.txt"] if out in {FOLDERS} else [out]
    for path in map(pathlib.Path, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(digest.hexdigest() + str(path))
with open(os.environ["EXECUTIONS"], "a") as log:
    log.write(name + "\\n")
"""


def lay_out(folder: Path) -> None:
    """Write the project; each script adds its stage's name to the file that EXECUTIONS names."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for name, stage in content["stages"].items():
        key = " ${key}" if "foreach" in stage else ""
        stage.get("do", stage)["cmd"] = f"{sys.executable} stand_in.py {name}{key}"
    del content["plots"]
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    (folder / "stand_in.py").write_text(SCRIPT)
