"""Every artifact of ``dvc.lock`` from the team's remote, and what the remote lacks.

``dvc pull`` stops at the first folder that lacks a file and restores nothing then. Here the remote
is asked first what it has, so that one lost object costs one artifact. No stage runs.

Run: ``python -m opam.app.restore``.
"""

from typing import Any

from dvc.config import NoRemoteError
from dvc.exceptions import DownloadError, DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc.ui import ui
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.transfer import find_tree_by_obj_id

from opam.pipeline.errors import OpamError, one_line, run


def open_remote(repo: Repo) -> HashFileDB:
    """The remote that the team shares.

    Raises:
        OpamError: none is configured, or nothing was ever pushed there.
    """
    try:
        remote = repo.cloud.get_remote_odb()
    except NoRemoteError:
        raise OpamError(
            "no remote is configured; `dvc remote add` adds one, see docs/team.md"
        ) from None
    if not remote.fs.exists(remote.path):
        raise OpamError(
            f"{remote.fs.unstrip_protocol(remote.path)}: nothing there; check the address "
            "(`dvc remote list`), or push first (`dvc push --run-cache`)"
        )
    return remote


def is_whole(artifact: Output, stores: list[HashFileDB]) -> bool:
    """Whether every file of the artifact lies in one of the stores."""
    hashes = [artifact.hash_info]
    if artifact.hash_info.isdir:
        files = find_tree_by_obj_id(stores, artifact.hash_info)
        if files is None:
            return False
        hashes = [file_hash for _, _, file_hash in files]
    return all(any(store.exists(each.value) for store in stores) for each in hashes)


def check_out(repo: Repo, artifacts: list[Output]) -> None:
    """Put what the local cache has of ``artifacts`` into the workspace.

    Raises:
        OpamError: a file in the workspace would be lost, for the cache does not have it.
    """
    try:
        repo.checkout([str(each) for each in artifacts], allow_missing=True)
    except DvcException as error:
        raise OpamError(f"dvc checkout: {one_line(error)}") from error


def restore(repo: Repo) -> list[Output]:
    """Put every artifact that the remote or the local cache has in its place.

    Returns:
        The artifacts that neither has, but for those of `not_run`.

    Raises:
        OpamError: there is nothing to restore, or no remote to restore from.
    """
    artifacts = list(repo.index.outs)
    if not any(artifact.hash_info for artifact in artifacts):
        raise OpamError(
            "dvc.lock: not there or empty, so nothing can be restored; "
            "`git pull` what a colleague committed, or run `make repro`"
        )
    stores = [repo.cache.local, open_remote(repo)]
    whole = [each for each in artifacts if each.hash_info and is_whole(each, stores)]
    missing = [artifact for artifact in artifacts if artifact not in whole]
    try:
        if whole:  # no list means all, in a fraction of the time
            repo.fetch([str(each) for each in whole] if missing else None, run_cache=True)
    except DownloadError as error:
        raise OpamError(f"{error}, for the reasons above; `make pull` tries again") from error
    finally:  # what arrived before a failure is kept
        check_out(repo, [each for each in artifacts if each.hash_info])
    never = not_run(repo)
    wanted = [each for each in artifacts if each.stage.addressing not in never]
    print(f"{len(whole)} of {len(wanted)} artifacts are in place")
    if never:
        print(f"not run so far by anybody: {', '.join(sorted(never))}")
    return [each for each in missing if each in wanted]


def not_run(repo: Repo) -> set[str]:
    """Stages that dvc.lock knows nothing of, and that nothing it knows was made with.

    Such as other systems, which `make repro` leaves to `make repro-all`.
    """
    made_with: Any = repo.index.graph  # a stage's successors are those whose artifacts it reads
    known = {stage for stage in repo.index.stages if any(out.hash_info for out in stage.outs)}
    wanted: set[Any] = set()
    waiting: list[Any] = [*known]
    while waiting:
        stage = waiting.pop()
        if stage not in wanted:
            wanted.add(stage)
            waiting += made_with.successors(stage)
    return {each.addressing for each in repo.index.stages if each.outs and each not in wanted}


def main() -> None:
    """Restore, then name what is missing and the stages that make it.

    Raises:
        OpamError: something is missing or failed.
    """
    ui.enable()
    try:
        missing = restore(Repo())
    except OpamError:
        raise
    except DvcException as error:
        raise OpamError(one_line(error)) from error
    except Exception as error:  # each kind of remote has errors of its own
        raise OpamError(
            f"{one_line(error)}; check the remote's address (`dvc remote list`), the network and "
            "your credentials"
        ) from error
    for artifact in missing:
        why = "not on the remote" if artifact.hash_info else "not in dvc.lock"
        print(f'{artifact}: {why}; run "dvc repro {artifact.stage.addressing}"')
    if missing:
        raise OpamError("artifacts are missing; run the stages named above, then `dvc push`")


if __name__ == "__main__":
    run(main)
