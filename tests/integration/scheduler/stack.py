"""A control plane without its doors: SQL, a store, and the scheduler's own functions."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from espalier.ids import new_id
from espalier.messages import (
    Assignment,
    Claim,
    FileEntry,
    Finish,
    Finished,
    Hello,
    Machine,
    OutputManifest,
    Report,
)
from espalier.settings import Settings, settings
from espalier.specs import JobRequest, parse
from espalier.states import ArtifactKind, Reason
from scheduler import access
from scheduler.access import Actor, actor_for
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import registry
from scheduler.db import Database, now
from scheduler.lifecycle import assignments, ingest, jobs, requests, submit
from scheduler.models import Attempt, Job, Project, Version, Worker
from scheduler.placing import fleet
from scheduler.placing.dispatch import Dispatcher, Ticket
from scheduler.store import open_driver

MACHINE = Machine(
    hostname="studio",
    platform="Linux",
    chip="x86_64",
    memory_total=32 << 30,
    memory_limit=24 << 30,
    disk_free=1 << 40,
)
TRAIN = {"kind": "train", "model": "team/base", "data": "team/wikisql", "iters": 10}


@dataclass
class Stack:
    """What a test drives; ``sent`` is what went to the broker."""

    database: Database
    blobs: Blobs
    actor: Actor
    sent: list[Ticket] = field(default_factory=list)
    config: Settings = field(default_factory=settings)

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(self.database, self.sent.append, self.config)
        self.boots: dict[str, str] = {}

    @classmethod
    def make(cls, database: Database, directory: Path) -> "Stack":
        config = Settings(store_url=f"file://{directory / 'store'}")
        with database.transaction() as session:
            actor = actor_for(access.ensure_first_run(session))
        stack = cls(database, Blobs(open_driver(config), config), actor)
        stack.artifact("base", ArtifactKind.MODEL, {"config.json": b"{}"})
        stack.artifact("wikisql", ArtifactKind.DATASET, {"train.jsonl": b'{"text": "x"}\n'})
        return stack

    def files(self, session: Session, contents: dict[str, bytes]) -> tuple[FileEntry, ...]:
        return tuple(
            FileEntry(path=path, sha256=self.blobs.put_bytes(session, data), size=len(data))
            for path, data in contents.items()
        )

    def artifact(self, name: str, kind: ArtifactKind, contents: dict[str, bytes]) -> str:
        with self.database.transaction() as session:
            version = registry.publish(
                session,
                self.blobs,
                project=access.project_for(session, self.actor, "team"),
                name=name,
                kind=kind,
                files=self.files(session, contents),
                meta={},
                parents=[],
                created_by=self.actor.user_id,
            )
            return registry.label(version)

    def worker(self, name: str = "studio-1", slots: int = 1, boot: str | None = None) -> str:
        """Make or restart a worker; return its id."""
        with self.database.transaction() as session:
            found = session.query(Worker).filter_by(name=name).one_or_none()
            worker = found or fleet.join(session, name)[0]
            self.boots[worker.id] = boot or new_id()
            message = Hello(boot_id=self.boots[worker.id], machine=MACHINE, slots=slots)
            config = Settings(broker_url="redis://unused")
            fleet.hello(session, worker, message, config)
            return worker.id

    def submit(self, spec: dict[str, Any] | None = None, **envelope: Any) -> str:
        """Submit a training, changed by ``spec``; another kind's spec stands for itself."""
        whole = spec if spec and "kind" in spec else {**TRAIN, **(spec or {})}
        request = parse(JobRequest, {"spec": whole, **envelope})
        with self.database.transaction() as session:
            return submit.submit(session, self.actor, request).id

    def tick(self) -> list[Ticket]:
        """Run one tick; return the tickets it sent."""
        before = len(self.sent)
        self.dispatcher.tick()
        return self.sent[before:]

    @contextmanager
    def at_work(self, worker_id: str) -> Iterator[tuple[Session, Worker]]:
        with self.database.transaction() as session:
            yield session, session.get_one(Worker, worker_id)

    def claim(self, ticket: Ticket, boot: str | None = None) -> Assignment:
        boot = boot or self.boots[ticket.worker_id]
        with self.at_work(ticket.worker_id) as (session, worker):
            return assignments.claim(session, worker, ticket.attempt_id, Claim(boot_id=boot))

    def claimed(self) -> Ticket:
        """Tick, and claim the one ticket that it sent."""
        (ticket,) = self.tick()
        self.claim(ticket)
        return ticket

    def report(self, ticket: Ticket, seq: int = 1, **content: Any) -> Any:
        message = Report(boot_id=self.boots[ticket.worker_id], seq=seq, **content)
        with self.at_work(ticket.worker_id) as (session, worker):
            return ingest.report(session, worker, ticket.attempt_id, message)

    def finish(self, ticket: Ticket, state: str = "succeeded", **content: Any) -> Finished:
        with self.at_work(ticket.worker_id) as (session, worker):
            message = self.finish_message(session, ticket, state, **content)
            return assignments.finish(session, self.blobs, worker, ticket.attempt_id, message)

    def finish_message(
        self, session: Session, ticket: Ticket, state: str = "succeeded", **content: Any
    ) -> Finish:
        """What the ticket's worker says at the end, its output in the store."""
        if state == "succeeded" and "outputs" not in content:
            content["outputs"] = (self._output(session, ticket),)
        return Finish(boot_id=self.boots[ticket.worker_id], state=state, **content)

    def _output(self, session: Session, ticket: Ticket) -> OutputManifest:
        kind = {"train": "adapter", "eval": "report", "export": "gguf"}.get(ticket.kind, "model")
        payload = json.dumps({"by": ticket.attempt_id}).encode()
        files = self.files(session, {"adapters.safetensors": payload})
        return OutputManifest(role=kind, kind=ArtifactKind(kind), files=files)

    def fail(self, ticket: Ticket, reason: Reason) -> Finished:
        return self.finish(ticket, "failed", reason=reason)

    def lose(self, session: Session, ticket: Ticket) -> None:
        """What the scheduler does when a lease has ended."""
        worker = session.get_one(Worker, ticket.worker_id)
        attempt = jobs.own_attempt(session, worker, ticket.attempt_id)
        jobs.lose(session, attempt, Reason.LEASE_LOST, f"{worker.name} is not heard of.")

    def cancel(self, job_id: str) -> None:
        with self.database.transaction() as session:
            requests.cancel(session, self.actor, session.get_one(Job, job_id))

    def retry(self, job_id: str) -> None:
        with self.database.transaction() as session:
            requests.retry(session, self.actor, session.get_one(Job, job_id))

    def pause(self, job_id: str) -> None:
        with self.database.transaction() as session:
            requests.pause(session, self.actor, session.get_one(Job, job_id))

    def resume(self, job_id: str) -> None:
        with self.database.transaction() as session:
            requests.resume(session, self.actor, session.get_one(Job, job_id))

    def job(self, job_id: str) -> Job:
        with self.database.reading() as session:
            job = session.get_one(Job, job_id)
            _ = (job.attempts, job.inputs, job.outputs)
            return job

    def outputs(self, job_id: str) -> list[str]:
        with self.database.reading() as session:
            return [registry.label(v) for v in session.get_one(Job, job_id).outputs]

    def let_pass(self, seconds: float) -> None:
        """Make everything the scheduler measures that much older."""
        step = timedelta(seconds=seconds)
        with self.database.transaction() as session:
            for attempt in session.query(Attempt):
                for name in ("lease_expires_at", "published_at", "placed_at"):
                    if getattr(attempt, name):
                        setattr(attempt, name, getattr(attempt, name) - step)
            for job in session.query(Job).filter(Job.not_before.is_not(None)):
                assert job.not_before is not None
                job.not_before -= step

    def hear(self) -> None:
        """Every worker has just been heard of."""
        with self.database.transaction() as session:
            session.execute(update(Worker).values(seen_at=now(session)))

    def without_grace(self) -> None:
        """As if the scheduler had run for longer than a lease."""
        with self.database.reading() as session:
            self.dispatcher._grace_until = now(session)

    def versions(self) -> list[Version]:
        with self.database.reading() as session:
            return session.query(Version).all()

    def project(self, name: str) -> Project:
        with self.database.transaction() as session:
            return access.project_for(session, self.actor, name, create=True)
