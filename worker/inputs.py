"""An attempt's inputs as directories: from the team's store, or through it from the public hub."""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from espalier.errors import NotFound, Unavailable
from espalier.messages import Assignment, FileEntry, Input
from espalier.patterns import DATA_FILES, MODEL_FILES
from espalier.refs import check_name
from espalier.states import ArtifactKind
from espalier.together import Progress
from espalier.vetting import vet_folder
from worker.cache import BlobCache
from worker.control import patiently
from worker.disk import is_full
from worker.siblings import Siblings
from worker.stop import Stop

log = logging.getLogger("worker")


@dataclass(frozen=True, slots=True)
class Fetched:
    """Directories on this machine: role → input, and the checkpoint to resume from."""

    inputs: dict[str, Path]
    resume: Path | None


class Inputs:
    """Where inputs come from. ``hub_cache`` is shared by all workers of a machine.

    ``hub_url`` speaks the hub's protocol: the control plane does, and keeps what it fetches, so
    that a model crosses the internet once for all workers. ``token`` is the worker's own.
    """

    def __init__(self, cache: BlobCache, hub_cache: Path, hub_url: str, token: str) -> None:
        self._cache = cache
        self._hub_cache = hub_cache
        self._hub_url = hub_url
        self._token = token

    def fetch(
        self, assignment: Assignment, directory: Path, stop: Stop, progress: Progress
    ) -> Fetched:
        """Return every input, whole and vetted; waits while the control plane is away.

        ``progress`` counts the bytes of files; a hub's are not known before they are there.
        Raises InvalidInput for what is refused, NotFound for what is gone, NoRoom, OSError for
        this machine's disk, and Stopped. Nothing is fetched when all of it does not fit.
        """
        files = [entry for item in assignment.inputs for entry in item.files]
        self._cache.make_room(files + list(assignment.resume.files if assignment.resume else ()))
        siblings = Siblings(assignment.sources)
        found: dict[str, Path] = {}
        for item in assignment.inputs:
            if item.hub_repo:
                found[item.role] = self._from_hub(item, item.hub_repo, stop)
            else:
                target = directory / "inputs" / check_name(item.role, "role")
                found[item.role] = self._lay_out(item.files, target, stop, progress, siblings)
        resume = None
        if assignment.resume:
            target = directory / "checkpoint"
            files_there = assignment.resume.files
            resume = self._lay_out(files_there, target, stop, progress, siblings)
        for folder in (*found.values(), resume):
            if folder:
                vet_folder(folder)
        return Fetched(found, resume)

    def _lay_out(
        self,
        files: Iterable[FileEntry],
        target: Path,
        stop: Stop,
        progress: Progress,
        siblings: Siblings,
    ) -> Path:
        lay_out = partial(self._cache.lay_out, files, target, progress, siblings)
        patiently(lay_out, f"Fetching {target.name}", stop.wait)
        return target

    def _from_hub(self, item: Input, repo: str, stop: Stop) -> Path:
        """Download a repository; an attempt that stops meanwhile does not wait for it."""
        is_data = item.kind is ArtifactKind.DATASET

        def download() -> str:
            from huggingface_hub import snapshot_download
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()
            return str(
                snapshot_download(
                    repo,
                    repo_type="dataset" if is_data else "model",
                    revision=item.hub_revision,
                    cache_dir=self._hub_cache,
                    allow_patterns=list(DATA_FILES if is_data else MODEL_FILES),
                    endpoint=self._hub_url,
                    token=self._token,
                )
            )

        fetch = partial(_abandonable, download, f"{item.ref} from {self._hub_url}", stop)
        return Path(patiently(fetch, f"Fetching {item.ref}", stop.wait))


def _abandonable(work: Callable[[], str], what: str, stop: Stop) -> str:
    """Run ``work`` in a thread that is left to itself when the attempt has to stop.

    Raises Unavailable when nobody answered, NotFound for every other failure, and OSError for a
    full disk.
    """
    done: list[str] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:  # the library raises its own, its client's and the system's
            failed.append(error)

    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        stop.check()
    if failed and is_full(failed[0]):
        raise failed[0]
    if failed and not _was_answered(failed[0]):
        raise Unavailable(f"{what}: nobody answers ({failed[0]!s:.300}).") from failed[0]
    if failed:
        raise NotFound(
            f"{what} cannot be fetched: {type(failed[0]).__name__}: {failed[0]!s:.500}",
            hint="Check the name, the revision and the control plane's way to the hub; a gated"
            " model needs ESPALIER_UPSTREAM_TOKEN there.",
        ) from failed[0]
    return done[0]


def _was_answered(error: BaseException) -> bool:
    """Say whether a failed download had an answer that trying again would not change.

    The library wraps its client's exceptions in its own: the answer is somewhere down the chain.
    """
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if response is not None:
            return int(response.status_code) != Unavailable.status
        cause = cause.__cause__ or cause.__context__
    return False
