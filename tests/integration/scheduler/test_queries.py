"""Read models: what lists cost, what strangers see, and pieces of logs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, func, select

from espalier.errors import NotFound
from espalier.messages import LogChunk, MetricsEvent, OutputManifest
from espalier.states import ArtifactKind, Reason
from scheduler import access
from scheduler.access import Actor, actor_for
from scheduler.db import Database
from scheduler.lifecycle import jobs, requests
from scheduler.models import Attempt, Event, Job, Version
from scheduler.queries import artifacts, stamp
from scheduler.queries import jobs as queries
from scheduler.queries.jobs import JobFilters
from scheduler.queries.projects import list_projects
from tests.integration.scheduler.stack import Stack


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Collect the SQL that is run."""
    seen: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield seen
    event.remove(database.engine, "before_cursor_execute", note)


def stranger(stack: Stack) -> Actor:
    with stack.database.transaction() as session:
        return actor_for(access.create_user(session, "eve"))


def test_a_list_costs_the_same_for_one_job_and_for_many(stack: Stack) -> None:
    stack.worker(slots=8)
    costs = []
    for more in (1, 7):
        for _ in range(more):
            stack.submit()
        for ticket in stack.tick():
            stack.claim(ticket)
            stack.finish(ticket)
        with statements(stack.database) as seen, stack.database.reading() as session:
            found = queries.list_jobs(session, stack.actor)["jobs"]
        assert all(job["outputs"] and job["attempts"] and job["inputs"] for job in found)
        costs.append(len(seen))
    assert costs[0] == costs[1]


def test_filters_and_counts(stack: Stack) -> None:
    first = stack.submit(note="100% of it")
    second = stack.submit({"seed": 1})
    stack.cancel(first)
    with stack.database.reading() as session:

        def ids(**filters: Any) -> list[str]:
            found = queries.list_jobs(session, stack.actor, JobFilters(**filters))
            return [job["id"] for job in found["jobs"]]

        assert ids() == [second, first]
        assert ids(state=("cancelled",)) == [first]
        assert ids(state=("queued", "cancelled")) == [second, first]
        assert ids(kind=("eval",)) == []
        assert ids(project="team") == [second, first]
        assert ids(project="other") == []
        assert ids(q="100%") == [first]
        assert ids(q="1_0") == []
        assert ids(q=second) == [second]
        counts = queries.count_jobs(session, stack.actor, JobFilters(state=("queued",)))
        assert (counts["queued"], counts["cancelled"], counts["running"]) == (1, 1, 0)


def test_paused_jobs_are_found_and_counted_until_they_end(stack: Stack) -> None:
    held, free = stack.submit(), stack.submit({"seed": 1})
    with stack.database.transaction() as session:
        requests.pause(session, stack.actor, session.get_one(Job, held))

    def ids(paused: bool) -> list[str]:
        with stack.database.reading() as session:
            found = queries.list_jobs(session, stack.actor, JobFilters(paused=paused))
        return [job["id"] for job in found["jobs"]]

    def count() -> int:
        with stack.database.reading() as session:
            return queries.count_jobs(session, stack.actor, JobFilters())["paused"]

    assert (ids(True), ids(False), count()) == ([held], [free], 1)
    stack.cancel(held)
    assert (ids(True), ids(False), count()) == ([], [free, held], 0)


def test_projects_come_with_ones_own_role_in_one_query(stack: Stack) -> None:
    eve = stranger(stack)
    with stack.database.transaction() as session:
        mine = access.project_for(session, eve, "hers", create=True)
        mine.preemptible = True
    with statements(stack.database) as seen, stack.database.reading() as session:
        every = list_projects(session, stack.actor)
        assert [(p["name"], p["role"]) for p in every] == [("hers", None), ("team", "owner")]
        (only,) = list_projects(session, eve)
    assert (only["name"], only["role"], only["preemptible"]) == ("hers", "owner", True)
    assert len([statement for statement in seen if "projects" in statement]) == 2


def test_strangers_see_nothing(stack: Stack) -> None:
    job_id = stack.submit()
    eve = stranger(stack)
    with stack.database.reading() as session:
        assert queries.list_jobs(session, eve) == {"jobs": [], "next": None}
        assert artifacts.list_artifacts(session, eve) == []
        assert set(queries.count_jobs(session, eve, JobFilters()).values()) == {0}
        for look in (
            lambda: queries.find_job(session, eve, job_id),
            lambda: queries.pipeline_document(session, eve, "nothing"),
            lambda: artifacts.find_artifact(session, eve, "team", "base"),
        ):
            with pytest.raises(NotFound):
                look()


def test_lineage_leaves_out_what_the_reader_may_not_see(stack: Stack) -> None:
    other = stack.project("other")
    eve = stranger(stack)
    with stack.database.transaction() as session:
        access.add_member(session, session.merge(other), str(eve.user_id))
    stack.worker()
    stack.submit(name="other/tuned", project="other")
    ticket = stack.claimed()
    stack.finish(ticket)
    with stack.database.reading() as session:
        child = session.scalars(select(Version).where(Version.role == "adapter")).one()
        base = artifacts.find_artifact(session, stack.actor, "team", "base").versions[0]
        seen = artifacts.version_document(session, stack.actor, child)
        assert {p["ref"] for p in seen["parents"]} == {"team/base@v1", "team/wikisql@v1"}
        assert artifacts.version_document(session, eve, child)["parents"] == []
        children = artifacts.version_document(session, stack.actor, base)["children"]
        assert [c["ref"] for c in children] == ["other/tuned@v1"]


def test_logs_are_cut_by_bytes(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    with stack.database.reading() as session:
        nothing = queries.log_text(session, queries.find_job(session, stack.actor, job_id))
    assert nothing == {"attempt": None, "offset": 0, "next_offset": 0, "text": "", "ended": False}
    ticket = stack.claimed()
    texts = ["one\n", "zwölf\n", "three\n"]
    offset, chunks = 0, []
    for text in texts:
        chunks.append(LogChunk(offset=offset, text=text))
        offset += len(text.encode())
    stack.report(ticket, log=tuple(chunks))
    whole = "".join(texts)
    with stack.database.reading() as session:
        job = queries.find_job(session, stack.actor, job_id)
        found = queries.log_text(session, job)
        assert (found["text"], found["next_offset"], found["ended"]) == (whole, offset, False)
        rest = queries.log_text(session, job, ticket.attempt_id, offset=6)
        assert rest["text"] == whole.encode()[6:].decode()
        first = queries.log_text(session, job, offset=0, limit=1)
        assert (first["text"], first["next_offset"]) == ("one\n", 4)
        assert queries.log_text(session, job, offset=offset)["text"] == ""
        assert queries.log_text(session, job, offset=10**6)["next_offset"] == 10**6
        with pytest.raises(NotFound):
            queries.log_text(session, job, "0" * 16)
    stack.finish(ticket)
    with stack.database.reading() as session:
        job = queries.find_job(session, stack.actor, job_id)
        assert not queries.log_text(session, job, limit=1)["ended"]
        assert queries.log_text(session, job, offset=offset)["ended"]


def test_curves_and_events_after_a_point(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    points = tuple(
        MetricsEvent(step=step, values={"train_loss": 3.0 - step / 10}, time=0.0)
        for step in (10, 20, 30)
    )
    stack.report(ticket, events=points)
    stack.report(ticket, 2, events=(MetricsEvent(step=20, values={"val_loss": 1.5}, time=0.0),))
    with stack.database.reading() as session:
        job = queries.find_job(session, stack.actor, job_id)
        found = queries.metrics_points(session, job)
        assert [point["step"] for point in found] == [10, 20, 30]
        assert (found[1]["train_loss"], found[1]["val_loss"]) == (1.0, 1.5)
        assert [p["step"] for p in queries.metrics_points(session, job, after=20)] == [30]
        events = queries.events_after(session, job)
        assert [e["type"] for e in events] == ["submitted", "placed", "claimed"]
        assert queries.events_after(session, job, events[0]["id"]) == events[1:]
        assert queries.events_after(session, job, limit=1) == events[:1]
        newest = session.scalar(select(func.max(Event.id)))
        assert queries.latest_event_id(session) == newest
        assert queries.latest_event_id(session, job) == events[-1]["id"]


def test_a_document_tells_attempts_worker_and_outputs(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit(name="team/tuned")
    ticket = stack.claimed()
    with stack.database.transaction() as session:
        files = stack.files(session, {"adapters.safetensors": b"x" * 10})
    output = OutputManifest(role="adapter", kind=ArtifactKind.ADAPTER, files=files)
    stack.finish(ticket, outputs=(output,))
    with stack.database.reading() as session:
        job = queries.find_job(session, stack.actor, job_id)
        found = queries.job_document(session, job)
        assert found["started_at"] == stamp(job.started_at)
        assert (found["state"], found["worker"], found["reason"]) == ("succeeded", "studio-1", "ok")
        (attempt,) = found["attempts"]
        assert (attempt["number"], attempt["state"]) == (1, "succeeded")
        (made,) = found["outputs"]
        assert (made["ref"], made["size"]) == ("team/tuned@v1", 10)
        assert made["files"][0]["path"] == "adapters.safetensors"


def test_a_queued_job_names_no_worker(stack: Stack) -> None:
    stack.worker()
    job_id = stack.submit()
    ticket = stack.claimed()
    with stack.database.transaction() as session:
        jobs.lose(session, session.get_one(Attempt, ticket.attempt_id), Reason.LEASE_LOST, "gone")
    with stack.database.reading() as session:
        found = queries.job_document(session, queries.find_job(session, stack.actor, job_id))
        assert (found["state"], found["worker"]) == ("queued", None)
        assert found["attempts"][0]["state"] == "lost"
