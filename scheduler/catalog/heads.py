"""The registry's copy beside the bytes: one small JSON document an artifact, in the store.

Manifests say what is in a version; its number and branch, what aliases, branches and tags point
at, what an alias asks for and what the artifact was called before, only SQL knows. A head tells
that as well, so that a database can be made anew of the store alone (scheduler.upkeep.rebuild).
Heads are written after the commit, from what SQL says by then, as often as needed: an artifact
whose ``revision`` is not its ``head`` is due. While SQL lives they are read by nobody but fsck,
which repairs them.
"""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased

from espalier.errors import EspalierError
from scheduler.catalog import manifests
from scheduler.catalog.registry import ALIAS
from scheduler.db import Database
from scheduler.models import (
    Alias,
    Artifact,
    Attempt,
    FormerName,
    Gate,
    Project,
    User,
    Version,
    Worker,
)
from scheduler.store.base import REGISTRY, Driver

log = logging.getLogger(__name__)

#: What a head's ``format`` is, and those that are read. The first had aliases only, no branches.
FORMAT, READ = 2, (1, 2)
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
    before = aliased(Version)
    versions = session.execute(
        select(Version, User.name, Worker.name, before.number)
        .outerjoin(User, User.id == Version.created_by)
        .outerjoin(Attempt, Attempt.id == Version.attempt_id)
        .outerjoin(Worker, Worker.id == Attempt.worker_id)
        .outerjoin(before, before.id == Version.previous_id)
        .where(Version.artifact_id == artifact.id)
        .order_by(Version.number)
    )
    return manifests.canonical(
        {
            "format": FORMAT,
            "id": artifact.id,
            "revision": artifact.revision,
            "project": artifact.project.name,
            "name": artifact.name,
            "kind": artifact.kind,
            "latest": artifact.latest,
            "created_at": artifact.created_at.isoformat(),
            "deleted_at": _stamp(artifact.deleted_at),
            "former": [f"{project}/{name}" for project, name in _former(session, artifact)],
            "versions": [_version(*row) for row in versions],
            "names": _names(session, artifact),
            "gates": _gates(session, artifact),
        }
    )


def _version(
    version: Version, user: str | None, worker: str | None, previous: int | None
) -> dict[str, Any]:
    return {
        "number": version.number,
        "commit": version.commit,
        "manifest": version.manifest,
        "branch": version.branch,
        "previous": previous,
        "message": version.message,
        "created_at": version.created_at.isoformat(),
        "created_by": user,
        "deleted_at": _stamp(version.deleted_at),
        "role": version.role,
        "job": version.job_id,
        "attempt": version.attempt_id,
        "worker": worker,
    }


def _stamp(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _names(session: Session, artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Return alias, branch or tag → its kind and the number of its version."""
    rows = session.execute(
        select(Alias.name, Alias.kind, Version.number)
        .join(Version, Version.id == Alias.version_id)
        .where(Alias.artifact_id == artifact.id)
    )
    return {name: {"kind": kind, "version": number} for name, kind, number in rows}


def _gates(session: Session, artifact: Artifact) -> dict[str, dict[str, Any]]:
    gates = session.scalars(select(Gate).where(Gate.artifact_id == artifact.id))
    return {
        gate.alias: {
            "data": gate.data,
            "metric": gate.metric,
            "min_delta": gate.min_delta,
            "proofs": gate.proofs,
            "number": gate.number,
            "updated_at": gate.updated_at.isoformat(),
        }
        for gate in gates
    }


def _former(session: Session, artifact: Artifact) -> list[tuple[str, str]]:
    rows = session.execute(
        select(Project.name, FormerName.name)
        .join(Project, Project.id == FormerName.project_id)
        .where(FormerName.artifact_id == artifact.id)
        .order_by(Project.name, FormerName.name)
    )
    return [(project, name) for project, name in rows]


def write(database: Database, driver: Driver, artifact_id: str) -> None:
    """Write the artifact's head, and note which revision it tells of."""
    with database.reading() as session:
        artifact = session.get_one(Artifact, artifact_id)
        revision, head = artifact.revision, compose(session, artifact)
        place = key(artifact.project.name, artifact.name)
        former = _former(session, artifact)
    driver.put(place, head)
    for project, name in former:
        _forget(database, driver, project, name)
    with database.transaction() as session:
        # What changed meanwhile counted the revision up, and is due again.
        session.execute(update(Artifact).where(Artifact.id == artifact_id).values(head=revision))


def _forget(database: Database, driver: Driver, project: str, name: str) -> None:
    """Delete the head that an artifact had before it was moved; another may have the name now."""
    if _holder(database, project, name) is None:
        driver.delete(key(project, name))
        taken = _holder(database, project, name)
        if taken is not None:  # just now, and its head may have been there
            with database.transaction() as session:
                again = update(Artifact).where(Artifact.id == taken)
                session.execute(again.values(revision=Artifact.revision + 1))


def _holder(database: Database, project: str, name: str) -> str | None:
    with database.reading() as session:
        return session.scalar(
            select(Artifact.id)
            .join(Artifact.project)
            .where(Project.name == project, Artifact.name == name)
        )


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
    """Yield (key, head) of every head in the store; None for one that cannot be read.

    Heads of the first format are told as today's are.
    """
    for stored in driver.list(REGISTRY):
        document = None
        with suppress(ValueError):
            document = json.loads(b"".join(driver.open(stored.key)))
        if isinstance(document, dict) and document.get("format") in READ:
            yield stored.key, _today(document)
        else:
            yield stored.key, None


def _today(head: dict[str, Any]) -> dict[str, Any]:
    if head["format"] == FORMAT:
        return head
    names = {name: {"kind": ALIAS, "version": number} for name, number in head["aliases"].items()}
    return {**head, "names": names, "former": [], "gates": {}, "deleted_at": None}


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
