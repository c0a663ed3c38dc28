"""Which code and which parameters: the commit, and every parameter that a result depends on."""

import hashlib
import json
import subprocess
from typing import Any

from opam.pipeline.params import UNTRACKED_SECTIONS, params_path, read_yaml


def tracked_params() -> dict[str, Any]:
    """Every parameter that a result may depend on."""
    content = read_yaml(params_path())
    return {name: value for name, value in content.items() if name not in UNTRACKED_SECTIONS}


def configuration() -> str:
    """`tracked_params` as 16 hexadecimal digits of their SHA-256."""
    content = json.dumps(tracked_params(), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def commit() -> str | None:
    """The commit that the working folder stands on, and whether its code differs."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "-uno", "src", "stages", "dvc.yaml")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}, with changes that are not committed" if changed else head


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()
