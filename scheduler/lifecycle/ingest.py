"""Taking in what workers report: idempotent by ``(attempt, seq)``, each batch one transaction."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.errors import InvalidInput
from espalier.messages import (
    CheckpointPublished,
    ErrorEvent,
    Event,
    LogChunk,
    MetricsEvent,
    NoticeEvent,
    Order,
    Orders,
    PhaseEvent,
    ProgressEvent,
    ProofEvent,
    Report,
    TableEvent,
)
from espalier.settings import settings
from scheduler import models
from scheduler.bytes.blobrows import touch
from scheduler.db import now
from scheduler.events import record
from scheduler.lifecycle import jobs
from scheduler.models import Attempt, Checkpoint, Job, Metric, Worker


def report(
    session: Session, worker: Worker, attempt_id: str, message: Report, *, watched: bool = False
) -> Orders:
    """Take in a batch, renew the lease, and answer with orders. LeaseLost ends the child.

    A batch that is not newer than the last one renews the lease and is otherwise dropped. A
    number may be missing: the worker sends the next batch only when this one was taken or
    refused for good, so a gap is what was refused, and must not hold up what follows.
    """
    attempt = jobs.hold(session, worker, attempt_id, message.boot_id)
    moment = now(session)
    jobs.extend_lease(attempt, moment)
    worker.seen_at = moment
    if message.seq > attempt.last_seq:
        attempt.last_seq = message.seq
        attempt.memory_bytes = message.memory_bytes
        peaks = (attempt.peak_memory_bytes, message.peak_memory_bytes)
        attempt.peak_memory_bytes = max(filter(None, peaks), default=None)
        for event in message.events:
            _take(session, attempt, event, moment)
        _metrics(session, attempt, message.events, moment)
        _log(session, attempt, message.log, moment)
    return orders(worker, [attempt], watched=watched)


def orders(worker: Worker, attempts: list[Attempt], *, watched: bool = False) -> Orders:
    """What the worker must do now."""
    found = [Order(order=o, attempt_id=a.id) for a in attempts for o in _asked_of(a)]
    if worker.draining:
        found.append(Order(order="drain"))
    config = settings()
    return Orders(
        orders=tuple(found),
        report_seconds=config.watched_report_seconds if watched else config.report_seconds,
        lease_seconds=config.lease_seconds,
    )


def _asked_of(attempt: Attempt) -> Iterable[Literal["cancel", "pause"]]:
    """A cancel ends the job, so it wins over a pause."""
    if attempt.job.cancel_requested_at:
        yield "cancel"
    elif attempt.job.pause_requested_at or attempt.preempt_requested_at:
        yield "pause"


def _take(session: Session, attempt: Attempt, event: Event, moment: datetime) -> None:
    job = attempt.job
    match event:
        case PhaseEvent():
            job.phase = event.name
            record(session, moment, job, "phase", event.name, attempt=attempt)
        case ProgressEvent():
            job.progress = {"done": event.done, "total": event.total, "unit": event.unit}
        case ProofEvent():
            proof = event.model_dump(mode="json", exclude={"type", "time"})
            job.proofs = [*(p for p in job.proofs if p["name"] != event.name), proof]
            record(session, moment, job, "proof", event.name, attempt=attempt, **proof)
        case TableEvent():
            table = event.model_dump(mode="json", exclude={"type", "time"})
            job.tables = [*(t for t in job.tables if t["name"] != event.name), table]
        case NoticeEvent():
            record(
                session, moment, job, "notice", event.message, attempt=attempt, level=event.level
            )
        case ErrorEvent():
            record(session, moment, job, "error", event.message, attempt=attempt, code=event.code)
        case _:  # metrics go together, outputs come with `finish`, checkpoints by their own call
            pass


def _metrics(
    session: Session, attempt: Attempt, events: tuple[Event, ...], moment: datetime
) -> None:
    """Merge points by step: training and validation loss of one step arrive separately."""
    points: dict[int, dict[str, Any]] = {}
    latest: dict[str, Any] = {}
    for event in events:
        if isinstance(event, MetricsEvent):
            points.setdefault(event.step, {}).update(event.values)
            latest |= {**event.values, "step": event.step}
    if not points:
        return
    job = attempt.job
    job.metrics = {**job.metrics, **latest}
    rows = session.scalars(select(Metric).where(Metric.job_id == job.id, Metric.step.in_(points)))
    known = {row.step: row for row in rows}
    for step, values in points.items():
        row = known.get(step)
        if row is None:
            row = Metric(job_id=job.id, step=step, values={}, created_at=moment)
            session.add(row)
        row.attempt_id, row.created_at = attempt.id, moment
        row.values = {**row.values, **values}


def _log(
    session: Session, attempt: Attempt, chunks: tuple[LogChunk, ...], moment: datetime
) -> None:
    """Keep the chunks; one that is there, from a batch with another number, stays as it is."""
    if not chunks:
        return
    known = select(models.LogChunk.offset).where(
        models.LogChunk.attempt_id == attempt.id,
        models.LogChunk.offset.in_([chunk.offset for chunk in chunks]),
    )
    there = set(session.scalars(known))
    for chunk in chunks:
        if chunk.offset in there:
            continue
        there.add(chunk.offset)
        size = len(chunk.text.encode())
        session.add(
            models.LogChunk(
                attempt_id=attempt.id,
                offset=chunk.offset,
                size=size,
                # PostgreSQL's text holds no NUL; what stands for it has one byte as well, as
                # offsets count bytes.
                text=chunk.text.replace("\x00", "?"),
                created_at=moment,
            )
        )
        attempt.log_bytes = max(attempt.log_bytes, chunk.offset + size)


def checkpoint(
    session: Session, worker: Worker, attempt_id: str, message: CheckpointPublished
) -> None:
    """Record a checkpoint whose blobs are all in the store. A repeat changes nothing."""
    attempt = jobs.hold(session, worker, attempt_id, message.boot_id)
    wanted = {f.sha256 for f in message.files}
    present = touch(session, wanted).keys()
    if wanted - present:
        raise InvalidInput(
            f"Checkpoint {message.step} names blobs that are not in the store: upload them first.",
            errors=[{"loc": ["files"], "msg": sha} for sha in sorted(wanted - present)],
        )
    files = [f.model_dump() for f in message.files]
    moment = now(session)
    existing = session.get(Checkpoint, (attempt.job_id, message.step))
    if existing is None:
        attempt.job.lost = 0  # it gets on: losing workers now and then does not set it aside
        session.add(
            Checkpoint(
                job_id=attempt.job_id,
                step=message.step,
                attempt_id=attempt.id,
                files=files,
                created_at=moment,
            )
        )
        _announce(session, attempt.job, attempt, message.step, moment)
    else:
        existing.attempt_id, existing.files, existing.created_at = attempt.id, files, moment


def _announce(session: Session, job: Job, attempt: Attempt, step: int, moment: datetime) -> None:
    text = f"Checkpoint at step {step:,} is in the store."
    record(session, moment, job, "checkpoint", text, attempt=attempt, step=step)
