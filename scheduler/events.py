"""The record of what happened: every change of state writes one row, in its transaction."""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from scheduler.models import Attempt, Event, Job


def record(
    session: Session,
    moment: datetime,
    job: Job,
    kind: str,
    message: str = "",
    *,
    attempt: Attempt | None = None,
    **data: Any,
) -> None:
    """Append an event of ``job``. ``message`` is for people, ``data`` for programs."""
    session.add(
        Event(
            job_id=job.id,
            attempt_id=attempt.id if attempt else None,
            worker_id=attempt.worker_id if attempt else None,
            type=kind,
            message=message,
            data=data,
            created_at=moment,
        )
    )
