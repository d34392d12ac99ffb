"""A report as Markdown (GitHub's, with tables)."""

import re
from collections.abc import Iterable, Iterator

from espalier.reports.compose import Report, Section
from espalier.reports.parts import Pair, Table

#: What Markdown, or the HTML in it, would take for its own.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")
_FIGURE = re.compile(r"[+−-]?[\d\u202f.,]+(e[+-]?\d+)?( ?(%|[KMGT]?i?B|s|min|h))?|–|")


def markdown(report: Report) -> str:
    """Return the report as one document that ends with a newline."""
    blocks = [f"# {_text(report.title)}", _list(report.pairs)]
    blocks += [block for table in report.tables for block in _tabled(table, "##")]
    for section in report.sections:
        blocks += _sectioned(section)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _sectioned(section: Section) -> Iterator[str]:
    yield f"## {section.kind.capitalize()}: {_text(section.name)}"
    yield _list([Pair("job", f"{section.id}, {section.state}"), *section.pairs])
    for table in section.tables:
        yield from _tabled(table, "###")
    fence = "```"
    while fence in section.spec:
        fence += "`"
    yield f"<details><summary>Spec</summary>\n\n{fence}yaml\n{section.spec}{fence}\n\n</details>"


def _list(pairs: Iterable[Pair]) -> str:
    return "\n".join(f"- **{_text(pair.name)}**: {_text(pair.value)}" for pair in pairs)


def _tabled(table: Table, level: str) -> Iterator[str]:
    yield f"{level} {_text(table.title)}"
    right = [
        bool(index) and all(_FIGURE.fullmatch(row[index]) for row in table.rows)
        for index in range(len(table.columns))
    ]
    lines = [table.columns, tuple("---:" if r else "---" for r in right)]
    text = [_row(table.columns), "|" + "|".join(lines[1]) + "|"]
    yield "\n".join(text + [_row(row) for row in table.rows])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(_text(cell) for cell in cells) + " |"


def _text(value: str) -> str:
    """Return text that stands for itself, on one line: names and messages come from outside."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))
