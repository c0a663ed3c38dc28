"""The shared remote: what one clone pushed, another restores and does not run again."""

import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from small_project import PYTHON
from stand_in import ARTIFACTS, STAGES, lay_out

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Remote:
    """Where a team's artifacts lie, as DVC and as the test reach it."""

    url: str
    files: AbstractFileSystem
    options: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def without(self, md5: str) -> Iterator[None]:
        """One object is gone for a while."""
        path = f"{self.url}/files/md5/{md5[:2]}/{md5[2:]}"
        content = self.files.cat_file(path)
        self.files.rm_file(path)
        yield
        self.files.pipe_file(path, content)


@dataclass(frozen=True)
class Team:
    """A git repository to clone, the remote it names, and the log of executed stages."""

    origin: Path
    remote: Remote
    executions: Path

    def clone(self, folder: Path) -> Path:
        git(self.origin, "clone", "-q", ".", str(folder))
        self.executions.write_text("")
        return folder

    def ran(self) -> list[str]:
        """The stages executed since the last call or clone."""
        names = self.executions.read_text().split()
        self.executions.write_text("")
        return names


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, "-m", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def dvc(folder: Path, *arguments: str) -> str:
    done = python(folder, "dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def restore(folder: Path) -> subprocess.CompletedProcess[str]:
    """What `make pull` runs."""
    return python(folder, "opam.app.restore")


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "data").rglob("*")
        if path.is_file() and path.name != ".gitignore"
    }


def set_epochs(folder: Path, value: int) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["partnet"]["epochs"] = value
    path.write_text(yaml.safe_dump(params))


def object_of(folder: Path, stage: str, artifact: str) -> str:
    """The object's name on the remote, from dvc.lock."""
    outs = yaml.safe_load((folder / "dvc.lock").read_text())["stages"][stage]["outs"]
    return next(out["md5"] for out in outs if out["path"] == artifact)


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Nothing of this account: no home, no git or AWS settings, no proxy; loopback only."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("AWS_", "GIT_", "DVC_", "XDG_")) or name.upper().endswith("_PROXY"):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("PYTHONPATH", str(ROOT / "src"))
        patch.setenv("DVC_SITE_CACHE_DIR", str(home / "site"))
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", str(home / "none"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "none"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield patch


@pytest.fixture(scope="module")
def s3() -> Iterator[Remote]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    files = S3FileSystem(client_kwargs={"endpoint_url": endpoint})
    files.mkdir("team")
    yield Remote("s3://team/opam", files, {"endpointurl": endpoint})
    server.stop()


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Remote:
    return Remote(str(tmp_path_factory.mktemp("remote")), LocalFileSystem())


@pytest.fixture(scope="module", params=["shared_folder", "s3"])
def team(
    request: pytest.FixtureRequest,
    environment: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Team:
    """Clone A ran everything, pushed with the run cache and committed."""
    remote = request.getfixturevalue(request.param)
    folder = tmp_path_factory.mktemp("team")
    team = Team(folder / "origin", remote, folder / "executions.txt")
    environment.setenv("EXECUTIONS", str(team.executions))
    lay_out_project(team.origin)
    a = team.clone(folder / "a")
    dvc(a, "remote", "add", "--default", "team", remote.url)
    for option, value in remote.options.items():
        dvc(a, "remote", "modify", "team", option, value)
    dvc(a, "repro")
    assert sorted(team.ran()) == sorted(STAGES)
    dvc(a, "push", "--run-cache")
    assert git(a, "status", "--short").split() == ["M", ".dvc/config", "??", "dvc.lock"]
    git(a, "add", "-A")
    git(a, "commit", "-qm", "Run")
    git(a, "push", "-q")
    return team


def lay_out_project(folder: Path) -> None:
    """dvc.yaml as it is with stand-ins for the scripts, in a repository without dvc.lock."""
    lay_out(folder)
    for name in (".gitignore", "data/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "config", "receive.denyCurrentBranch", "updateInstead")
    dvc(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "Start")


def test_a_fresh_clone_restores_everything_and_runs_nothing(team: Team, tmp_path: Path) -> None:
    b = team.clone(tmp_path / "b")
    done = restore(b)
    assert done.returncode == 0, done.stderr
    assert f"{len(ARTIFACTS)} of {len(ARTIFACTS)}" in done.stdout
    assert digests(b) == digests(team.origin.parent / "a")
    assert "up to date" in dvc(b, "status")
    assert team.ran() == []
    assert git(b, "status", "--short") == ""


def test_what_nobody_ran_is_named_and_is_no_error(team: Team, tmp_path: Path) -> None:
    """As after `make repro`, which leaves the other systems to `make repro-all`."""
    b = team.clone(tmp_path / "b")
    lock = yaml.safe_load((b / "dvc.lock").read_text())
    others = [name for name in STAGES if name.startswith("train_baseline@")]
    for name in [*others, "compare", "report"]:
        del lock["stages"][name]
    (b / "dvc.lock").write_text(yaml.safe_dump(lock))
    done = restore(b)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"not run so far by anybody: compare, report, {', '.join(sorted(others))}" in done.stdout
    assert "It won't be created" not in done.stderr
    assert (b / "data/metrics.json").exists()
    assert not (b / "data/report").exists()
    # What something else was made with is missing for all that.
    del lock["stages"]["prepare"]
    (b / "dvc.lock").write_text(yaml.safe_dump(lock))
    done = restore(b)
    assert done.returncode == 1
    assert 'data/manifest.parquet: not in dvc.lock; run "dvc repro prepare"' in done.stdout


def test_a_colleagues_value_is_fetched_not_run(team: Team, tmp_path: Path) -> None:
    colleague = team.clone(tmp_path / "colleague")
    restore(colleague)
    set_epochs(colleague, 77)
    dvc(colleague, "repro")
    assert team.ran() == [
        "check_params",
        "train_partnet",
        "score_images",
        "fuse",
        "doubt_labels",
        "evaluate",
        "draw_examples",
        "export_bundle",
        "compare",
        "report",
    ]
    dvc(colleague, "push", "--run-cache")
    b = team.clone(tmp_path / "b")
    restore(b)
    set_epochs(b, 77)
    dvc(b, "repro", "--pull")
    assert team.ran() == []
    assert digests(b) == digests(colleague)
    assert (b / "dvc.lock").read_bytes() == (colleague / "dvc.lock").read_bytes()


def test_a_lost_object_costs_one_artifact_and_one_stage(team: Team, tmp_path: Path) -> None:
    b = team.clone(tmp_path / "b")
    complete = digests(team.origin.parent / "a")
    with team.remote.without(object_of(b, "extract_saliency", "data/saliency.parquet")):
        done = restore(b)
        assert done.returncode == 1
        assert [line for line in done.stdout.splitlines() if "run" in line] == [
            'data/saliency.parquet: not on the remote; run "dvc repro extract_saliency"'
        ]
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert digests(b) == {
            path: digest for path, digest in complete.items() if path != "data/saliency.parquet"
        }
        assert team.ran() == []
        dvc(b, "repro", "extract_saliency")
        assert team.ran() == ["extract_saliency"]
        assert digests(b) == complete
        assert "up to date" in dvc(b, "status")
        assert git(b, "status", "--short") == ""
        dvc(b, "push")
        assert restore(team.clone(tmp_path / "c")).returncode == 0


@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_a_folder_with_a_lost_file_is_named_and_the_rest_restored(
    team: Team, tmp_path: Path
) -> None:
    b = team.clone(tmp_path / "b")
    complete = digests(team.origin.parent / "a")
    file = (team.origin.parent / "a/data/curves/partnet/one.txt").read_bytes()
    with (
        team.remote.without(hashlib.md5(file).hexdigest()),
        team.remote.without(object_of(b, "evaluate", "data/plots")),
    ):
        done = restore(b)
    assert [line for line in done.stdout.splitlines() if "run" in line] == [
        'data/curves/partnet: not on the remote; run "dvc repro train_partnet"',
        'data/plots: not on the remote; run "dvc repro evaluate"',
    ]
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert digests(b) == {
        path: digest
        for path, digest in complete.items()
        if not path.startswith(("data/curves/partnet/", "data/plots/"))
    }
    assert team.ran() == []


def take_photographs(folder: Path, path: str, content: str) -> None:
    """Photographs of one's own under a path, and the parameter that names it."""
    (folder / path).mkdir()
    (folder / path / "a.jpg").write_text(content)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["dataset"]["path"] = path
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.parametrize("team", ["shared_folder"], indirect=True)
def test_other_photographs_under_the_same_path_give_artifacts_of_their_own(
    team: Team, tmp_path: Path
) -> None:
    """One cache, one remote, one relative path: who sorts bolts does not get birds."""
    clones = {}
    for name in ("birds", "bolts", "birds again"):
        clone = clones[name] = team.clone(tmp_path / name)
        dvc(clone, "cache", "dir", str(tmp_path / "cache"))
        take_photographs(clone, "mine", name.partition(" ")[0])
        dvc(clone, "repro")
        ran = team.ran()
        assert ("fetch_data" in ran) == (name != "birds again"), name
        assert "train_classnet" not in ran or name != "birds again"
        dvc(clone, "push", "--run-cache")
    found = {name: digests(clone) for name, clone in clones.items()}
    mine = {"data/checks.json", "data/environment.json"}  # nothing of photographs
    for path in found["birds"].keys() - mine:
        if not path.startswith(("data/photographs/", "data/weights/")):
            assert found["birds"][path] != found["bolts"][path], path
    assert found["birds"] == found["birds again"]


@pytest.mark.parametrize("team", ["shared_folder"], indirect=True)
def test_a_colleague_without_the_photographs_restores_all_and_runs_nothing(
    team: Team, tmp_path: Path
) -> None:
    clone = team.clone(tmp_path / "with")
    take_photographs(clone, str(tmp_path / "photographs"), "mine")
    dvc(clone, "repro")
    dvc(clone, "push", "--run-cache")
    (tmp_path / "photographs").rename(tmp_path / "elsewhere")
    colleague = team.clone(tmp_path / "without")
    for name in ("params.yaml", "dvc.lock"):  # what was committed and pulled
        shutil.copy(clone / name, colleague / name)
    team.ran()
    assert restore(colleague).returncode == 0
    assert digests(colleague) == digests(clone)
    dvc(colleague, "repro", "--pull")
    assert team.ran() == []
    set_epochs(colleague, 78)  # and of what needs no photographs, only this
    dvc(colleague, "repro", "--pull")
    assert team.ran()[:2] == ["check_params", "train_partnet"]


def fails_in_one_line(folder: Path) -> str:
    done = restore(folder)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


@pytest.mark.parametrize("team", ["shared_folder"], indirect=True)
def test_a_folder_that_cannot_be_used_is_told_in_one_line(team: Team, tmp_path: Path) -> None:
    b = team.clone(tmp_path / "b")
    dvc(b, "remote", "modify", "--local", "team", "url", str(tmp_path / "not_mounted"))
    message = fails_in_one_line(b)
    assert str(tmp_path / "not_mounted") in message
    assert "dvc push" in message
    (b / ".dvc/config.local").unlink()
    dvc(b, "remote", "remove", "team")
    assert "no remote" in fails_in_one_line(b)
    (b / "dvc.lock").unlink()
    assert "dvc.lock" in fails_in_one_line(b)
    assert team.ran() == []


@pytest.mark.parametrize("team", ["s3"], indirect=True)
def test_a_bucket_that_cannot_be_used_is_told_in_one_line(
    team: Team, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = team.clone(tmp_path / "b")
    dvc(b, "remote", "modify", "--local", "team", "url", "s3://other/opam")
    assert "s3://other/opam" in fails_in_one_line(b)
    with socket.socket() as closed:  # bound, not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        dvc(b, "remote", "modify", "--local", "team", "endpointurl", endpoint)
        message = fails_in_one_line(b)
    assert endpoint in message
    assert "network" in message
    (b / ".dvc/config.local").unlink()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "credentials" in fails_in_one_line(b)
    assert team.ran() == []


@pytest.mark.parametrize("team", ["shared_folder"], indirect=True)
def test_local_work_is_not_overwritten(team: Team, tmp_path: Path) -> None:
    b = team.clone(tmp_path / "b")
    path = b / "data/fusion.json"
    path.write_text("made by hand")
    message = fails_in_one_line(b)
    assert "data/fusion.json" in message
    assert "--force" in message
    assert path.read_text() == "made by hand"
