"""A backup into an empty stack: blobs first, each verified, then all of SQL in one transaction.

Called again after a crash it goes on: blobs that arrived are not copied again, and SQL is either
all there or empty. What ran when the backup was made is still running by the rows; nobody reports
for it, its leases ended long ago, and so it goes back into the queue as after any outage.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import update

from espalier.errors import Conflict, InvalidInput, NotFound
from scheduler.access import SYSTEM, audit
from scheduler.db import Database, migrate, now
from scheduler.models import Artifact, Blob, Worker
from scheduler.store.base import Driver, blob_key
from scheduler.store.copying import copy_blob
from scheduler.store.directory import Directory
from scheduler.upkeep import backup, snapshot
from scheduler.upkeep.backup import Saved, Tell


def restore(
    url: str,
    driver: Driver,
    source: Path,
    name: str | None = None,
    *,
    tell: Tell = lambda _: None,
) -> Saved:
    """Fill the database at ``url`` and the store from a snapshot; return its manifest.

    Everything is checked before SQL is written. Raises Conflict when the database is not empty,
    InvalidInput for a backup that is not whole or has another schema, NotFound.
    """
    folder, saved = backup.find(source, name)
    migrate(url)
    database = Database(url)
    try:
        with database.reading() as session:
            snapshot.must_be_empty(session)
            here = snapshot.revision(session)
        if saved.revision != here:
            raise InvalidInput(
                f"The backup has schema {saved.revision}, this version of Espalier {here}.",
                hint=f"Restore it with Espalier {saved.version}, then start this version there:"
                " it brings the database up to date.",
            )
        kept: Driver = Directory(source) if saved.with_blobs else driver
        backup.verify(source, kept, saved.name, deep=False, tell=tell)
        if saved.with_blobs:
            _bring_blobs(kept, driver, folder, saved, tell)
        _load(database, folder, saved, tell)
    finally:
        database.close()
    return saved


def _bring_blobs(source: Driver, target: Driver, folder: Path, saved: Saved, tell: Tell) -> None:
    for number, (sha256, size) in enumerate(backup.named_blobs(folder, saved)):
        if number % 100 == 0:
            tell(f"blob {number} of {saved.blobs}")
        try:
            copy_blob(source, target, sha256, size, link=False, clone=True)
        except NotFound:
            raise InvalidInput(f"Blob {sha256} has gone from the backup meanwhile.") from None
        if target.size(blob_key(sha256)) != size:
            raise Conflict(f"Blob {sha256} was taken from {target.place} again.")


def _load(database: Database, folder: Path, saved: Saved, tell: Tell) -> None:
    with database.transaction() as session:
        snapshot.must_be_empty(session)
        for table in snapshot.tables():
            tell(f"table {table.name}")
            rows = snapshot.read(folder / f"{table.name}.jsonl", table)
            if table.name == Blob.__tablename__:
                rows = _without(rows, set(saved.gone))
            snapshot.load(session, table, rows)
        moment = now(session)
        lost = update(Blob).where(Blob.sha256.in_(saved.lost), Blob.damaged_at.is_(None))
        session.execute(lost.values(damaged_at=moment))
        session.execute(update(Blob).values(touched_at=moment))  # a grace from here
        session.execute(update(Artifact).values(head=0))  # this store may have none of them
        # Each worker may come from any directory: the one it had may be what was lost.
        session.execute(update(Worker).values(installation=None))
        told = {"snapshot": saved.name, "from": saved.database}
        audit(session, SYSTEM, "stack.restore", saved.name, told)


def _without(rows: Iterator[dict[str, Any]], names: set[str]) -> Iterator[dict[str, Any]]:
    return (row for row in rows if row["sha256"] not in names)
