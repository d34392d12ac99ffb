"""The registry's copy beside the bytes: one small JSON document an artifact, in the store.

Manifests say what is in a version; its number, and what the aliases point at, only SQL knows. A
head tells that as well, so that a database can be made anew of the store alone
(scheduler.rebuild). Heads are written after the commit, from what SQL says by then, as often as
needed: an artifact whose ``revision`` is not its ``head`` is due. While SQL lives they are read
by nobody but fsck, which repairs them.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from espalier.errors import EspalierError
from scheduler import manifests
from scheduler.db import Database
from scheduler.models import Alias, Artifact, Attempt, User, Version, Worker
from scheduler.store.base import REGISTRY, Driver

log = logging.getLogger(__name__)

#: What a head's ``format`` is; another one is not read.
FORMAT = 1
#: Seconds between looks for heads that are due.
EVERY = 2.0
#: Seconds that the last writing may take.
LAST = 5.0
_BATCH = 50


def key(project: str, name: str) -> str:
    """Return where the head of ``project/name`` lies."""
    return f"{REGISTRY}{_file(project)}/{_file(name)}.json"


def _file(name: str) -> str:
    """Names that differ in case only are two files, also on a disk that ignores it."""
    if name == name.lower():
        return name
    return f"{name}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def compose(session: Session, artifact: Artifact) -> bytes:
    """Return the artifact's head as SQL has it."""
    versions = session.execute(
        select(Version, User.name, Worker.name)
        .outerjoin(User, User.id == Version.created_by)
        .outerjoin(Attempt, Attempt.id == Version.attempt_id)
        .outerjoin(Worker, Worker.id == Attempt.worker_id)
        .where(Version.artifact_id == artifact.id)
        .order_by(Version.number)
    )
    aliases = session.execute(
        select(Alias.name, Version.number)
        .join(Version, Version.id == Alias.version_id)
        .where(Alias.artifact_id == artifact.id)
    )
    return manifests.canonical(
        {
            "format": FORMAT,
            "project": artifact.project.name,
            "name": artifact.name,
            "kind": artifact.kind,
            "versions": [_version(*row) for row in versions],
            "aliases": dict(aliases.all()),
        }
    )


def _version(version: Version, user: str | None, worker: str | None) -> dict[str, Any]:
    return {
        "number": version.number,
        "commit": version.commit,
        "manifest": version.manifest,
        "created_at": version.created_at.isoformat(),
        "created_by": user,
        "deleted_at": version.deleted_at.isoformat() if version.deleted_at else None,
        "role": version.role,
        "job": version.job_id,
        "attempt": version.attempt_id,
        "worker": worker,
    }


def write(database: Database, driver: Driver, artifact_id: str) -> None:
    """Write the artifact's head, and note which revision it tells of."""
    with database.reading() as session:
        artifact = session.get_one(Artifact, artifact_id)
        revision, head = artifact.revision, compose(session, artifact)
        place = key(artifact.project.name, artifact.name)
    driver.put(place, head)
    with database.transaction() as session:
        # What changed meanwhile counted the revision up, and is due again.
        session.execute(update(Artifact).where(Artifact.id == artifact_id).values(head=revision))


def write_due(database: Database, driver: Callable[[], Driver]) -> int:
    """Write the heads that are due; return how many. The driver is made when there is one."""
    written = 0
    while True:
        with database.reading() as session:
            due = session.scalars(
                select(Artifact.id).where(Artifact.revision != Artifact.head).limit(_BATCH)
            ).all()
        for artifact_id in due:
            write(database, driver(), artifact_id)
        written += len(due)
        if len(due) < _BATCH:
            return written


def read_all(driver: Driver) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield (key, head) of every head in the store; None for one that cannot be read."""
    for stored in driver.list(REGISTRY):
        document = None
        with suppress(ValueError):
            document = json.loads(b"".join(driver.open(stored.key)))
        sound = isinstance(document, dict) and document.get("format") == FORMAT
        yield stored.key, document if sound else None


class HeadKeeper:
    """Writes due heads in a thread of its own: a slow store holds nobody up."""

    def __init__(self, database: Database, open_driver: Callable[[], Driver]) -> None:
        self._database = database
        self._open = open_driver
        self._driver: Driver | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what is due now, and end; a store that is away is not waited for."""
        self._stopping.set()
        self._thread.join(LAST)

    def _run(self) -> None:
        while True:
            last = self._stopping.wait(EVERY)
            try:
                write_due(self._database, self._connected)
            except (EspalierError, SQLAlchemyError, OSError) as error:
                log.warning("Heads of the registry are not written, and will be: %s", error)
            if last:
                return

    def _connected(self) -> Driver:
        self._driver = self._driver or self._open()
        return self._driver
