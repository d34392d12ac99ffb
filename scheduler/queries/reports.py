"""What jobs that belong together did and found (espalier.reports)."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from espalier.reports.compose import Report, compose
from scheduler.access import Actor
from scheduler.models import Job
from scheduler.queries import jobs as queries


def report_of(session: Session, actor: Actor, job_id: str) -> Report:
    """Return the report of a job, or of all of its pipeline. Raises NotFound."""
    found = queries.find_job(session, actor, job_id)
    if found.pipeline_id is None:
        documents = [queries.job_document(session, found)]
    else:
        documents = queries.pipeline_document(session, actor, found.pipeline_id)["jobs"]
    trained = [job["id"] for job in documents if job["kind"] == "train"]
    rows = session.scalars(select(Job).where(Job.id.in_(trained)))
    return compose(documents, {row.id: queries.metrics_points(session, row) for row in rows})
