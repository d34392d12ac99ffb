"""When a job is tried again, and what is said of one that is not."""

import hashlib
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.states import MACHINE_FAULTS
from scheduler.models import Attempt, Job

#: Seconds: from the first charged failure doubling to the limit, likewise from the second fault
#: of a machine; the first says nothing of the job, so it is placed again at once.
CHARGED_FIRST, CHARGED_LIMIT = 2.0, 300.0
FAULT_FIRST, FAULT_LIMIT = 1.0, 60.0
#: So much of a delay more or less, so that jobs that failed together do not come back together.
JITTER = 0.2
#: No job waits longer; a later ``not_before`` was written by a clock that has been set back.
LONGEST = timedelta(seconds=CHARGED_LIMIT * (1 + JITTER))


def not_before(job: Job, of_machine: bool, moment: datetime) -> datetime | None:
    """Return when a job may be placed again after one more fault, already counted."""
    count = job.lost if of_machine else job.charged
    seconds = delay(job.id, count, of_machine)
    return moment + timedelta(seconds=seconds) if seconds else None


def delay(job_id: str, count: int, of_machine: bool) -> float:
    """Return the seconds to wait after fault number ``count``, the same for the same arguments."""
    if of_machine:
        seconds = min(FAULT_FIRST * 2.0 ** (min(count, 32) - 2), FAULT_LIMIT) if count > 1 else 0.0
    else:
        seconds = min(CHARGED_FIRST * 2.0 ** (min(count, 32) - 1), CHARGED_LIMIT)
    digest = hashlib.sha256(f"{job_id}:{of_machine}:{count}".encode()).digest()
    share = int.from_bytes(digest[:4]) / 0xFFFFFFFF
    return seconds * (1 - JITTER + 2 * JITTER * share)


def set_aside(session: Session, job: Job) -> dict[str, object]:
    """Return the error of a job whose attempts the machines lost, one after the other."""
    session.flush()
    newest = (
        select(Attempt)
        .where(Attempt.job_id == job.id, Attempt.reason.in_(MACHINE_FAULTS))
        .order_by(Attempt.number.desc())
        .limit(job.lost)
    )
    lost = list(session.scalars(newest))[::-1]
    each = ", ".join(f"#{a.number} on {a.worker.name} ({a.reason})" for a in lost)
    return {
        "code": "set_aside",
        "message": f"Set aside: {job.lost} attempts were lost with no new checkpoint: {each}.",
        "hint": "Look at the logs of these attempts and at their workers, then retry the job: it "
        "goes on from its last checkpoint.",
    }
