"""Every call in any order, also by processes that are long dead: no promise is broken.

Hypothesis writes the story; the functions and the SQL are the real ones, and the simulation's
ledger watches. At the end everybody behaves, and every job must come to its end.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.orm import Session

from espalier.errors import EspalierError, Unavailable
from espalier.ids import new_id
from espalier.messages import (
    CheckpointPublished,
    Claim,
    FileEntry,
    Finish,
    Heartbeat,
    Held,
    Hello,
    Machine,
    MetricsEvent,
    OutputManifest,
    Report,
)
from espalier.specs import JobRequest, PipelineRequest
from espalier.states import JOB_ENDED, ArtifactKind, JobState, Reason
from scheduler.bytes.blobs import digests
from scheduler.lifecycle import jobs, requests, submit
from scheduler.models import Attempt, Job, Worker
from scheduler.placing import fleet
from scheduler.placing.dispatch import Dispatcher, Ticket
from tests.simulation.control import Control
from tests.simulation.databases import Bench
from tests.simulation.ledger import Call, Facts, value
from tests.simulation.simulation import chosen_by, configured
from tests.simulation.world import HORIZON, Violation, World

TRAIN = {"kind": "train", "model": "team/base", "data": "team/wikisql", "iters": 9}
WORKERS = 3
ENDS = (
    ("succeeded", Reason.OK),
    ("succeeded", Reason.OK),
    ("cancelled", Reason.CANCELLED),
    ("failed", Reason.KILLED),
    ("failed", Reason.CODE_ERROR),
    ("failed", Reason.OUT_OF_MEMORY),
    ("failed", Reason.NAN_LOSS),
    ("failed", Reason.WORKER_STOPPED),
)

some = st.integers(0, 7)  # one of a few things, whichever that is by then
worker = st.integers(0, WORKERS - 1)
age = st.sampled_from((0, 0, 0, 0, 1, 2))  # of a process: now and then a dead one speaks


class Story(RuleBasedStateMachine):
    """A control plane, three workers' names, and whatever is said in them."""

    bench: ClassVar[Bench]

    def __init__(self) -> None:
        super().__init__()
        self.bench.fresh()
        self.world = World(0)
        self.world.now = HORIZON  # no chance: Hypothesis decides
        self.bench.clock = self.world.clock
        self.stack = ExitStack()
        self.stack.enter_context(chosen_by(self.world))
        self.control = Control(self.world, self.bench, lambda: None)
        self.ledger = self.control.ledger
        self.sent: list[Ticket] = []
        self.broker_away = False
        self.seqs: dict[str, int] = {}
        self.dispatchers = [self._dispatcher(), self._dispatcher()]

    def _dispatcher(self) -> Dispatcher:
        return Dispatcher(self.bench.database, self._publish, self.control.config)

    def _publish(self, ticket: Ticket) -> None:
        if self.broker_away:
            raise Unavailable("The broker is away.")
        self.sent.append(ticket)

    @initialize()
    def join(self) -> None:
        with self.bench.database.transaction() as session:
            self.workers = [fleet.join(session, f"mac-{n}")[0].id for n in range(WORKERS)]
        self.boots: list[list[str]] = [[new_id()] for _ in self.workers]
        for number in range(WORKERS):
            self.hello(number, fresh=True, held=False, elsewhere=False)

    # --- What is said ---------------------------------------------------------------------

    def _call(self, number: int, boot: int, verb: str, attempt: int | None = None) -> Call:
        """A request of a worker's process, the newest or one before it, about some attempt."""
        boots = self.boots[number]
        boot_id = boots[max(len(boots) - 1 - boot, 0)]
        attempts = sorted(self.ledger.attempts)
        attempt_id = attempts[-1 - attempt % len(attempts)] if attempt is not None else ""
        return Call(self.workers[number], boot_id, verb, attempt_id)

    def _owners(self, call: Call) -> Call:
        """Mostly it is the attempt's own worker who speaks of it."""
        row = self.ledger.attempts[call.attempt_id]
        number = self.workers.index(row.worker_id)
        return Call(row.worker_id, row.boot_id or self.boots[number][-1], call.verb, row.id)

    def _say(self, work: Callable[[], Any]) -> Any:
        with suppress(EspalierError):
            return work()
        return None

    @rule(pipeline=st.booleans(), attempts=st.integers(1, 3))
    @precondition(lambda self: len(self.ledger.facts) < 6)
    def submit(self, pipeline: bool, attempts: int) -> None:
        number = len(self.ledger.facts)

        def work(session: Any) -> list[Job]:
            actor = self.control.actor
            if not pipeline:
                request = JobRequest(spec=TRAIN, name=f"team/job-{number}", max_attempts=attempts)
                jobs = [submit.submit(session, actor, request)]
            else:
                fuse = {"kind": "fuse", "model": "team/base", "adapter": "step:train"}
                steps = [
                    {"step": "train", "spec": TRAIN, "name": f"team/job-{number}"},
                    {"step": "fuse", "spec": fuse, "name": f"team/job-{number + 1}"},
                ]
                asked = PipelineRequest.model_validate({"steps": steps})
                jobs = submit.submit_pipeline(session, actor, asked)
            for offset, job in enumerate(jobs):
                self.ledger.facts[job.id] = Facts(number + offset, "eval")
            return jobs

        self.control.ask("submit", work)

    @rule(number=worker, fresh=st.booleans(), held=st.booleans(), elsewhere=st.booleans())
    def hello(self, number: int, fresh: bool, held: bool, elsewhere: bool) -> None:
        if fresh:
            self.boots[number].append(new_id())
        mine = [a for a in self.ledger.attempts.values() if a.worker_id == self.workers[number]]
        message = Hello(
            boot_id=self.boots[number][-1],
            machine=Machine(
                hostname=f"mac-{number}{'-b' * elsewhere}",
                platform="macOS 26.1",
                chip="simulated",
                memory_total=32 << 30,
                memory_limit=24 << 30,
                disk_free=1 << 40,
            ),
            installation=f"installation-{number}{'-b' * elsewhere}",
            held=tuple(Held(attempt_id=a.id, boot_id=a.boot_id) for a in mine if a.boot_id)
            if held
            else (),
        )
        call = self._call(number, 0, "hello")
        self._say(lambda: self.control.hello(call, message))

    @rule(number=worker, boot=age)
    def heartbeat(self, number: int, boot: int) -> None:
        call = self._call(number, boot, "heartbeat")
        self._say(lambda: self.control.heartbeat(call, Heartbeat(boot_id=call.boot_id)))

    @rule(number=worker, boot=age, attempt=some, own=st.booleans())
    @precondition(lambda self: self.ledger.attempts)
    def claim(self, number: int, boot: int, attempt: int, own: bool) -> None:
        call = self._call(number, boot, "claim", attempt)
        call = self._owners(call) if own else call
        self._say(lambda: self.control.claim(call, Claim(boot_id=call.boot_id)))

    @rule(number=worker, boot=age, attempt=some, own=st.booleans(), again=st.booleans())
    @precondition(lambda self: self.ledger.attempts)
    def report(self, number: int, boot: int, attempt: int, own: bool, again: bool) -> None:
        call = self._call(number, boot, "report", attempt)
        call = self._owners(call) if own else call
        seq = max(self.seqs.get(call.attempt_id, 0) + (not again), 1)
        self.seqs[call.attempt_id] = seq
        facts = self.ledger.facts[self.ledger.attempts[call.attempt_id].job_id]
        event = MetricsEvent(step=seq, values={"train_loss": value(facts.number, seq)}, time=0.0)
        message = Report(boot_id=call.boot_id, seq=seq, events=(event,))
        self._say(lambda: self.control.report(call, message))

    @rule(number=worker, boot=age, attempt=some, own=st.booleans(), step=st.integers(1, 4))
    @precondition(lambda self: self.ledger.attempts)
    def checkpoint(self, number: int, boot: int, attempt: int, own: bool, step: int) -> None:
        call = self._call(number, boot, "checkpoint", attempt)
        call = self._owners(call) if own else call
        job_id = self.ledger.attempts[call.attempt_id].job_id
        file = self._file(f"{job_id} at {step} by {call.attempt_id}")
        self.ledger.saved[job_id, step].add(file.sha256)
        message = CheckpointPublished(boot_id=call.boot_id, step=step, files=(file,))
        self._say(lambda: self.control.checkpoint(call, message))

    @rule(number=worker, boot=age, attempt=some, own=st.booleans(), end=st.sampled_from(ENDS))
    @precondition(lambda self: self.ledger.attempts)
    def finish(
        self, number: int, boot: int, attempt: int, own: bool, end: tuple[str, Reason]
    ) -> None:
        call = self._call(number, boot, "finish", attempt)
        self._end(self._owners(call) if own else call, *end)

    def _end(self, call: Call, state: Any, reason: Reason) -> None:
        job_id = self.ledger.attempts[call.attempt_id].job_id
        outputs: tuple[OutputManifest, ...] = ()
        if state == "succeeded":
            kind = self.bench.look(f"SELECT kind FROM jobs WHERE id = '{job_id}'")[0][0]
            made = ArtifactKind({"train": "adapter", "fuse": "model"}[kind])
            file = self._file(f"made of {job_id} by {call.attempt_id} in {call.boot_id}")
            self.ledger.made[call.attempt_id].add(file.sha256)
            outputs = (OutputManifest(role=made.value, kind=made, files=(file,)),)
        message = Finish(boot_id=call.boot_id, state=state, reason=reason, outputs=outputs)
        self._say(lambda: self.control.finish(call, message))

    def _file(self, text: str) -> FileEntry:
        data = text.encode()
        self.control.blobs.keep(self.bench.database, data)
        found = digests([data], len(data))
        return FileEntry(path="adapters.safetensors", sha256=found.sha256, size=found.size)

    # --- What happens by itself, and what people do ---------------------------------------

    @rule(which=st.integers(0, 1), away=st.booleans(), restarted=st.booleans())
    def tick(self, which: int, away: bool, restarted: bool) -> None:
        self.broker_away = away
        if restarted:
            self.dispatchers[which] = self._dispatcher()
        self.dispatchers[which].tick()
        self.broker_away = False
        self.ledger.observe(None)

    @rule(seconds=st.sampled_from((-3, 1, 12, 31, 100, 181, 400)))
    def pass_time(self, seconds: int) -> None:
        self.world.skew += seconds

    @rule(what=st.sampled_from(("cancel", "pause", "resume", "retry")), job=some)
    @precondition(lambda self: self.ledger.jobs)
    def ask(self, what: str, job: int) -> None:
        jobs = sorted(self.ledger.jobs)
        self._ask(what, jobs[job % len(jobs)])

    def _ask(self, what: str, job_id: str) -> None:
        call = getattr(requests, what)
        self.control.ask(what, lambda s: call(s, self.control.actor, s.get_one(Job, job_id)).id)

    @rule(number=worker, draining=st.booleans())
    def drain(self, number: int, draining: bool) -> None:
        def work(session: Any) -> bool:
            found = session.get_one(Worker, self.workers[number])
            fleet.set_draining(session, self.control.actor, found, draining)
            return True

        self.control.ask("drain", work)

    @rule()
    def collect(self) -> None:
        self.control.sweep(timedelta(hours=1))

    @invariant()
    def seen(self) -> None:
        self.ledger.observe(None)

    # --- The morning ----------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "workers") and not self.ledger.violated:
                self._morning()
        finally:
            self.stack.close()

    def _morning(self) -> None:
        """Everybody behaves now: every job must come to its end."""
        for number in range(WORKERS):
            self.drain(number, draining=False)
        for job in list(self.ledger.jobs.values()):
            if job.pausing and JobState(job.state) not in JOB_ENDED:
                self._ask("resume", job.id)
        for _ in range(60):
            if self.ledger.settled():
                break
            self.world.skew += 61
            for number in range(WORKERS):
                self.heartbeat(number, 0)
                self.hello(number, fresh=False, held=True, elsewhere=False)
            self.sent.clear()
            self.tick(0, away=False, restarted=False)
            for ticket in self.sent:
                call = Call(
                    ticket.worker_id,
                    self.boots[self.workers.index(ticket.worker_id)][-1],
                    "claim",
                    ticket.attempt_id,
                )
                self._say(lambda call=call: self.control.claim(call, Claim(boot_id=call.boot_id)))
            for row in list(self.ledger.attempts.values()):
                if row.state == "running":
                    self._end(
                        Call(row.worker_id, row.boot_id or "", "finish", row.id),
                        "succeeded",
                        Reason.OK,
                    )
        self.ledger.settle(self.control.store.objects)


@pytest.fixture
def bench(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Bench]:
    path = tmp_path / "story.db"
    shutil.copy(migrated_sqlite, path)
    with configured():
        made = Bench(f"sqlite:///{path}")
        yield made
        made.close()


def _told(bench: Bench, **more: Any) -> None:
    Story.bench = bench
    run_state_machine_as_test(
        Story,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            **more,
        ),
    )


def test_every_call_in_any_order(bench: Bench) -> None:
    _told(bench)


def test_a_missing_fence_is_seen(bench: Bench) -> None:
    def hold(session: Session, worker: Worker, attempt_id: str, boot_id: str) -> Attempt:
        return session.get_one(Attempt, attempt_id)

    unshrunk = (Phase.generate,)
    with patch.object(jobs, "hold", hold), pytest.raises(Violation, match="no stale"):
        _told(bench, phases=unshrunk, report_multiple_bugs=False, print_blob=False)
