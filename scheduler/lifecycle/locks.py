"""Who waits for whom: the locks under which jobs and attempts change.

They are taken in one order everywhere: an attempt, then its job, then other jobs by ascending id.
Ids ascend with time, so what a job needs has the smaller id. What is decided on is read under its
lock, and read anew: two transactions of PostgreSQL see one another's commits only so. On SQLite,
where a transaction that writes is alone, the same code runs without them.
"""

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.states import ATTEMPT_LIVE
from scheduler.models import Attempt, Job


def lock(session: Session, job: Job) -> Attempt | None:
    """Lock the job's live attempt and the job, and read both anew; return the attempt.

    A job that was placed, or adopted, between the two is locked again from the beginning.
    """
    live = select(Attempt).where(Attempt.job_id == job.id, Attempt.state.in_(ATTEMPT_LIVE))
    while True:
        point = session.begin_nested()
        attempt = session.scalar(
            live.with_for_update(key_share=True).execution_options(populate_existing=True)
        )
        lock_job(session, job.id)
        known = attempt.id if attempt else None
        if session.scalar(live.with_only_columns(Attempt.id)) == known:
            point.commit()
            return attempt
        point.rollback()  # and so lets both go


def lock_job(session: Session, job_id: str) -> Job:
    """Lock a job, after its attempt, and read it anew."""
    query = select(Job).where(Job.id == job_id).with_for_update(key_share=True)
    return session.scalars(query.execution_options(populate_existing=True)).one()
