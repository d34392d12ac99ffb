"""SQL as portable text: one file of JSON lines a table, taken in one read transaction.

The same snapshot goes into SQLite and into PostgreSQL, whichever it came from. Left out is what
is no longer true by the time it is read: presence, what lies in workers' caches, uploads under
way, sessions, links and join tokens.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Column, Table, func, insert, select, text
from sqlalchemy.orm import Session

from espalier.errors import Conflict, InvalidInput
from scheduler.db import Database
from scheduler.models import Base, Presence, Token, Upload, UploadPart, Version, Worker, WorkerBlob
from scheduler.models.base import Timestamp

_ROWS = 500
_LEFT_OUT = {Presence.__tablename__, UploadPart.__tablename__, WorkerBlob.__tablename__}
#: Where a running worker gives its blobs away, and the key to them: of that process alone.
_NULLED = {Worker.__tablename__: ("shares_url", "shares_key")}
#: Tokens that outlive a restore: those of programs and workers.
_KEPT_TOKENS = {"personal", "worker"}


@dataclass(frozen=True, slots=True)
class TableFile:
    """One table as it was written: ``rows`` lines, and the file's sha256."""

    rows: int
    sha256: str


def tables() -> list[Table]:
    """Return the tables of a snapshot; what a row refers to is in a table before its own."""
    return [table for table in Base.metadata.sorted_tables if table.name not in _LEFT_OUT]


@contextmanager
def consistent(database: Database) -> Iterator[Session]:
    """A read transaction in which all tables are of one moment; writers are not held up."""
    with database.reading() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            session.execute(text("SET TRANSACTION READ ONLY"))
        yield session


def revision(session: Session) -> str:
    """Return the schema's revision."""
    return str(session.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def dump(session: Session, table: Table, path: Path) -> TableFile:
    """Write the table's rows, in the order of their keys, and have them on the disk."""
    digest, rows = hashlib.sha256(), 0
    # A version refers to the one before it, whose number is lower.
    first = (table.c.number,) if table.name == Version.__tablename__ else ()
    query = select(table).order_by(*first, *table.primary_key.columns)
    with path.open("xb") as file:
        for row in session.execute(query.execution_options(yield_per=_ROWS)).mappings():
            values = {column.name: row[column] for column in table.columns}
            values |= dict.fromkeys(_NULLED.get(table.name, ()))
            if not _is_kept(table, values):
                continue
            line = json.dumps(values, default=_plain, ensure_ascii=False).encode() + b"\n"
            digest.update(line)
            file.write(line)
            rows += 1
        sync(file)
    return TableFile(rows, digest.hexdigest())


def _is_kept(table: Table, values: Mapping[str, Any]) -> bool:
    if table.name == Token.__tablename__:
        return values["kind"] in _KEPT_TOKENS
    if table.name == Upload.__tablename__:
        return bool(values["driver_state"].get("complete"))
    return True


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no value of a snapshot")


def read(path: Path, table: Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table's file as SQL wants them. Raises InvalidInput."""
    times = [column.name for column in table.columns if isinstance(column.type, Timestamp)]
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row: dict[str, Any] = json.loads(line)
                for name in times:
                    if row[name] is not None:
                        row[name] = datetime.fromisoformat(row[name])
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidInput(
                    f"{path.name}, line {number}, cannot be read: {error}."
                ) from None
            yield row


def check(path: Path, said: TableFile) -> None:
    """Raise InvalidInput unless the file is what was written."""
    digest, rows = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            for line in file:
                digest.update(line)
                rows += 1
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from error
    if (rows, digest.hexdigest()) != (said.rows, said.sha256):
        raise InvalidInput(
            f"{path} is not what was written: {rows} rows of {said.rows}, sha256"
            f" {digest.hexdigest()}.",
            hint="Take another backup.",
        )


def must_be_empty(session: Session) -> None:
    """Raise Conflict when any table holds rows."""
    for table in tables():
        if session.execute(select(func.count()).select_from(table)).scalar_one():
            raise Conflict(
                f"The database is not empty: there are rows in {table.name}.",
                hint="Restore into a new data directory, or a new PostgreSQL database.",
            )


def load(session: Session, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    """Insert the rows, and set the table's counter behind them."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS:
            session.execute(insert(table), batch)
            batch = []
    if batch:
        session.execute(insert(table), batch)
    counter = table.autoincrement_column
    if counter is not None and session.get_bind().dialect.name == "postgresql":
        _set_counter(session, table, counter)


def _set_counter(session: Session, table: Table, column: "Column[Any]") -> None:
    last = session.execute(select(func.max(column))).scalar_one()
    if last is None:
        return
    sequence = func.pg_get_serial_sequence(table.name, column.name)
    if session.execute(select(sequence)).scalar_one() is not None:
        session.execute(select(func.setval(sequence, last)))


def sync(file: IO[Any]) -> None:
    """Have what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())
