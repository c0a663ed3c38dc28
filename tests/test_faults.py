"""The worst day: killed anywhere, run twice at once, disk full. Nothing is lost."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from small_project import (
    PYTHON,
    STAGES,
    Undisturbed,
    call,
    digests,
    dvc,
    environment,
    project,
    script,
    start,
    use_workers,
)

pytestmark = pytest.mark.slow

KILLS = 32


def kill_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def killed_in(folder: Path, stage: str, after: float, *options: str) -> bool:
    """Run up to a stage and kill everything ``after`` seconds into it; False: it was done."""
    mend(folder)
    process = start(folder, PYTHON, "-m", "dvc", "repro", stage, *options)
    assert process.stdout is not None
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith(f"Running stage '{stage}'"):
            break
    rest = threading.Thread(target=lambda: output.extend(process.stdout or []))
    rest.start()
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        kill_all(process)
        return True
    rest.join()
    assert process.returncode == 0, "".join(output)
    return False


def test_killed_anywhere_it_ends_with_the_same_bytes(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    folder = project(tmp_path / "killed")
    use_workers(folder, 2)
    moments = random.Random(0)
    wanted = [*STAGES, *moments.sample(STAGES, KILLS - len(STAGES))]
    kills = dict.fromkeys(STAGES, 0)
    for stage in STAGES:
        options: list[str] = []
        longest = undisturbed.seconds[stage]
        while kills[stage] < wanted.count(stage):
            if killed_in(folder, stage, moments.uniform(0, longest), *options):
                kills[stage] += 1
            else:  # it was done before: again, and sooner
                options = ["--force", "--single-item"]
                longest /= 2
    assert sum(kills.values()) == KILLS
    mend(folder)
    dvc(folder, "repro")
    assert digests(folder) == undisturbed.digests
    assert "up to date" in dvc(folder, "status")


def mend(folder: Path) -> str:
    """What `make repro` does before `dvc repro`."""
    done = call(folder, PYTHON, "-m", "opam.app.mend")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("in_git", [True, False])
def test_files_that_dvc_left_half_written_are_mended(tmp_path: Path, in_git: bool) -> None:
    folder = project(tmp_path / "mend")
    dvc(folder, "repro", "fetch_data")
    lock, running = folder / "dvc.lock", folder / ".dvc/tmp/rwlock"
    whole = lock.read_text()
    assert mend(folder) == ""
    assert lock.read_text() == whole
    if in_git:
        for command in (["add", "-A"], ["commit", "-qm", "run"]):
            identity = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
            subprocess.run([*identity, *command], cwd=folder, check=True)
    lock.write_text(whole[: whole.rindex("md5:") + 2])
    running.write_text('{"write": {"')
    refused = call(folder, PYTHON, "-m", "dvc", "repro", "fetch_data")
    assert refused.returncode != 0
    told = mend(folder)
    assert "dvc.lock: half-written" in told
    assert "rwlock: half-written" in told
    assert lock.exists() == in_git
    again = dvc(folder, "repro", "fetch_data")
    assert "Running stage" not in again
    assert lock.read_text() == whole


def test_both_sides_of_a_merge_are_left_to_people(tmp_path: Path) -> None:
    folder = project(tmp_path / "merged")
    lock = folder / "dvc.lock"
    both = "<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '1.0'\n>>>>>>> other\n"
    lock.write_text(both)
    done = call(folder, PYTHON, "-m", "opam.app.mend")
    assert done.returncode == 1
    assert "dvc.lock: holds both sides of a merge; take one" in done.stderr
    assert lock.read_text() == both


@pytest.mark.parametrize("left", ["nothing", "a temporary file"])
def test_a_run_cache_that_dvc_left_half_written_is_mended(tmp_path: Path, left: str) -> None:
    """DVC makes the folder, writes beside the entry, and moves it to its name."""
    folder = project(tmp_path / "mend")
    dvc(folder, "repro", "fetch_data")
    entries = [path for path in (folder / ".dvc/cache/runs").rglob("*") if path.is_file()]
    (entry,) = (path for path in entries if "stages/fetch_data.py" in path.read_text())
    if left == "nothing":
        entry.unlink()
    else:
        entry.rename(entry.with_name(f".{entry.name[:8]}.tmp")).write_text("cmd: [")
    (folder / "dvc.lock").unlink()
    told = mend(folder)
    assert f"{entry.parent.name}: half-written" in told
    assert "Running stage 'fetch_data'" in dvc(folder, "repro", "fetch_data")
    assert mend(folder) == ""


@pytest.fixture
def finished(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoiled."""
    folder = tmp_path / "finished"
    shutil.copytree(undisturbed.untouched, folder)
    return folder


def kill_when(folder: Path, stage: str, seen: str) -> str:
    """Start a stage script, kill it when ``.resume/SEEN`` matches a file, and return its output."""
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            script(stage),
            cwd=folder,
            env=environment(folder),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        while not list((folder / ".resume").glob(seen)):
            assert process.poll() is None, (folder / "output.txt").read_text()
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return (folder / "output.txt").read_text()


@pytest.mark.parametrize(
    ("stage", "work", "artifact"),
    [
        ("propose_patches", "proposals", "proposals.parquet"),
        ("score_patches", "patch_scores", "patch_scores.parquet"),
        ("extract_saliency", "saliency", "saliency.parquet"),
        ("colocalize", "object_maps", "object_maps.parquet"),
        ("fit_probes", "features_probe_objects", "models/probes.safetensors"),
        ("score_images", "scores_classnet", "scores/original.parquet"),
    ],
)
def test_finished_shards_are_kept(
    undisturbed: Undisturbed, finished: Path, stage: str, work: str, artifact: str
) -> None:
    (finished / "data" / artifact).unlink()
    kill_when(finished, stage, f"{work}/*-[48].parquet")
    assert not (finished / "data" / artifact).exists()
    done = call(finished, *script(stage))
    assert done.returncode == 0, done.stderr
    resumed = re.search(rf"{work}: resumed behind piece (\d+)", done.stderr)
    assert resumed is not None
    assert int(resumed[1]) >= 4
    assert digests(finished) == undisturbed.digests
    assert not (finished / ".resume" / work).exists()


def test_training_goes_on_behind_its_last_epoch(undisturbed: Undisturbed, finished: Path) -> None:
    (finished / "data/models/filternet.safetensors").unlink()
    kill_when(finished, "train_filternet", "filternet.pt")
    done = call(finished, *script("train_filternet"))
    assert done.returncode == 0, done.stderr
    resumed = re.search(r"resumed behind epoch (\d)", done.stderr)
    assert resumed is not None
    epochs = re.findall(r"filternet: epoch (\d)", done.stderr)
    assert epochs == [str(epoch) for epoch in range(int(resumed[1]) + 1, 4)]
    assert len(epochs) < 3
    assert digests(finished) == undisturbed.digests


def test_a_second_repro_is_refused_while_one_runs(tmp_path: Path) -> None:
    folder = project(tmp_path / "twice")
    first = start(folder, sys.executable, "-m", "dvc", "repro", "fetch_data")
    assert first.stdout is not None
    assert any(line.startswith("Running stage") for line in first.stdout)
    second = call(folder, PYTHON, "-m", "dvc", "repro", "fetch_data")
    output = first.stdout.read()
    assert first.wait() == 0, output
    assert second.returncode != 0
    assert "is busy, it is being blocked by" in second.stderr
    assert f"PID {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_stage_is_refused_while_it_still_runs(finished: Path) -> None:
    """As when `dvc repro` was killed, but not the stage that it had started."""
    params = yaml.safe_load((finished / "params.yaml").read_text())
    params["filternet"]["epochs"] = 1000
    (finished / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, *script("train_filternet")[1:]]  # itself, not one that asks
    first = start(finished, *command)
    lock = finished / ".resume/network_by_training@filternet.lock"
    while not (lock.exists() and lock.read_text().strip() == str(first.pid)):
        assert first.poll() is None
        time.sleep(0.002)
    second = call(finished, *command)
    assert second.returncode == 1
    assert second.stderr.startswith(
        "error: stage network_by_training@filternet is running in this folder"
    )
    assert str(first.pid) in second.stderr
    kill_all(first)
    params["filternet"]["epochs"] = 1
    (finished / "params.yaml").write_text(yaml.safe_dump(params))
    assert call(finished, *command).returncode == 0


ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o size=300m tmpfs "$DISK"
cp -a "$FINISHED/." "$DISK"
cd "$DISK"
cat /dev/zero > filler 2>/dev/null || true
truncate -s -"$LEFT" filler
for path in $(find data .resume -name '*.tmp' 2>/dev/null); do echo "left: $path"; done
set +e
python $COMMAND > "$FINISHED/first.txt" 2>&1
echo "first: $?"
tail -n 1 "$FINISHED/first.txt" | cut -c 1-300
grep -c Traceback "$FINISHED/first.txt"
sha256sum "$ARTIFACT"
rm filler
python $COMMAND > "$FINISHED/second.txt" 2>&1
echo "second: $?"
sha256sum "$ARTIFACT"
find data .resume -name '*.tmp'
"""


def may_mount() -> bool:
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="may not mount a small disk here")
@pytest.mark.parametrize("left", [0, 4096])
@pytest.mark.parametrize(
    ("stage", "artifact"),
    [
        ("fetch_data", "data/raw.zip"),
        ("propose_patches", "data/proposals.parquet"),
        ("train_filternet", "data/models/filternet.safetensors"),
        ("extract_saliency", "data/saliency.parquet"),
    ],
)
def test_a_full_disk_leaves_the_old_artifact_and_the_next_run_is_fine(
    undisturbed: Undisturbed, finished: Path, tmp_path: Path, stage: str, artifact: str, left: int
) -> None:
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK],
        env={
            **environment(finished),
            # Itself: what runs elsewhere does not see the small disk.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(tmp_path / "disk/src"),
            "DISK": str(tmp_path / "disk"),
            "FINISHED": str(finished),
            "COMMAND": " ".join(script(stage)[1:]),
            "ARTIFACT": artifact,
            "LEFT": str(left),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    first, error, tracebacks, before, second, after, *rest = done.stdout.splitlines()
    digest = undisturbed.digests[artifact]
    assert first == "first: 1"
    assert error.startswith("error: ")
    assert "free space" in error
    assert tracebacks == "0"
    assert before.split()[0] == digest
    assert second == "second: 0"
    assert after.split()[0] == digest
    assert rest == []
