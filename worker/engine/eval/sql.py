"""Reading SQL that a model wrote: as SQLite's, or as WikiSQL's, and in one form for comparing.

WikiSQL's answers, as mlx-examples' LoRA example and espalier.textsql have them, are no SQL that a
database takes: names are not quoted and an aggregate has no brackets::

    SELECT COUNT School/Club Team FROM 1-10015132-16 WHERE Years in Toronto = '1995-96'

With the columns that the prompt names they can be read. Nothing here runs anything.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

#: A node of sqlglot's tree; the class of all of them is called otherwise in each of its versions.
Node = Any
#: Characters of a statement that is read.
MOST = 20_000

#: Commas that a column's name may hold, and one.
_PIECES = 3

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.S)
_TABLE = re.compile(r"table:[ \t]*(\S[^\n]*?)[ \t]*\ncolumns:[ \t]*(\S[^\n]*?)[ \t]*(?:\n|$)", re.I)
_CREATE = re.compile(r"\bCREATE\s+TABLE\b", re.I)
_SELECT = re.compile(
    r"SELECT\s+(?:(?P<aggregate>COUNT|MAX|MIN|SUM|AVG)\s+)?(?P<column>.+?)\s+FROM\s+(?P<table>\S.*?)"
    r"(?:\s+WHERE\s+(?P<where>.+))?",
    re.I | re.S,
)
_OPERATOR = re.compile(r"\s*(=|<|>)\s*(?=['\d.-])")
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?|-?\.\d+)(?:\s+AND\s+(?=\S)|\s*$)", re.I)


@dataclass(frozen=True, slots=True)
class Schema:
    """What is known of the database. ``script`` are statements that make it; a table and its

    columns were named in a prompt of WikiSQL's kind.
    """

    script: str | None = None
    table: str | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """One query: as a database takes it, and as sqlglot read it."""

    text: str
    tree: Node


def schema_of(prompt: str) -> Schema:
    """Return the schema that a prompt names last: ``table: … columns: …``, or CREATE TABLE."""
    if found := list(_TABLE.finditer(prompt)):
        columns = tuple(part.strip() for part in found[-1][2].split(",") if part.strip())
        return Schema(table=found[-1][1], columns=columns)
    statements = list(_creates(prompt))
    return Schema(script=";\n".join(statements) if statements else None)


def _creates(prompt: str) -> Iterator[str]:
    """Yield each ``CREATE TABLE … (…)``, by its brackets."""
    for begin in _CREATE.finditer(prompt):
        depth = 0
        for at in range(begin.end(), len(prompt)):
            depth += {"(": 1, ")": -1}.get(prompt[at], 0)
            if depth == 0 and prompt[at] == ")":
                yield prompt[begin.start() : at + 1]
                break


def read(text: str, schema: Schema) -> Statement | None:
    """Return the one query that a text is, out of a code fence if it is in one; None if it is none.

    Two statements are none, and so is anything that is not a query.
    """
    if fenced := _FENCE.search(text):
        text = fenced[1]
    text = text.strip().rstrip(";").strip()
    if not text or len(text) > MOST:
        return None
    wiki = as_sql(text, schema.columns) if schema.columns else None
    for candidate in (wiki, text):
        tree = _parse(candidate) if candidate else None
        if candidate and tree is not None:
            return Statement(candidate, tree)
    return None


def _parse(text: str) -> Node | None:
    try:
        found = sqlglot.parse(text, read="sqlite")
    except (SqlglotError, RecursionError):
        return None
    tree = found[0] if len(found) == 1 else None
    return tree if isinstance(tree, exp.Query) else None


def names(columns: Sequence[str]) -> list[str]:
    """Return what may be columns of a list with commas between: a name may hold commas itself.

    Names of one piece come first, in order, each once; SQLite's names know no case.
    """
    found: dict[str, str] = {}
    for size in range(1, _PIECES + 1):
        for first in range(len(columns) - size + 1):
            name = ", ".join(columns[first : first + size])
            found.setdefault(name.lower(), name)
    return list(found.values())


# --- WikiSQL ------------------------------------------------------------------------------


def as_sql(text: str, columns: Sequence[str]) -> str | None:
    """Return a WikiSQL statement as SQL with its names quoted; None for what is no such statement.

    ``columns`` are those the prompt names: a name may hold anything, also AND and commas' rests.
    """
    match = _SELECT.fullmatch(text)
    if match is None:
        return None
    known = {name.lower(): name for name in names(columns)}
    aggregate, column = match["aggregate"], match["column"].strip()
    if aggregate and f"{aggregate} {column}".lower() in known:
        aggregate, column = None, f"{aggregate} {column}"  # a column called "Max speed"
    wanted = known.get(column.lower())
    if wanted is None:
        return None
    conditions = _conditions(match["where"], sorted(known, key=len, reverse=True), known)
    if conditions is None:
        return None
    what = f"{aggregate.upper()}({_quoted(wanted)})" if aggregate else _quoted(wanted)
    where = " AND ".join(
        f"{_quoted(column)} {operator} {value}" for column, operator, value in conditions
    )
    statement = f"SELECT {what} FROM {_quoted(match['table'].strip())}"  # noqa: S608  of parts
    return f"{statement} WHERE {where}" if where else statement


def _conditions(
    text: str | None, names: Sequence[str], known: dict[str, str]
) -> list[tuple[str, str, str]] | None:
    """Return (column, operator, literal) of each condition; None for what cannot be read whole.

    A value may hold quotes: it ends where the text does, or where AND and a column follow.
    """
    found: list[tuple[str, str, str]] = []
    rest = (text or "").strip()
    while rest:
        column = next((name for name in names if rest.lower().startswith(name)), None)
        operator = _OPERATOR.match(rest, len(column)) if column else None
        if column is None or operator is None:
            return None
        value, rest = _value(rest[operator.end() :], names)
        if value is None:
            return None
        found.append((known[column], operator[1], value))
    return found


def _value(text: str, names: Sequence[str]) -> tuple[str | None, str]:
    """Split what follows an operator into its literal, quoted anew, and the next condition."""
    if not text.startswith("'"):
        number = _NUMBER.match(text)
        return (number[1], text[number.end() :]) if number else (None, "")
    text = text[1:]
    for joint in re.finditer(r"'\s+AND\s+", text, re.I):
        rest = text[joint.end() :]
        name = next((name for name in names if rest.lower().startswith(name)), None)
        if name and _OPERATOR.match(rest, len(name)):
            return _literal(text[: joint.start()]), rest
    return (_literal(text[:-1]), "") if text.endswith("'") else (None, "")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# --- One form -----------------------------------------------------------------------------


def normal(statement: Statement) -> str:
    """Return the statement in one form, the same for all that differ in names' case and order only.

    SQLite's names know no case; AND, OR and IN know no order, = and <> no sides; a single table
    needs no name before its columns, and what a column of the answer is called changes nothing.
    """
    tree = statement.tree.copy()
    for name in tree.find_all(exp.Identifier):
        name.set("this", name.name.lower())
        name.set("quoted", True)
    _without_aliases(tree)
    tables = list(tree.find_all(exp.Table))
    if len(tables) == 1:
        tables[0].set("alias", None)
        for column in tree.find_all(exp.Column):
            column.set("table", None)
    for node in reversed(list(tree.walk())):  # what is inside first
        ordered = _ordered(node)
        if ordered is not node:
            node.replace(ordered)
    return str(tree.sql(dialect="sqlite", normalize_functions="upper", comments=False))


def _without_aliases(tree: Node) -> None:
    if isinstance(tree, exp.Select):
        used = {column.name for column in tree.find_all(exp.Column)}
        for item in tree.expressions:
            if isinstance(item, exp.Alias) and item.alias not in used:
                item.replace(item.this)


def _ordered(node: Node) -> Node:
    if isinstance(node, exp.And | exp.Or):
        kind = type(node)
        joined, *rest = sorted(_parts(node, kind), key=_key)
        for part in rest:
            joined = kind(this=joined, expression=part)
        return joined
    if isinstance(node, exp.Paren) and isinstance(node.parent, exp.Where | exp.Having):
        return node.this.copy()
    if isinstance(node, exp.EQ | exp.NEQ) and _key(node.expression) < _key(node.this):
        return type(node)(this=node.expression.copy(), expression=node.this.copy())
    if isinstance(node, exp.In) and node.expressions:
        node.set("expressions", sorted(node.expressions, key=_key))
    return node


def _parts(node: Node, kind: Any) -> Iterator[Node]:
    """Yield what a chain of AND, or of OR, joins; what is joined otherwise keeps its brackets."""
    bare = node.unnest()
    if type(bare) is kind:
        yield from _parts(bare.this, kind)
        yield from _parts(bare.expression, kind)
    else:
        yield exp.Paren(this=bare.copy()) if isinstance(bare, exp.Connector) else bare.copy()


def _key(node: Node) -> str:
    return str(node.sql(dialect="sqlite", comments=False))
