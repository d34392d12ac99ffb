"""What a night has left: whether anything was lost or done twice, and a table by fault.

Read from SQL and from the store itself, past the scheduler's own queries and checks.
"""

import hashlib
import json
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import psutil
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from espalier.errors import EspalierError
from scheduler.db import Database
from scheduler.models import Artifact, Attempt, Event, Job, LogChunk, Metric, Version
from scheduler.store.base import Driver, blob_key
from tests.faults.storm import FAULTS, Kill

ADAPTER = "adapters.safetensors"
_STEP = re.compile(r"\bstep (\d+): train loss")


def adapters(database: Database) -> dict[int, str]:
    """Return seed → sha256 of the adapter that each training job published; where jobs of one seed
    have made different ones, all of them."""
    found: dict[int, set[str]] = {}
    with database.reading() as session:
        for job in session.scalars(select(Job).where(Job.kind == "train")):
            for version in job.outputs:
                made = {file.sha256 for file in version.files if file.path == ADAPTER}
                found.setdefault(job.spec["seed"], set()).update(made)
    return {seed: " ".join(sorted(made)) for seed, made in found.items()}


def unfinished(database: Database) -> list[str]:
    """Return a line for each job that has not succeeded."""
    with database.reading() as session:
        jobs = session.scalars(select(Job).where(Job.state != "succeeded")).all()
        return [f"{j.id} {j.name} {j.kind}: {j.state} {j.reason} {j.error}" for j in jobs]


def published_twice(database: Database) -> list[str]:
    """Return a line for each job that has not exactly one succeeded attempt, or of which any other
    attempt has published."""
    with database.reading() as session:
        lines = []
        for job in session.scalars(select(Job)):
            done = [a.id for a in job.attempts if a.state == "succeeded"]
            roles = [v.role for v in job.outputs]
            makers = {v.attempt_id for v in job.outputs}
            if len(done) != 1 or makers - set(done) or len(roles) != len(set(roles)):
                lines.append(f"{job.id}: succeeded {done}, published {roles} by {makers}")
        return lines


def holes(database: Database, iters: int) -> list[str]:
    """Return a line for each training whose curve is not whole: every step's loss was reported."""
    with database.reading() as session:
        lines = []
        for job in session.scalars(select(Job).where(Job.kind == "train")):
            points = select(Metric).where(Metric.job_id == job.id)
            known = {m.step for m in session.scalars(points) if "train_loss" in m.values}
            if missing := sorted(set(range(1, iters + 1)) - known):
                lines.append(f"{job.id} {job.name}: no loss at steps {missing}")
        return lines


def damaged(database: Database, store: Driver) -> list[str]:
    """Return a line for each blob of a version that the store has not, or not as it was: each is
    read back whole and hashed."""
    with database.reading() as session:
        blobs: dict[str, str] = {}
        for version in session.scalars(select(Version)):
            label = f"{version.artifact.name}@v{version.number}"
            blobs[version.manifest] = f"the manifest of {label}"
            blobs |= {file.sha256: f"{label}: {file.path}" for file in version.files}
    return [line for sha256, what in blobs.items() if (line := _damage(store, sha256, what))]


def _damage(store: Driver, sha256: str, what: str) -> str | None:
    digest = hashlib.sha256()
    try:
        for chunk in store.open(blob_key(sha256)):
            digest.update(chunk)
    except EspalierError as error:
        return f"{what}: {error.detail}"
    return None if digest.hexdigest() == sha256 else f"{what}: other bytes than {sha256}"


def left_behind(data_dir: Path) -> list[str]:
    """Return a line for each process that belongs to the stack of ``data_dir``."""
    home = str(data_dir)
    return [line for process in psutil.process_iter() if (line := _belongs(process, home))]


def _belongs(process: psutil.Process, home: str) -> str | None:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return None
        words = [*process.cmdline(), process.cwd(), *process.environ().values()]
    except psutil.Error:
        return None
    return f"{process.pid}: {process.cmdline()}" if any(home in word for word in words) else None


# --- The table ----------------------------------------------------------------------------


@dataclass
class Row:
    """What one fault came to. ``again`` are training steps that were computed a second time;
    an attempt is ``inherited`` by the next process of its worker."""

    fault: str
    kills: int = 0
    back: list[float] = field(default_factory=list)
    outage: list[float] = field(default_factory=list)
    ended: dict[str, int] = field(default_factory=dict)
    adopted: int = 0
    inherited: int = 0
    again: int = 0

    def cells(self) -> tuple[str, ...]:
        ended = ", ".join(f"{n} × {reason}" for reason, n in sorted(self.ended.items()))
        outage = f"{statistics.mean(self.outage):.1f}" if any(self.outage) else "–"
        back = f"{statistics.median(self.back):.1f}" if self.back else "–"
        worst = f"{max(self.back):.1f}" if self.back else "–"
        counts = str(self.adopted), str(self.inherited), str(self.again)
        return self.fault, str(self.kills), outage, back, worst, ended or "none", *counts


HEAD = (
    *("fault", "kills", "outage s", "back after s", "at most s"),
    *("attempts ended", "adopted", "inherited", "steps again"),
)


def table(database: Database, kills: Sequence[Kill]) -> list[Row]:
    """Return a row for each fault. An attempt that ended otherwise than succeeded counts for the
    kill that hit it, else for the last one before it ended."""
    rows = {fault: Row(fault) for fault in FAULTS}
    for kill in kills:
        row = rows[kill.fault]
        row.kills += 1
        row.outage.append(round(kill.outage, 1))
        row.back += [round(kill.back, 1)] if kill.back is not None else []
    with database.reading() as session:
        for attempt in session.scalars(select(Attempt).where(Attempt.state != "succeeded")):
            moment = attempt.finished_at
            if moment is None:
                continue
            row = rows[_cause(kills, attempt.id, moment).fault]
            reason = attempt.reason or "?"
            row.ended[reason] = row.ended.get(reason, 0) + 1
            row.again += _steps_again(session, attempt)
        for event in session.scalars(select(Event).where(Event.type.in_(("adopted", "inherited")))):
            cause = _cause(kills, event.attempt_id or "", event.created_at)
            row = rows[cause.fault]
            row.adopted += event.type == "adopted"
            row.inherited += event.type == "inherited"
    return [row for row in rows.values() if row.kills]


def _cause(kills: Sequence[Kill], attempt_id: str, moment: datetime) -> Kill:
    before = [kill for kill in kills if kill.at <= moment] or list(kills[:1])
    return next((k for k in reversed(before) if attempt_id in k.attempts), before[-1])


def _steps_again(session: Session, attempt: Attempt) -> int:
    later = [a for a in attempt.job.attempts if a.number > attempt.number and a.claimed_at]
    if attempt.job.kind != "train" or not later:
        return 0
    chunks = select(LogChunk.text).where(LogChunk.attempt_id == attempt.id)
    log = "".join(session.scalars(chunks.order_by(LogChunk.offset)))
    reached = max((int(step) for step in _STEP.findall(log)), default=0)
    return max(reached - (later[0].resumed_from_step or 0), 0)


def totals(database: Database) -> dict[str, int]:
    """Return what the night made: jobs, attempts, versions."""
    with database.reading() as session:
        count = {
            "jobs": select(func.count(Job.id)),
            "attempts": select(func.count(Attempt.id)),
            "artifacts": select(func.count(Artifact.id)),
            "versions": select(func.count(Version.id)),
        }
        return {name: session.scalar(query) or 0 for name, query in count.items()}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that people and renderers can read."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
              for line in lines]  # fmt: skip
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def save(name: str, figures: object, text: str) -> None:
    """Write ``name``.json and ``name``.md into the directory ESPALIER_FAULTS_REPORT, if set."""
    if directory := os.environ.get("ESPALIER_FAULTS_REPORT"):
        home = Path(directory)
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{name}.json").write_text(json.dumps(figures, indent=2, default=str) + "\n")
        (home / f"{name}.md").write_text(text + "\n")


def story(kills: Sequence[Kill]) -> Iterator[dict[str, object]]:
    """Return each kill as a document."""
    return (asdict(kill) for kill in kills)
