"""What really happened, written down beside the code under test, and what must be true of it.

The ledger knows who claimed what, which process made which bytes and which steps, because the
simulation did those things. After every transaction it reads the committed rows itself and
compares.
"""

import json
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, ClassVar

from espalier.messages import Assignment
from espalier.states import (
    ATTEMPT_LIVE,
    ATTEMPT_TRANSITIONS,
    JOB_ENDED,
    JOB_TRANSITIONS,
    MACHINE_FAULTS,
    NOT_CHARGED,
    AttemptState,
    JobState,
    Reason,
)
from tests.simulation.databases import Bench
from tests.simulation.world import Violation, World

JOBS = (
    "SELECT id, state, reason, charged, lost, cancel_requested_at IS NOT NULL,"
    " pause_requested_at IS NOT NULL FROM jobs"
)
ATTEMPTS = "SELECT id, job_id, number, state, worker_id, boot_id, reason, last_seq FROM attempts"
VERSIONS = "SELECT id, attempt_id, job_id, role FROM versions WHERE job_id IS NOT NULL"
CHECKPOINTS = "SELECT job_id, step, attempt_id FROM checkpoints"
#: The event that a change to a state must have left.
TELLS = {
    "waiting": {"submitted", "retried"},
    "queued": {"submitted", "queued", "paused", "preempted"},
    "running": {"claimed", "adopted"},
    "succeeded": {"succeeded"},
    "failed": {"failed"},
    "cancelled": {"cancelled"},
}


@dataclass(frozen=True, slots=True)
class Call:
    """One request of one process, as the ledger sees it."""

    worker_id: str
    boot_id: str
    verb: str
    attempt_id: str = ""


@dataclass(frozen=True, slots=True)
class JobRow:
    id: str
    state: str
    reason: str | None
    charged: int
    lost: int
    cancelling: bool
    pausing: bool


@dataclass(frozen=True, slots=True)
class AttemptRow:
    id: str
    job_id: str
    number: int
    state: str
    worker_id: str
    boot_id: str | None
    reason: str | None
    last_seq: int


@dataclass(slots=True)
class Facts:
    """A job as its author knows it: what it computes does not depend on who computes it."""

    number: int
    kind: str
    iters: int = 1
    save_every: int = 1
    poison: Reason | None = None  # it always ends so
    poison_step: int = 0
    fits: int | None = None  # rows at once that memory has room for


@dataclass(slots=True)
class Ledger:
    """All that was seen; ``observe`` after every transaction, ``settle`` at the end.

    ``watched`` is empty, or part of the one promise that is looked at.
    """

    watched: ClassVar[str] = ""

    world: World
    bench: Bench
    facts: dict[str, Facts] = field(default_factory=dict)
    jobs: dict[str, JobRow] = field(default_factory=dict)
    attempts: dict[str, AttemptRow] = field(default_factory=dict)
    owner: dict[str, tuple[str, str]] = field(default_factory=dict)
    made: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    saved: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    versions: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    checkpoints: dict[tuple[str, int], str] = field(default_factory=dict)
    collected: bool = False  # garbage collection may have dropped checkpoints
    last_event: int = 0
    violated: bool = False
    phases: set[Any] = field(default_factory=set)  # each attempt of the simulation tells one
    events: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def fail(self, promise: str, *about: object) -> None:
        if self.watched not in promise:
            return
        self.violated = True
        told = " ".join(str(a) for a in about)
        raise Violation(f"seed {self.world.seed} at {self.world.now:.2f}: {promise}: {told}")

    # --- After every transaction ----------------------------------------------------------

    def observe(self, call: Call | None = None) -> None:
        """Compare the committed rows with those before the transaction, by ``call`` or nobody."""
        news = self._news()
        jobs = {r[0]: JobRow(*r[:5], bool(r[5]), bool(r[6])) for r in self.bench.look(JOBS)}
        attempts = {r[0]: AttemptRow(*r) for r in self.bench.look(ATTEMPTS)}
        if self.jobs.keys() - jobs.keys():
            self.fail("no job is lost", self.jobs.keys() - jobs.keys())
        self._writes(call)
        for row in attempts.values():
            if row != (before := self.attempts.get(row.id)):
                self._attempt(before, row, news, call)
        for job in jobs.values():
            if job != (was := self.jobs.get(job.id)):
                self._job(was, job, attempts, news)
        self._live(jobs, attempts)
        self.jobs, self.attempts = jobs, attempts

    def _news(self) -> set[tuple[str, str | None, str]]:
        query = f"SELECT id, job_id, attempt_id, type FROM events WHERE id > {self.last_event}"
        news = set()
        for number, job_id, attempt_id, kind in sorted(self.bench.look(query)):
            self.last_event = number
            if kind == "phase" and (job_id, attempt_id, kind) in self.phases:
                self.fail("no batch is taken twice", job_id, attempt_id)
            if kind == "phase":
                self.phases.add((job_id, attempt_id, kind))
            news.add((job_id, attempt_id, kind))
            news.add((job_id, None, kind))
            self.events[job_id].append(kind)
        return news

    def _attempt(
        self, before: AttemptRow | None, row: AttemptRow, news: set[Any], call: Call | None
    ) -> None:
        old = before.state if before else AttemptState.PLACED
        if before is None:
            newer = [a.number for a in self.attempts.values() if a.job_id == row.job_id]
            if max(newer, default=0) >= row.number:
                self.fail("attempts are numbered upwards", row)
            self.world.counts["attempts"] += 1
        adopted = (row.job_id, row.id, "adopted") in news
        if adopted:
            self.world.counts["adoptions"] += 1
            if self._superseded(row):
                self.fail("what was placed elsewhere is not adopted", row)
        path = ATTEMPT_TRANSITIONS
        if old != row.state and not _reachable(path, AttemptState(old), AttemptState(row.state)):
            self.fail("attempts move along the table", old, row)
        if old == AttemptState.LOST and row.state != old and not adopted:
            self.fail("a lost attempt comes back only by adoption", row)
        if before and row.last_seq != before.last_seq:
            if call is None or (call.verb, call.attempt_id) != ("report", row.id):
                self.fail("only an attempt's own report moves its seq", call, row)
            self._fenced("report", row.id, call)
            if row.last_seq < before.last_seq:
                self.fail("no batch is taken twice", call, row, before.last_seq)

    def _superseded(self, row: AttemptRow) -> bool:
        """Whether a newer attempt of the job was there before this transaction."""
        return any(a.job_id == row.job_id and a.number > row.number for a in self.attempts.values())

    def _fenced(self, what: str, attempt_id: str, call: Call | None) -> None:
        """A write counts only for the newest attempt, by the process that holds it."""
        row = self.attempts.get(attempt_id)
        if call is None or row is None or call.attempt_id != attempt_id:
            self.fail(f"no stale {what}", attempt_id, call)
            return
        if self.owner.get(attempt_id) != (call.worker_id, call.boot_id):
            self.fail(f"no stale {what} (owner)", call, self.owner.get(attempt_id))
        held = row.state == AttemptState.RUNNING
        waits = self.jobs[row.job_id].state == JobState.QUEUED
        if not held and not (row.state == AttemptState.LOST and waits):
            self.fail(f"no stale {what} (state)", call, row, self.jobs[row.job_id])
        if self._superseded(row):
            self.fail(f"no stale {what} (superseded)", call, row)

    def _job(
        self, was: JobRow | None, job: JobRow, attempts: dict[str, AttemptRow], news: set[Any]
    ) -> None:
        if job.id not in self.facts:
            self.fail("no job comes from nowhere", job)
        retried = (job.id, None, "retried") in news
        old = was.state if was else job.state
        if old != job.state:
            if not _reachable(JOB_TRANSITIONS, JobState(old), JobState(job.state)):
                self.fail("jobs move along the table", was, job)
            if JobState(old) in JOB_ENDED and not retried:
                self.fail("an ended job stays ended", was, job)
            if not any((job.id, None, tell) in news for tell in TELLS[job.state]):
                self.fail("every change has its event", was, job)
        if was and not retried:
            self._counts(was, job, attempts, news)

    def _counts(
        self, was: JobRow, job: JobRow, attempts: dict[str, AttemptRow], news: set[Any]
    ) -> None:
        """What is charged to a person are the job's own failures, once each."""
        reasons = [
            Reason(a.reason)
            for a in attempts.values()
            if a.job_id == job.id
            and a.reason
            and a.state in ("failed", "lost")
            # ended in this transaction
            and (a.id not in self.attempts or self.attempts[a.id].state != a.state)
        ]
        climbed = (job.id, None, "ladder") in news
        own = [r for r in reasons if r not in NOT_CHARGED and not climbed]
        if job.charged - was.charged != len(own):
            self.fail("only a job's own failures are charged, once", was, job, reasons)
        if job.lost > was.lost and not any(r in MACHINE_FAULTS for r in reasons):
            self.fail("only machine faults count as lost", was, job, reasons)

    def _live(self, jobs: dict[str, JobRow], attempts: dict[str, AttemptRow]) -> None:
        live: dict[str, str] = {}
        for row in attempts.values():
            if row.state in ATTEMPT_LIVE:
                if row.job_id in live:
                    self.fail("one live attempt a job", row.job_id)
                live[row.job_id] = row.state
        for job in jobs.values():
            held = live.get(job.id)
            if (job.state == JobState.RUNNING) != (held == AttemptState.RUNNING):
                self.fail("a job runs while its attempt does", job, held)
            if held == AttemptState.PLACED and job.state != JobState.QUEUED:
                self.fail("only queued jobs are placed", job)

    def _writes(self, call: Call | None) -> None:
        """Versions and checkpoints come from who holds the attempt, and never a second time."""
        for version_id, attempt_id, job_id, role in self.bench.look(VERSIONS):
            if version_id in self.versions:
                continue
            if call is None or call.verb != "finish":
                self.fail("only a finish publishes", version_id, call)
            self._fenced("publish", attempt_id, call)
            if any(v[1:] == (job_id, role) for v in self.versions.values()):
                self.fail("one version a role of a job", job_id, role)
            self.versions[version_id] = (attempt_id, job_id, role)
        rows = {(r[0], r[1]): r[2] for r in self.bench.look(CHECKPOINTS)}
        for key, attempt_id in rows.items():
            if self.checkpoints.get(key) != attempt_id:
                self._fenced("checkpoint", attempt_id, call)
        for job_id, step in self.checkpoints.keys() - rows.keys():
            if not self.collected or JobState(self.jobs[job_id].state) not in JOB_ENDED:
                self.fail("checkpoints stay while a job may go on", job_id, step)
        self.checkpoints = rows

    def resumed(self, assignment: Assignment) -> None:
        """An attempt goes on from the newest checkpoint, and from what was saved there."""
        job_id, resume = assignment.job_id, assignment.resume
        steps = [step for job, step in self.checkpoints if job == job_id]
        if (resume.step if resume else None) != max(steps, default=None):
            self.fail("an attempt goes on from the newest checkpoint", job_id, resume, steps)
        if resume and resume.files[0].sha256 not in self.saved[job_id, resume.step]:
            self.fail("a checkpoint is what was saved at its step", job_id, resume)

    # --- At the end -----------------------------------------------------------------------

    def settled(self) -> bool:
        return all(JobState(job.state) in JOB_ENDED for job in self.jobs.values())

    def settle(self, objects: dict[str, bytes]) -> None:
        """Every job has ended once, and what it left is what it should have left."""
        self.observe()
        if self.facts.keys() != self.jobs.keys():
            self.fail("no job is lost", self.facts.keys() ^ self.jobs.keys())
        for job in self.jobs.values():
            if JobState(job.state) not in JOB_ENDED:
                self.fail("no job is stuck", job, self._attempts_of(job.id))
            self._ended_once(job)
            self._outcome(job)
        self._contents(objects)
        self._curves()
        self._logs()
        self.world.counts["jobs"] += len(self.jobs)
        for job in self.jobs.values():
            self.world.counts[f"jobs {job.state}"] += 1
        for row in self.attempts.values():
            self.world.counts[f"attempts {row.state}: {row.reason}"] += 1
        for kind in ("inherited", "preempting", "ladder", "paused"):
            events = (event for told in self.events.values() for event in told)
            self.world.counts[f"events: {kind}"] += sum(event == kind for event in events)

    def _attempts_of(self, job_id: str) -> list[AttemptRow]:
        mine = [a for a in self.attempts.values() if a.job_id == job_id]
        return sorted(mine, key=lambda a: a.number)

    def _ended_once(self, job: JobRow) -> None:
        ends = 0
        for kind in self.events[job.id]:
            if kind in ("succeeded", "failed", "cancelled"):
                ends += 1
            elif kind == "retried":
                ends -= 1
            if ends not in (0, 1):
                self.fail("a job ends exactly once", job, self.events[job.id])
        if ends != 1:
            self.fail("a job ends exactly once", job, self.events[job.id])

    def _outcome(self, job: JobRow) -> None:
        won = [a for a in self._attempts_of(job.id) if a.state == AttemptState.SUCCEEDED]
        made = [v for v in self.versions.values() if v[1] == job.id]
        if job.state == JobState.SUCCEEDED:
            if len(won) != 1 or len(made) != 1 or made[0][0] != won[0].id:
                self.fail("one winner, whose output is published", job, won, made)
        elif won or made:
            self.fail("what did not succeed published nothing", job, won, made)

    def _contents(self, objects: dict[str, bytes]) -> None:
        """Every version's files are in the store, and are what the winning attempt made."""
        query = (
            "SELECT v.attempt_id, v.manifest, f.sha256 FROM versions v"
            " JOIN version_files f ON f.version_id = v.id"
        )
        for attempt_id, manifest, sha256 in self.bench.look(query):
            for name in (manifest, sha256):
                if f"blobs/sha256/{name[:2]}/{name}" not in objects:
                    self.fail("no version names a blob that is missing", attempt_id, name)
            if attempt_id and sha256 not in self.made[attempt_id]:
                self.fail("what is published is what its attempt made", attempt_id, sha256)
        for (sha256,) in self.bench.look("SELECT sha256 FROM blobs"):
            if f"blobs/sha256/{sha256[:2]}/{sha256}" not in objects:
                self.fail("every known blob is in the store", sha256)

    def _curves(self) -> None:
        """A curve is what a quiet night would have drawn: each step once, with its value."""
        curves: dict[str, dict[int, float]] = defaultdict(dict)
        for job_id, step, values in self.bench.look('SELECT job_id, step, "values" FROM metrics'):
            known = json.loads(values) if isinstance(values, str) else values
            curves[job_id][step] = known["train_loss"]
        for job in self.jobs.values():
            facts, curve = self.facts[job.id], curves[job.id]
            wrong = {s: v for s, v in curve.items() if v != value(facts.number, s)}
            if wrong:
                self.fail("a step has the value that it computes to", job, wrong)
            whole = set(range(1, facts.iters + 1))
            if job.state == JobState.SUCCEEDED and facts.kind == "train" and curve.keys() != whole:
                self.fail("the curve is whole", job, sorted(whole ^ curve.keys()))

    def _logs(self) -> None:
        """An attempt's log has no gap and nothing twice; a finished one's is whole."""
        ends: Counter[str] = Counter()
        query = 'SELECT attempt_id, "offset", size FROM log_chunks ORDER BY attempt_id, "offset"'
        for attempt_id, offset, size in self.bench.look(query):
            if offset != ends[attempt_id]:
                self.fail("a log has no gap", attempt_id, offset, ends[attempt_id])
            ends[attempt_id] = offset + size


def value(number: int, step: int) -> float:
    """The training loss of job ``number`` at ``step``: a pure function, as MLX's is."""
    return zlib.crc32(f"{number}/{step}".encode()) / 2**32


def _reachable(table: Any, old: Any, new: Any) -> bool:
    """Whether three steps along the table lead there: one transaction may take several."""
    reached = {old}
    for _ in range(3):
        reached |= {to for state in reached for to in table[state]}
    return new in reached
