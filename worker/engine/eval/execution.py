"""Execution match: two queries are as good as each other when they find the same in databases.

The databases are the given one, or are made for the pair: tables of the schema filled by chance
with the values that the queries speak of, their neighbours and others, so that conditions have
something to find and something to leave out. One database can be fooled, several made by other
seeds hardly can (Zhong, Yu and Klein, Semantic Evaluation for Text-to-SQL with Distilled Test
Suites, EMNLP 2020).
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlglot import exp

from worker.engine.eval.sandbox import Refused, Row, Sandbox, quoted
from worker.engine.eval.sql import Node, Schema, Statement, names

#: Databases that a pair is run on where rows are made, and rows of a table.
DATABASES, ROWS = 5, 24
_WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath")
_NUMERIC = ("INT", "REAL", "NUM", "DEC", "FLOA", "DOUB")
_COUNTS = (exp.Sum, exp.Avg)


class Undecidable(Exception):
    """The reference cannot be run, or finds nothing anywhere: nothing can be held against it."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What the two queries say of columns: literals by lower-case name, and which are numbers."""

    literals: dict[str, list[str]]
    numbers: frozenset[str]


def same_result(reference: Statement, answer: Statement | None, schema: Schema) -> tuple[bool, str]:
    """Return whether both find the same on every database, and a note for a person.

    ``answer`` None is a text that is no query. Raises Undecidable.
    """
    trees = [found.tree for found in (reference, answer) if found]
    said = _said(trees)
    ordered = reference.tree.find(exp.Order) is not None
    found_any = False
    for seed in range(DATABASES):
        database, is_made = _database(schema, reference, said, seed)
        try:
            wanted = _run(database, reference)
            found_any = found_any or _finds(wanted)
            if answer is None:
                return False, "no query"
            try:
                got = database.query(answer.text)
            except Refused as refused:
                return False, str(refused)
        finally:
            database.close()
        if not _equal(wanted, got, ordered):
            return False, f"{_told(got)}, the reference {_told(wanted)}"
        if not is_made:
            break
    if not found_any:
        raise Undecidable("the reference finds nothing in any database")
    return True, ""


def _run(database: Sandbox, reference: Statement) -> list[Row]:
    try:
        return database.query(reference.text)
    except Refused as refused:
        raise Undecidable(f"the reference cannot be run: {refused}") from refused


def _finds(rows: Sequence[Row]) -> bool:
    return any(cell not in (None, 0) for row in rows for cell in row)


def _told(rows: Sequence[Row]) -> str:
    if len(rows) == 1 and len(rows[0]) == 1:
        return f"finds {rows[0][0]!r:.60}"
    return f"finds {len(rows)} row{'' if len(rows) == 1 else 's'}"


def _equal(first: Sequence[Row], second: Sequence[Row], ordered: bool) -> bool:
    """Columns' names mean nothing, rows' order only where the reference asks for one."""
    one, other = ([tuple(map(_plain, row)) for row in rows] for rows in (first, second))
    return one == other if ordered else Counter(one) == Counter(other)


def _plain(cell: Any) -> Any:
    """A float that is whole is its integer, another keeps nine digits: sums differ by order."""
    if isinstance(cell, float) and math.isfinite(cell):
        return int(cell) if cell.is_integer() and abs(cell) < 1e15 else float(f"{cell:.9g}")
    return cell


# --- Databases ----------------------------------------------------------------------------


def _database(schema: Schema, reference: Statement, said: _Said, seed: int) -> tuple[Sandbox, bool]:
    """Return a database that is only read from now on, and whether rows were made for it."""
    database, is_made = Sandbox(), False
    try:
        database.make(schema.script or _script(schema, reference))
        for index, (table, columns) in enumerate(database.tables().items()):
            if database.is_empty(table):
                is_made = True
                rng = random.Random(1000 * seed + index)  # noqa: S311  not a secret
                rows = [tuple(row) for row in _rows(columns, said, rng)]
                database.fill(table, [name for name, _ in columns], rows)
        database.close_for_writing()
    except Refused as refused:
        database.close()
        raise Undecidable(f"the schema cannot be made: {refused}") from refused
    return database, is_made


def _script(schema: Schema, reference: Statement) -> str:
    """Return CREATE TABLE for the prompt's table, else for all that the reference names."""
    tables: dict[str, list[str]] = {}
    if schema.table:
        tables[schema.table] = names(schema.columns)[:400]
    else:
        tables = _named(reference.tree)
    # NUMERIC takes '12' for 12 and leaves words as they are: what a column holds is not known.
    return ";\n".join(
        f"CREATE TABLE {quoted(table)} ({', '.join(f'{quoted(c)} NUMERIC' for c in columns)})"
        for table, columns in tables.items()
    )


def _named(tree: Node) -> dict[str, list[str]]:
    """Return the columns of each table as a query names them; unnamed tables' are the first's."""
    inner = {cte.alias.lower() for cte in tree.find_all(exp.CTE)}
    found = [table for table in tree.find_all(exp.Table) if table.name.lower() not in inner]
    aliases = {table.alias_or_name.lower(): table.name for table in found}
    tables: dict[str, dict[str, str]] = {table.name: {} for table in found}
    for column in tree.find_all(exp.Column):
        owner = aliases.get(column.table.lower()) if column.table else None
        for table in [owner] if owner else list(tables)[:1]:
            if column.name:
                tables[table].setdefault(column.name.lower(), column.name)
    return {table: list(columns.values()) or ["id"] for table, columns in tables.items()}


def _said(trees: Sequence[Node]) -> _Said:
    literals: dict[str, list[str]] = {}
    numbers = set()
    for tree in trees:
        for comparison in tree.find_all(exp.Binary, exp.In, exp.Between):
            columns = [c.name.lower() for c in comparison.find_all(exp.Column)]
            values = [literal.name[:200] for literal in comparison.find_all(exp.Literal)]
            for column in columns[:4]:
                literals.setdefault(column, []).extend(values[:8])
        for aggregate in tree.find_all(*_COUNTS):
            numbers |= {column.name.lower() for column in aggregate.find_all(exp.Column)}
    return _Said(literals, frozenset(numbers))


def _rows(
    columns: Sequence[tuple[str, str]], said: _Said, rng: random.Random
) -> Iterator[list[Any]]:
    """Yield the rows of a table; in the first few every column holds what the queries ask for."""
    values = [_values(name, declared, said, rng) for name, declared in columns]
    for index in range(ROWS):
        asked = 0.95 if index < ROWS // 4 else 0.4
        yield [
            rng.choice(wanted) if wanted and rng.random() < asked else rng.choice(others)
            for wanted, others in values
        ]


def _values(
    name: str, declared: str, said: _Said, rng: random.Random
) -> tuple[list[Any], list[Any]]:
    """Return what queries ask of a column, with its neighbours, and what else it may hold."""
    wanted: list[Any] = []
    literals = said.literals.get(name.lower(), [])
    for text in literals:
        number = _number(text)
        # Most often the value itself: a query that asks for several at once is to find a row.
        wanted += [text] if number is None else [number, number, number, number + 1, number - 1]
    kind = declared.upper()
    is_number = any(word in kind for word in _NUMERIC) and kind != "NUMERIC"
    if kind == "NUMERIC":
        known = [_number(text) is not None for text in literals]
        is_number = name.lower() in said.numbers or (bool(known) and all(known))
    if is_number:
        return wanted, [rng.randint(1, 12) for _ in range(8)]
    if "DATE" in kind or "TIME" in kind:
        return wanted, [f"20{rng.randint(10, 24)}-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}"]
    return wanted, list(_WORDS)


def _number(text: str) -> int | float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or abs(number) > 1e12:
        return None
    return int(number) if number.is_integer() else number
