"""SQLite for statements that nobody has read: a model's answers, and schemas out of data sets.

Three walls, none of which needs the others:

* SQLite's authorizer. A query may select, read, recurse and call the functions named here; a
  schema may besides create tables and put rows into them. Nothing attaches, detaches, changes a
  setting, loads an extension, or makes views, triggers and virtual tables.
* SQLite's limits: bytes of a value, of a statement and of its heap, terms, columns, and the steps
  of its machine. The database is in memory and only read once it is made.
* The process around it (worker.engine.eval.box), which is ended when it takes too long: some of
  SQLite's functions look at no limit while they run.
"""

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

#: Bytes of a value, of a statement, and of all that SQLite holds.
MAX_VALUE, MAX_STATEMENT, MAX_HEAP = 1_000_000, 100_000, 64 << 20
#: Rows that an answer may have, and seconds that a query may take.
MAX_ROWS, MAX_SECONDS = 10_000, 2.0
#: Instructions of SQLite's machine between two looks at the clock.
_STEPS = 20_000

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_VALUE,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: MAX_STATEMENT,
    sqlite3.SQLITE_LIMIT_COLUMN: 500,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 64,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 100,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
#: What reads nothing but its arguments and gives the same for the same.
_FUNCTIONS = frozenset(
    "abs acos asin atan avg cast ceil ceiling char coalesce concat concat_ws cos count cume_dist"
    " current_date date datetime degrees dense_rank exp first_value floor glob group_concat"
    " hex ifnull iif instr julianday lag last_value lead length like ln log log10 log2 lower ltrim"
    " max min mod nth_value ntile nullif octet_length percent_rank pi pow power quote"
    " radians rank replace round row_number rtrim sign sin sqrt strftime string_agg substr"
    " substring sum tan time timediff total trim trunc typeof unhex unicode unixepoch upper"
    .split()
)  # fmt: skip
_READS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
_MAKES = _READS | {
    sqlite3.SQLITE_CREATE_TABLE,
    sqlite3.SQLITE_CREATE_INDEX,
    sqlite3.SQLITE_INSERT,
    sqlite3.SQLITE_UPDATE,  # of SQLite's own catalogue, by CREATE TABLE
    sqlite3.SQLITE_REINDEX,  # by CREATE INDEX
    sqlite3.SQLITE_TRANSACTION,
}

Row = tuple[Any, ...]


class Refused(Exception):
    """The statement is wrong, is not allowed, or takes too much; the sentence says which."""


class Sandbox:
    """One database in memory. It is made by `make` and `fill`, then only read by `query`."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.execute("PRAGMA temp_store = MEMORY")
        self._db.execute(f"PRAGMA hard_heap_limit = {MAX_HEAP}")
        self._db.execute("PRAGMA trusted_schema = OFF")
        for limit, most in _LIMITS.items():
            self._db.setlimit(limit, most)
        self._deadline = 0.0
        self._db.set_progress_handler(self._is_late, _STEPS)
        self._db.set_authorizer(_allowing(_MAKES))

    def make(self, script: str) -> None:
        """Run the statements of a schema: CREATE TABLE and INSERT. Raises Refused."""
        with self._bounded():
            self._db.executescript(script)

    def tables(self) -> dict[str, list[tuple[str, str]]]:
        """Return (column, declared type) of each table."""
        found = self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {str(name): self._columns(name) for (name,) in found if name[:7] != "sqlite_"}

    def _columns(self, table: str) -> list[tuple[str, str]]:
        self._db.set_authorizer(None)
        try:
            rows = self._db.execute("SELECT name, type FROM pragma_table_info(?)", (table,))
            return [(str(name), str(declared)) for name, declared in rows]
        finally:
            self._db.set_authorizer(_allowing(_MAKES))

    def is_empty(self, table: str) -> bool:
        with self._bounded():
            first = f"SELECT 1 FROM {quoted(table)} LIMIT 1"  # noqa: S608  a name, quoted
            return self._db.execute(first).fetchone() is None

    def fill(self, table: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Put rows into a table; those that its constraints refuse are left out."""
        names = ", ".join(map(quoted, columns))
        marks = ", ".join("?" for _ in columns)
        insert = f"INSERT OR IGNORE INTO {quoted(table)} ({names}) VALUES ({marks})"  # noqa: S608
        with self._bounded():
            self._db.executemany(insert, rows)

    def close_for_writing(self) -> None:
        """From now on there are only queries."""
        self._db.set_authorizer(None)
        self._db.execute("PRAGMA query_only = ON")
        self._db.set_authorizer(_allowing(_READS))

    def query(self, statement: str) -> list[Row]:
        """Return the rows of a query; raises Refused."""
        with self._bounded():
            cursor = self._db.execute(statement)
            rows = cursor.fetchmany(MAX_ROWS + 1)
        if cursor.description is None:
            raise Refused("no query")
        if len(rows) > MAX_ROWS:
            raise Refused(f"more than {MAX_ROWS} rows")
        return rows

    def close(self) -> None:
        self._db.close()

    def _bounded(self) -> "_Bounds":
        self._deadline = time.monotonic() + MAX_SECONDS
        return _Bounds()

    def _is_late(self) -> int:
        return int(time.monotonic() > self._deadline)


class _Bounds:
    """Turns what SQLite raises into Refused."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.OperationalError) and "interrupted" in str(error):
            raise Refused(f"more than {MAX_SECONDS:g} s") from error
        if isinstance(error, MemoryError):
            raise Refused(f"more than {MAX_HEAP >> 20} MB") from error
        if isinstance(error, sqlite3.Error | sqlite3.Warning | OverflowError | ValueError):
            raise Refused(str(error)[:200]) from error


def _allowing(actions: frozenset[int]) -> Callable[..., int]:
    def judge(action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_FUNCTION:
            allowed = str(second).lower() in _FUNCTIONS
        elif action == sqlite3.SQLITE_UPDATE:
            allowed = action in actions and str(first) == "sqlite_master"
        else:
            allowed = action in actions
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    return judge


def quoted(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'
