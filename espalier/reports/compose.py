"""What a report says, out of the documents of jobs: the same for page, Markdown and JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

from espalier.figures import METRICS, cell, duration, heading, number, size, title
from espalier.reports.formats import formats
from espalier.reports.parts import Pair, Table

#: Rows that the table of losses has at most: a curve's shape, not the curve.
LOSSES = 12
_TRAINED = ("train_loss", "val_loss", "tokens_per_second", "peak_memory_bytes")


@dataclass(frozen=True, slots=True)
class Section:
    """One job: what it is called, facts, tables, and its spec as YAML."""

    id: str
    kind: str
    state: str
    name: str
    pairs: tuple[Pair, ...]
    tables: tuple[Table, ...]
    spec: str


@dataclass(frozen=True, slots=True)
class Report:
    """Jobs that belong together, in the order submitted, and what is seen across them."""

    title: str
    pairs: tuple[Pair, ...]
    tables: tuple[Table, ...]
    sections: tuple[Section, ...]


def compose(
    jobs: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Report:
    """Return the report of ``jobs``, at least one, which are documents of the API.

    ``curves`` are the points of those that have any, by job id. Jobs that have not ended are told
    as far as they are.
    """
    kinds = list(dict.fromkeys(str(job["kind"]) for job in jobs))
    across = formats(jobs)
    return Report(
        title=str(jobs[0]["name"]) if len(jobs) == 1 else " → ".join(kinds),
        pairs=tuple(_surroundings(jobs)),
        tables=(across,) if across else (),
        sections=tuple(_section(job, curves.get(job["id"], ())) for job in jobs),
    )


def _surroundings(jobs: Sequence[Mapping[str, Any]]) -> Iterator[Pair]:
    """Yield what holds for all: what went in from outside, who asked, where it ran, how long."""
    yield Pair("project", str(jobs[0]["project"]))
    outside: dict[str, list[str]] = {}
    for job in jobs:
        for item in job["inputs"]:
            if item["job"] is None:
                known = outside.setdefault(_role(item["role"]), [])
                known += [ref for ref in [item["pinned"] or item["ref"]] if ref not in known]
    for role, refs in outside.items():
        yield Pair(role, ", ".join(refs))
    if by := jobs[0]["created_by"]:
        yield Pair("submitted by", f"{by}, {_clock(jobs[0]['created_at'])}")
    workers = dict.fromkeys(a["worker"] for job in jobs for a in job["attempts"])
    if workers:
        yield Pair("workers", ", ".join(workers))
    starts = [job["started_at"] for job in jobs if job["started_at"]]
    ends = [job["finished_at"] for job in jobs if job["finished_at"]]
    if starts and len(ends) == len(jobs):
        yield Pair("took", duration(_seconds(min(starts), max(ends))))


def _role(role: str) -> str:
    return role.rstrip("0123456789").rstrip("_")


def _section(job: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> Section:
    losses = _losses(points) if job["kind"] == "train" else None
    tables = [losses] if losses else []
    tables += [_table(table) for table in job["tables"]]
    tables += [_proofs(job["proofs"])] if job["proofs"] else []
    return Section(
        id=str(job["id"]),
        kind=str(job["kind"]),
        state=str(job["state"]),
        name=str(job["name"]),
        pairs=tuple(_facts(job)),
        tables=tuple(tables),
        spec=yaml.safe_dump(job["spec"], sort_keys=False, allow_unicode=True, width=88),
    )


def _facts(job: Mapping[str, Any]) -> Iterator[Pair]:
    for output in job["outputs"]:
        yield Pair(output["role"], f"{output['ref']} ({size(output['size'])})")
    metrics = job["metrics"] or {}
    for key, name in METRICS.items():
        if key in metrics:
            yield Pair(name, number(metrics[key]))
    peaks = [a["peak_memory_bytes"] for a in job["attempts"] if a["peak_memory_bytes"]]
    if peaks:
        yield Pair("peak memory", size(max(peaks)))
    if job["started_at"] and job["finished_at"]:
        yield Pair("took", duration(_seconds(job["started_at"], job["finished_at"])))
    tries = job["attempts"]
    if len(tries) > 1:
        ended = ", ".join(f"{a['worker']}: {a['reason'] or a['state']}" for a in tries)
        yield Pair("attempts", f"{len(tries)} ({ended})")
    for rung in job["ladder"]:
        yield Pair("ladder", str(rung["message"]))
    if job["error"]:
        yield Pair("error", str(job["error"]["message"]))
    if job["note"]:
        yield Pair("note", str(job["note"]))


def _losses(points: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the curve at a dozen steps: those that were validated, the best among them."""
    seen = [p for p in points if "val_loss" in p] or [p for p in points if "train_loss" in p]
    if not seen:
        return None
    best = min((p["val_loss"] for p in seen if "val_loss" in p), default=None)
    at = {round(i * (len(seen) - 1) / (LOSSES - 1)) for i in range(LOSSES)}
    at |= {i for i, p in enumerate(seen) if best is not None and p.get("val_loss") == best}
    chosen = [seen[i] for i in sorted(at)]
    nearest = {p["step"]: _latest(points, p["step"]) for p in chosen}
    columns = [name for name in _TRAINED if any(name in p for p in nearest.values())]
    rows = tuple(
        (
            number(step),
            *(cell(values.get(name), name) for name in columns),
            "best" if best is not None and values.get("val_loss") == best else "",
        )
        for step, values in nearest.items()
    )
    return Table("Loss by step", ("step", *(heading(name) for name in columns), ""), rows)


def _latest(points: Sequence[Mapping[str, Any]], step: int) -> dict[str, Any]:
    """Return what was last known of each value at a step: reports and validations alternate."""
    found: dict[str, Any] = {}
    for point in points:
        if point["step"] > step:
            break
        found |= {k: v for k, v in point.items() if v is not None and k != "val_loss"}
        if point["step"] == step and "val_loss" in point:
            found["val_loss"] = point["val_loss"]
    return found


def _table(table: Mapping[str, Any]) -> Table:
    columns = [str(column) for column in table["columns"]]
    rows = tuple(
        tuple(_cell(value, column) for value, column in zip(row, columns, strict=True))
        for row in table["rows"]
    )
    return Table(title(str(table["name"])), tuple(heading(column) for column in columns), rows)


def _cell(value: Any, column: str) -> str:
    """Return a cell's text; a mark is the name of its column, or nothing."""
    if isinstance(value, bool):
        return heading(column) if value else ""
    return cell(value, column)


def _proofs(proofs: Sequence[Mapping[str, Any]]) -> Table:
    verdict = {True: "holds", False: "does not hold", None: "recorded"}
    rows = tuple(
        (
            str(proof["name"]).replace("_", " "),
            number(proof["value"]),
            number(proof["limit"]),
            verdict[proof["ok"]],
            str(proof.get("detail") or ""),
        )
        for proof in proofs
    )
    return Table("Proofs", ("claim", "measured", "limit", "", "on"), rows)


def _seconds(start: str, end: str) -> float:
    return (_moment(end) - _moment(start)).total_seconds()


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _clock(text: str) -> str:
    return _moment(text).strftime("%Y-%m-%d %H:%M UTC")
