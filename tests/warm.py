"""A Python that has loaded the heavy packages already: most of a stage's start, paid once.

`Warm` starts a process that loads them and waits. ``python`` in its folder, first in PATH, hands
what it was asked to run to it; that forks, and the fork runs it: as ``python`` would, with its
arguments, folder, environment and files. It dies when the one who asked dies, however that comes.

Nothing of the project is loaded before the fork: tests run copies of it that they change. Of DVC
one thing is another: how it writes its lock file (`modified`).
"""

import atexit
import contextlib
import gc
import importlib.util
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = [
    "numpy",
    "pandas",
    "pyarrow.parquet",
    "scipy.optimize",
    "scipy.ndimage",
    "scipy.cluster.hierarchy",
    "sklearn.cluster",
    "cv2",
    "PIL.Image",
    "joblib",
    "pydantic",
    "yaml",
    "safetensors.torch",
    "dvclive.live",
    "tqdm",
    "imagehash",
    "selectivesearch",
    "dvc.cli",
    "dvc.cli.parser",
    "dvc.commands.repro",
    "dvc.repo.reproduce",
    "rich.console",
    "typer",
    "jinja2",
]
SHIM = """#!{python} -SE
import json, os, socket, sys
if sys.argv[1:2] == ["-c"] or not sys.argv[1:] or sys.argv[1].startswith("-u"):
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
server.sendall(asked)
sys.exit(int(server.recv(8) or b"1"))
"""


class Warm:
    """The waiting process; ``folder`` holds the ``python`` that asks it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="warm-"))
        address = self.folder / "socket"
        shim = self.folder / "python"
        base = Path(sys.executable).resolve()
        shim.write_text(SHIM.format(python=base, real=sys.executable, address=str(address)))
        shim.chmod(0o755)
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(address)],
            env=environment,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def modified(path: str, fs: object = None) -> Iterator[dict]:
    """As DVC changes its lock file, but for comments: keeping these takes a second a stage."""
    place = Path(path)
    content = yaml.load(place.read_text(), yaml.CSafeLoader) if place.exists() else {}
    yield content
    plain = json.loads(json.dumps(content))
    place.write_text(yaml.dump(plain, Dumper=yaml.CSafeDumper, sort_keys=False))


def load() -> None:
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        importlib.import_module("dvc.dvcfile").modify_yaml = modified
    # By its path: under its own name it would be the project's.
    path = ROOT / "src/opam/pipeline/libraries.py"
    spec = importlib.util.spec_from_file_location("libraries_before_the_fork", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def serve(address: str) -> tuple[list[str], str, dict[str, str]]:
    """Wait, fork, tell how it ended; returns in each fork alone, what it is asked for."""
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, woken, *running.values()], [], [])
        if woken in ready:
            os.read(woken, 4096)
            while True:
                try:
                    process, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if not process:
                    break
                if asker := running.pop(process, None):
                    code = os.waitstatus_to_exitcode(status)
                    with contextlib.suppress(OSError):
                        asker.sendall(str(code if code >= 0 else 128 - code).encode())
                    asker.close()
        for process, asker in list(running.items()):
            if asker in ready and not asker.recv(1):  # it was killed
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
                del running[process]
                asker.close()
        if listener in ready:
            asker, _ = listener.accept()
            size, files, _, _ = socket.recv_fds(asker, 8, 3)
            content = b""
            while len(content) < int.from_bytes(size, "big"):
                content += asker.recv(1 << 20)
            process = os.fork()
            if not process:
                os.setsid()
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for each in (listener, asker, *running.values()):
                    each.close()
                for place, file in enumerate(files):
                    os.dup2(file, place)
                    os.close(file)
                arguments, folder, environment = json.loads(content)
                return arguments, folder, environment
            for file in files:
                os.close(file)
            running[process] = asker


def become(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run what ``python ARGUMENTS`` would, in this process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    own = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [*own, *sys.path[1:]]
    importlib.invalidate_caches()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, folder)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    # Not run_path: the script stays ``__main__`` while threads and pickles look for it.
    path = Path(arguments[0])
    main = ModuleType("__main__")
    main.__file__ = str(path)
    sys.modules["__main__"] = main
    exec(compile(path.read_bytes(), str(path), "exec"), vars(main))


def end(code: int) -> None:
    """As at the end of Python, but for taking apart all that was loaded, which takes seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def main() -> None:
    load()
    gc.collect()
    gc.freeze()
    asked = serve(sys.argv[1])
    code: object = 0
    try:
        become(*asked)
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
    end(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
