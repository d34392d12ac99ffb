"""``/api/v1``: jobs and pipelines."""

from espalier.specs import JobRequest, PipelineRequest
from scheduler.lifecycle import requests as changes
from scheduler.lifecycle import submit
from scheduler.queries import Document
from scheduler.queries import jobs as queries
from scheduler.refusals.check import check
from web.api.asked import EventsQuery, JobsQuery, LogQuery, MetricsQuery
from web.api.models import (
    EventsAnswer,
    JobAnswer,
    JobsAnswer,
    LogAnswer,
    MetricsAnswer,
    PipelineAnswer,
)
from web.auth import actor
from web.routes import Routes
from web.services import services


def add(routes: Routes) -> None:
    """Add the routes of jobs and pipelines."""
    _add_submissions(routes)
    _add_reading(routes)
    _add_following(routes)
    _add_actions(routes)


def _add_submissions(routes: Routes) -> None:
    @routes.route("POST", "/jobs", status=201, answer=JobAnswer)
    def submit_job(body: JobRequest) -> Document:
        """Submit one job.

        Its inputs are resolved and pinned now; 404 names the nearest references, and 422 every
        field of what cannot work.
        """
        remarks = check(services().database, services().blobs, actor(), body)
        with services().committing() as session:
            job = submit.submit(session, actor(), body, remarks)
            found = queries.find_job(session, actor(), job.id)
            return queries.job_document(session, found)

    @routes.route("POST", "/pipelines", status=201, answer=PipelineAnswer)
    def submit_pipeline(body: PipelineRequest) -> Document:
        """Submit jobs whose inputs are each other's outputs: all of them, or none."""
        remarks = check(services().database, services().blobs, actor(), body)
        with services().committing() as session:
            jobs = submit.submit_pipeline(session, actor(), body, remarks)
            return queries.pipeline_document(session, actor(), str(jobs[0].pipeline_id))


def _add_reading(routes: Routes) -> None:
    @routes.route("GET", "/jobs", answer=JobsAnswer)
    def list_jobs(query: JobsQuery) -> Document:
        """List your projects' jobs, newest first."""
        filters = queries.JobFilters(
            query.state, query.kind, query.project, query.pipeline, query.q, query.paused
        )
        with services().database.reading() as session:
            return queries.list_jobs(session, actor(), filters, query.limit, query.before)

    @routes.route("GET", "/jobs/<job_id>", answer=JobAnswer)
    def get_job(job_id: str) -> Document:
        """Return one job."""
        with services().database.reading() as session:
            return queries.job_document(session, queries.find_job(session, actor(), job_id))

    @routes.route("GET", "/pipelines/<pipeline_id>", answer=PipelineAnswer)
    def get_pipeline(pipeline_id: str) -> Document:
        """Return a pipeline's jobs, in the order they were submitted in."""
        with services().database.reading() as session:
            return queries.pipeline_document(session, actor(), pipeline_id)


def _add_following(routes: Routes) -> None:
    @routes.route("GET", "/jobs/<job_id>/metrics", answer=MetricsAnswer)
    def get_metrics(job_id: str, query: MetricsQuery) -> Document:
        """Return the job's curves, in order of step."""
        with services().database.reading() as session:
            job = queries.find_job(session, actor(), job_id)
            services().watched.look(job.id)
            return {"points": queries.metrics_points(session, job, query.after)}

    @routes.route("GET", "/jobs/<job_id>/events", answer=EventsAnswer)
    def get_events(job_id: str, query: EventsQuery) -> Document:
        """Return what happened to the job since an event."""
        with services().database.reading() as session:
            job = queries.find_job(session, actor(), job_id)
            services().watched.look(job.id)
            return {"events": queries.events_after(session, job, query.after, query.limit)}

    @routes.route("GET", "/jobs/<job_id>/logs", answer=LogAnswer)
    def get_log(job_id: str, query: LogQuery) -> Document:
        """Return a piece of an attempt's log, from a byte offset."""
        with services().database.reading() as session:
            job = queries.find_job(session, actor(), job_id)
            services().watched.look(job.id)
            return queries.log_text(session, job, query.attempt, query.offset, query.limit)


def _add_actions(routes: Routes) -> None:
    @routes.route("POST", "/jobs/<job_id>/cancel", answer=JobAnswer)
    def cancel_job(job_id: str) -> Document:
        """Ask for a job to end; its worker saves a checkpoint first."""
        with services().committing() as session:
            job = queries.find_job(session, actor(), job_id)
            changes.cancel(session, actor(), job)
            return queries.job_document(session, queries.find_job(session, actor(), job_id))

    @routes.route("POST", "/jobs/<job_id>/pause", answer=JobAnswer)
    def pause_job(job_id: str) -> Document:
        """Hold a job back until it is resumed; a running one saves a checkpoint first.

        `paused` is true once no worker has it. Pausing twice is once.
        """
        with services().committing() as session:
            changes.pause(session, actor(), queries.find_job(session, actor(), job_id))
            return queries.job_document(session, queries.find_job(session, actor(), job_id))

    @routes.route("POST", "/jobs/<job_id>/resume", answer=JobAnswer)
    def resume_job(job_id: str) -> Document:
        """Let a paused job go on from its last checkpoint, exactly where it was."""
        with services().committing() as session:
            changes.resume(session, actor(), queries.find_job(session, actor(), job_id))
            return queries.job_document(session, queries.find_job(session, actor(), job_id))

    @routes.route("POST", "/jobs/<job_id>/retry", answer=JobAnswer)
    def retry_job(job_id: str) -> Document:
        """Bring a failed or cancelled job back; it goes on from its last checkpoint."""
        with services().committing() as session:
            job = queries.find_job(session, actor(), job_id)
            changes.retry(session, actor(), job)
            return queries.job_document(session, queries.find_job(session, actor(), job_id))
