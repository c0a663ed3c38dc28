"""dvc.yaml as it is, with scripts that hash what their stage declares instead of computing it."""

import json
import os
import shutil
import sys
from pathlib import Path

import yaml
from small_project import copy_outside

from opam.pipeline.environment import PACKAGES

ROOT = Path(__file__).parents[1]
# Through JSON: what YAML shares between systems would change together.
PARAMS = json.loads(json.dumps(yaml.safe_load((ROOT / "params.yaml").read_text())))
STAGES: dict[str, dict] = {}
for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
    for key in PARAMS["baselines"] if "foreach" in stage else [""]:
        text = yaml.safe_dump(stage.get("do", stage)).replace("${key}", key)
        STAGES[f"{name}@{key}" if key else name] = yaml.safe_load(text)
ARTIFACTS = [
    os.path.normpath(f"{stage.get('wdir', '.')}/{out}")
    for stage in STAGES.values()
    for out in stage["outs"]
]
FOLDERS = {out for out in ARTIFACTS if not Path(out).suffix}

SCRIPT = f"""
import hashlib, json, os, pathlib, sys, yaml

name, entry = sys.argv[1], "".join(sys.argv[2:])
params = yaml.load(open("params.yaml"), yaml.CSafeLoader)
content = yaml.load(open("dvc.yaml"), yaml.CSafeLoader)["stages"][name]
text = yaml.safe_dump(content.get("do", content)).replace("${{key}}", entry)
own = [(each, "by") for each in ("filternet", "classnet", "objectnet", "partnet")]
for section, key in (("backbone", "weights"), ("dataset", "path"), *own):
    text = text.replace(f"${{{{{{section}}.{{key}}}}}}", params[section][key])
stage = yaml.safe_load(text)
name += "@" + entry if entry else ""
digest = hashlib.sha256(name.encode())


def value_of(content, dotted):
    for key in dotted.split("."):
        content = content[key]
    return json.dumps([dotted, content], sort_keys=True)


def digest_of(path):
    path, digest = pathlib.Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


with open(os.environ["EXECUTIONS"], "a") as log:
    log.write(name + "\\n")
if name == "check_params":  # as the real one, it says the same of all that it lets through
    pathlib.Path("data/checks.json").write_text("passed")
    sys.exit()
if name == "record_environment":
    shared = digest_of(os.path.join("data/weights", params["backbone"]["weights"]))
    shared += params["backbone"]["name"]
    weights = {{"shared": shared, "baselines": dict.fromkeys(params["baselines"], [shared])}}
    lock = open("requirements.lock").read()
    pins = dict(line.split("==") for line in lock.split())
    versions = {{name: pins[name] for name in {[*PACKAGES]}}}
    environment = {{"versions": versions, "weights": weights}}
    pathlib.Path("data/environment.json").write_text(json.dumps(environment))
    sys.exit()
for section in stage.get("params", []):
    if isinstance(section, str):
        digest.update(value_of(params, section).encode())
        continue
    for file, names in section.items():
        entries = yaml.load(open(file), yaml.CSafeLoader)
        for dotted in names:
            digest.update(value_of(entries, dotted).encode())
for dependency in stage["deps"]:
    if not dependency.startswith(("src/", "stages/")):
        digest.update(digest_of(dependency).encode())
for out in stage["outs"]:
    names = [out + "/one.txt", out + "/two.txt"] if out in {FOLDERS} else [out]
    for path in map(pathlib.Path, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(digest.hexdigest() + str(path))
"""


def lay_out(folder: Path) -> None:
    """Write the project; each script adds its stage's name to the file that EXECUTIONS names."""
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for name, stage in content["stages"].items():
        key = " ${key}" if "foreach" in stage else ""
        stage = stage.get("do", stage)
        first = "cd ../.. && " if "wdir" in stage else ""
        stage["cmd"] = f"{first}{sys.executable} stand_in.py {name}{key}"
    del content["plots"]
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    lock = "".join(f"{package}==1\n" for package in PACKAGES)
    (folder / "requirements.lock").write_text(lock)
    copy_outside(folder)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    (folder / "stand_in.py").write_text(SCRIPT)
