"""The ladder: what a job gives up when memory ends, without giving up its result.

A job that ran out of memory goes on from its last checkpoint with less to hold at once: fewer
rows of its batch computed together, activations computed again instead of kept, then a worker
with more memory. Each is a rung, taken once an attempt failed on the one before, written as an
event and kept in ``Job.rungs``; what was asked for, ``Job.spec``, stays as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.specs import SPECS, parse
from espalier.states import Kind, Reason
from scheduler.events import record
from scheduler.models import Attempt, Job, Worker

#: Names of the rungs: the setting of the spec, or the job's column, that each changes.
MICRO_BATCH, GRAD_CHECKPOINT, MEMORY = "micro_batch_size", "grad_checkpoint", "min_memory_bytes"

#: The first phase of every engine: weights are read, nothing is computed yet.
LOADING = "loading"


@dataclass(frozen=True, slots=True)
class Rung:
    """One step down. ``before`` and ``after`` are the setting's values, ``message`` is for people.

    For the rung MEMORY they are bytes: what the worker had to give, and what the next must have.
    """

    name: str
    before: int | bool
    after: int | bool
    message: str


# --- Deciding: pure -----------------------------------------------------------------------


def next_rung(
    kind: Kind,
    spec: Mapping[str, Any],
    overrides: Mapping[str, Any],
    worker_memory: int,
    others: Mapping[str, int],
    loading: bool = False,
) -> Rung | None:
    """Return what to change for the next attempt; None at the foot of the ladder.

    ``overrides`` is what earlier rungs changed in ``spec``, ``worker_memory`` the bytes that the
    failed attempt's worker has to give, ``others`` those of every worker there is, by name.
    ``loading``: memory ended before anything was computed, so that computing less at once saves
    nothing. ``on_oom`` is the caller's to judge.
    """
    return (None if loading else _smaller(kind, spec, overrides)) or _elsewhere(
        worker_memory, others
    )


def _smaller(kind: Kind, spec: Mapping[str, Any], overrides: Mapping[str, Any]) -> Rung | None:
    asked = parse(SPECS[kind], {**spec, **overrides})
    batch: int | None = getattr(asked, "batch_size", None)
    if batch is not None:
        rows = min(getattr(asked, MICRO_BATCH, None) or batch, batch)
        if rows > 1:
            return _fewer_rows(batch, rows, rows // 2)
    has_gradients = kind is Kind.TRAIN or getattr(asked, "method", None) == "dwq"
    if has_gradients and getattr(asked, GRAD_CHECKPOINT, True) is False:
        message = (
            "activations are computed again in the backward pass instead of kept"
            " (grad_checkpoint); the result is the same, a step takes longer"
        )
        return Rung(GRAD_CHECKPOINT, False, True, message)
    return None


def _elsewhere(worker_memory: int, others: Mapping[str, int]) -> Rung | None:
    bigger = {name: memory for name, memory in others.items() if memory > worker_memory}
    if not bigger:
        return None
    name = max(bigger, key=lambda other: (bigger[other], other))
    message = (
        f"it needs a worker with more than {size(worker_memory)} to give; {name} has"
        f" {size(bigger[name])}"
    )
    return Rung(MEMORY, worker_memory, worker_memory + 1, message)


def _fewer_rows(batch: int, before: int, after: int) -> Rung:
    rows = "row is" if after == 1 else "rows are"
    parts = -(-batch // after)
    message = (
        f"{after} {rows} computed at once instead of {before}, a batch in {parts} parts; it stays"
        f" {batch} rows, and the result the same"
    )
    return Rung(MICRO_BATCH, before, after, message)


def size(count: int) -> str:
    """Return a number of bytes as people read memory: in GiB, small ones in MiB."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


# --- Climbing -----------------------------------------------------------------------------


def climb(session: Session, attempt: Attempt, moment: datetime) -> Rung | None:
    """Change what the job's next attempt does, after ``attempt`` ran out of memory.

    None when ``on_oom`` is "fail", when the job is being cancelled, or when no rung is left; the
    attempt's error then says what would have helped. The caller queues the job again.
    """
    job, worker = attempt.job, attempt.worker
    if job.cancel_requested_at:
        return None
    memory = _memory(worker)
    others = {w.name: _memory(w) for w in _workers(session)}
    loading = job.phase == LOADING
    rung = next_rung(Kind(job.kind), job.spec, job.overrides, memory, others, loading)
    if rung is None:
        _advise(attempt, _foot(attempt, memory, others))
        return None
    if job.spec.get("on_oom") == "fail":
        _advise(attempt, f"on_oom is fail: nothing was changed. With on_oom adapt, {rung.message}.")
        return None
    _take(job, rung)
    said = f"Out of memory on {worker.name}, which has {size(memory)} to give: {rung.message}."
    entry = {
        "rung": rung.name,
        "from": rung.before,
        "to": rung.after,
        "worker": worker.name,
        "attempt": attempt.id,
        "memory_limit": memory,
        "message": said,
    }
    job.rungs = [*job.rungs, entry]
    told = {key: value for key, value in entry.items() if key not in ("message", "attempt")}
    record(session, moment, job, "ladder", said, attempt=attempt, **told)
    return rung


def _take(job: Job, rung: Rung) -> None:
    if rung.name == MEMORY:
        job.min_memory_bytes = int(rung.after)
    else:
        job.overrides = {**job.overrides, rung.name: rung.after}


def _workers(session: Session) -> list[Worker]:
    return list(session.scalars(select(Worker).where(Worker.revoked_at.is_(None))))


def _memory(worker: Worker) -> int:
    """Bytes a worker has to give to a job; 0 for one that never said hello."""
    return int(worker.machine.get("memory_limit") or 0)


def _foot(attempt: Attempt, memory: int, others: Mapping[str, int]) -> str:
    """Return the advice for a job that no rung makes smaller and no worker can hold."""
    held = attempt.peak_memory_bytes
    needed = f"It held {size(held)} when memory ended" if held else "Memory ended"
    most = max(others, key=lambda name: (others[name], name), default=attempt.worker.name)
    return (
        f"{needed}, with nothing left to save here, and no worker has more to give: {most} has"
        f" {size(others.get(most, memory))}. Lower max_seq_length, take a smaller or quantized"
        " model, or add a worker with more memory."
    )


def _advise(attempt: Attempt, hint: str) -> None:
    error = attempt.error or {
        "code": Reason.OUT_OF_MEMORY.value,
        "message": f"The job ran out of memory on {attempt.worker.name}.",
    }
    attempt.error = {**error, "hint": hint}
