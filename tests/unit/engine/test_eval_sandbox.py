"""Hostile SQL: nothing is written, fetched, attached or kept, and it ends in time."""

from pathlib import Path

import pytest

from worker.engine.eval.sandbox import MAX_SECONDS, Refused, Sandbox

SCRIPT = "CREATE TABLE t (a INT, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y')"


@pytest.fixture
def database() -> Sandbox:
    made = Sandbox()
    made.make(SCRIPT)
    made.close_for_writing()
    return made


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT b FROM t WHERE a = 2", [("y",)]),
        ("SELECT COUNT(*), MAX(a), AVG(a) FROM t", [(2, 2, 1.5)]),
        ("SELECT a FROM t WHERE b LIKE 'X' ORDER BY a", [(1,)]),
        ("WITH n AS (SELECT a FROM t) SELECT SUM(a) FROM n", [(3,)]),
        ("SELECT a, ROW_NUMBER() OVER (ORDER BY b DESC) FROM t", [(2, 1), (1, 2)]),
        ("SELECT UPPER(b) || strftime('%Y', '2020-01-01') FROM t LIMIT 1", [("X2020",)]),
        (
            "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 4)"
            " SELECT MAX(n) FROM r",
            [(4,)],
        ),
    ],
)
def test_queries_are_answered(database: Sandbox, query: str, rows: list[object]) -> None:
    assert database.query(query) == rows


@pytest.mark.parametrize(
    "query",
    [
        "ATTACH DATABASE '{file}' AS other",
        "VACUUM INTO '{file}'",
        "SELECT writefile('{file}', 'x')",
        "SELECT readfile('/etc/hosts')",
        "SELECT load_extension('{file}')",
        "SELECT edit('x')",
        "SELECT fts3_tokenizer('simple')",
        "PRAGMA query_only = OFF",
        "PRAGMA journal_mode = WAL",
        "SELECT * FROM pragma_database_list",
        "INSERT INTO t VALUES (3, 'z')",
        "UPDATE t SET a = 9",
        "DELETE FROM t",
        "DROP TABLE t",
        "ALTER TABLE t RENAME TO u",
        "CREATE TABLE u (a)",
        "CREATE TEMP TABLE u (a)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE VIRTUAL TABLE f USING fts5(a)",
        "BEGIN",
        "SELECT 1; SELECT 2",
        "SELECT randomblob(1000000000)",
        "SELECT zeroblob(1000000000)",
        "SELECT printf('%.*c', 900000000, 'x')",
        "SELECT hex(hex(hex(hex(hex(hex(hex(hex(hex(hex(hex(hex('{long}'))))))))))))",
        "SELECT replace('{long}', 'x', '{long}')",
        "WITH RECURSIVE r(n) AS (SELECT '{long}' UNION ALL SELECT n || n FROM r) SELECT n FROM r",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r",
        "SELECT {deep}1{peed}",
        "SELECT random()",
        "",
        "no query",
    ],
)
def test_what_is_no_query_or_too_much_is_refused(
    database: Sandbox, query: str, tmp_path: Path
) -> None:
    parts = {"{file}": str(tmp_path / "out"), "{long}": "x" * 2000}
    parts |= {"{deep}": "(" * 500, "{peed}": ")" * 500}
    for name, text in parts.items():
        query = query.replace(name, text)
    with pytest.raises(Refused):
        database.query(query)
    assert not list(tmp_path.iterdir())
    assert database.query("SELECT COUNT(*) FROM t") == [(2,)]


def test_what_does_not_end_is_ended(database: Sandbox) -> None:
    endless = (
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT COUNT(*) FROM r"
    )
    with pytest.raises(Refused, match=f"more than {MAX_SECONDS:g} s"):
        database.query(endless)


@pytest.mark.parametrize(
    "script",
    [
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE u (a); CREATE TRIGGER g AFTER INSERT ON u BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE f USING fts5(a)",
        "ATTACH DATABASE ':memory:' AS other",
        "PRAGMA writable_schema = ON",
        "CREATE TABLE u (a); UPDATE u SET a = 1",
        "CREATE TABLE u (a CHECK (load_extension('x') > 0)); INSERT INTO u VALUES (1)",
        "CREATE TABLE u (a DEFAULT (randomblob(1000000000))); INSERT INTO u DEFAULT VALUES",
        "CREATE TABLE u (a",
    ],
)
def test_a_schema_makes_tables_and_nothing_else(script: str) -> None:
    made = Sandbox()
    with pytest.raises(Refused):
        made.make(script)


def test_a_schema_tells_its_tables_and_constraints_leave_rows_out() -> None:
    made = Sandbox()
    made.make(
        'CREATE TABLE "odd name" (id INTEGER PRIMARY KEY AUTOINCREMENT, w TEXT NOT NULL UNIQUE);'
        'CREATE INDEX i ON "odd name" (w)'
    )
    assert made.tables() == {"odd name": [("id", "INTEGER"), ("w", "TEXT")]}
    assert made.is_empty("odd name")
    made.fill("odd name", ["id", "w"], [(1, "a"), (1, "b"), (2, "a"), (3, None), (4, "c")])
    made.close_for_writing()
    assert made.query('SELECT id, w FROM "odd name"') == [(1, "a"), (4, "c")]
