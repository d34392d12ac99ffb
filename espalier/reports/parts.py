"""What a report is made of. Everything is text already: pages and Markdown show the same."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pair:
    """A fact: its name, and what it is."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Table:
    """A title, the heads of the columns, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
