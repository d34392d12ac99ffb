"""One attempt on a machine: a child that computes, a spool, a publisher, and how it ends."""

import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from espalier.errors import Conflict, EspalierError, NotFound, Unavailable
from espalier.messages import (
    Assignment,
    CheckpointPublished,
    Event,
    Failure,
    FileEntry,
    Finish,
    LogChunk,
    MetricsEvent,
    OutputManifest,
    PhaseEvent,
    Report,
)
from espalier.specs import OUTPUT_KIND
from espalier.states import ArtifactKind, Reason
from scheduler.store.base import blob_key
from tests.simulation.ledger import value
from tests.simulation.machine import Process
from tests.simulation.uploads import upload

#: How a child may end that its job is not to blame for, and one that it is.
MISHAPS = (
    Reason.KILLED,
    Reason.HUNG,
    Reason.METAL_ABORT,
    Reason.DISK_FULL,
    Reason.INPUT_LOST,
    Reason.CODE_ERROR,
)


@dataclass(slots=True)
class Saved:
    """A complete checkpoint on the disk; ``after_seq`` is the report that leads up to it."""

    step: int
    data: bytes
    after_seq: int


@dataclass(slots=True)
class Disk:
    """What of an attempt outlives its process. ``boots`` may have held it, oldest first."""

    attempt_id: str
    job_id: str
    boots: list[str]
    spool: list[Report] = field(default_factory=list)
    seq: int = 0
    log_bytes: int = 0
    checkpoint: Saved | None = None
    output: bytes | None = None  # complete: the child said that it was done


class Work:
    """Runs an assignment, or, without one, brings home what an earlier process left."""

    def __init__(self, process: Process, disk: Disk, assignment: Assignment | None = None) -> None:
        self.process, self.disk, self.assignment = process, disk, assignment
        self.world, self.control = process.world, process.control
        self.facts = self.control.ledger.facts[disk.job_id]
        self.gone = False
        self._step = 0
        self._events: list[Event] = []
        self._log = ""
        self._told = False  # a report is on its way
        self._saving = False
        self._outcome: tuple[str, Reason] | None = None
        self._finishing = False
        self._tries = 0
        self._turn = 0
        random = self.world.random
        self._pace = random.uniform(8, 25)
        self._deaf = self.world.chance(0.05)
        self._mishap = random.choice(MISHAPS) if self.world.chance(0.2) else None
        self._mishap_step = random.randint(1, max(self.facts.iters, 1))

    # --- The child ------------------------------------------------------------------------

    def begin(self) -> None:
        self._event(PhaseEvent(name="fetching", time=self.world.now))
        self._due(self.world.random.uniform(0.1, 1.0))
        self.process.after(self.world.random.uniform(0.1, 5), self._fetch)

    def _fetch(self) -> None:
        assert self.assignment is not None
        if self.gone or self._outcome:
            return
        resume = self.assignment.resume
        files = [file for item in self.assignment.inputs for file in item.files]
        files += resume.files if resume else ()
        try:
            for file in files:
                data = b"".join(self.control.store.open(blob_key(file.sha256)))
                if hashlib.sha256(data).hexdigest() != file.sha256:
                    self.control.ledger.fail("what is fetched is what was named", file)
        except Unavailable:
            self.process.after(self.world.random.uniform(2, 20), self._fetch)
        except NotFound:
            self.control.ledger.fail("inputs and checkpoints are in the store", self.assignment)
        else:
            self._step = resume.step if resume else 0
            self.process.after(self._pace, self._advance)

    def _advance(self) -> None:
        """Compute one step."""
        if self.gone or self._outcome:
            return
        facts = self.facts
        if self._mishap and self._step + 1 >= self._mishap_step:
            self.world.fault(f"child: {self._mishap}", self.disk.attempt_id)
            delay = self.world.random.uniform(100, 400) if self._mishap == Reason.HUNG else 0
            self.process.after(delay, partial(self._end, "failed", self._mishap))
            self._mishap = None
            return
        if self._starved():
            self._end("failed", Reason.OUT_OF_MEMORY)
            return
        if facts.poison and self._step + 1 >= facts.poison_step:
            self._end("failed", facts.poison)
            return
        if self._step < facts.iters:
            self._compute()
        if self._step >= facts.iters:
            self._made()
        else:
            self.process.after(self._pace * self.world.random.uniform(0.8, 1.2), self._advance)

    def _compute(self) -> None:
        self._step += 1
        step, facts = self._step, self.facts
        if facts.kind == "train":
            loss = {"train_loss": value(facts.number, step)}
            self._event(MetricsEvent(step=step, values=loss, time=self.world.now))
        self._log += f"step {step} ✓\n"
        if facts.kind == "train" and step % facts.save_every == 0:
            self._save()

    def _starved(self) -> bool:
        if self.facts.fits is None or self.assignment is None:
            return False
        spec: Any = self.assignment.spec
        rows = min(spec.micro_batch_size or spec.batch_size, spec.batch_size)
        room = self.facts.fits * (2 if spec.grad_checkpoint else 1)
        return bool(rows > room)

    def _save(self) -> None:
        """Write a checkpoint; only what led up to it being on disk makes it complete."""
        self._gather()
        data = f"checkpoint {self.facts.number} {self._step} {self.disk.attempt_id}".encode()
        sha256 = hashlib.sha256(data).hexdigest()
        self.control.ledger.saved[self.disk.job_id, self._step].add(sha256)
        self.disk.checkpoint = Saved(self._step, data, self.disk.seq)
        self._check_checkpoint()

    def _made(self) -> None:
        self._gather()
        self.disk.output = f"{self.facts.kind} {self.facts.number} {self.disk.attempt_id}".encode()
        digest = hashlib.sha256(self.disk.output).hexdigest()
        self.control.ledger.made[self.disk.attempt_id].add(digest)
        self._end("succeeded", Reason.OK)

    def _end(self, state: str, reason: Reason) -> None:
        if self.gone or self._outcome:
            return
        self._gather()
        self._outcome = (state, reason)
        self.world.note("child ends", self.process.machine.name, self.disk.attempt_id, reason)
        self._due(0.01)
        self._check_end()

    # --- Orders ---------------------------------------------------------------------------

    def hear(self) -> None:
        """A ticket for what runs here: there is something to hear."""
        self._due(0.05)

    def order_stop(self, reason: Reason) -> None:
        """End after a checkpoint; a deaf child goes on to its end."""
        if self._outcome or self.assignment is None:
            return
        if self._deaf:
            self.world.fault("order not obeyed", self.disk.attempt_id)
            self._deaf = self.world.chance(0.5)
            return
        delay = self.world.random.uniform(0.1, 4)
        if self.world.chance(0.1):
            self.world.fault("order obeyed late", self.disk.attempt_id)
            delay = self.world.random.uniform(20, 120)
        self.process.after(delay, partial(self._obey, reason))

    def _obey(self, reason: Reason) -> None:
        if self.gone or self._outcome:
            return
        if self.facts.kind == "train" and self._step:
            self._save()
        state = "failed" if reason == Reason.WORKER_STOPPED else "cancelled"
        self._end(state, reason)

    def salvage(self) -> None:
        """Nothing computes any more: what is complete is brought home, the rest is given up."""
        crashed = ("failed", Reason.WORKER_CRASHED)
        self._outcome = ("succeeded", Reason.OK) if self.disk.output else crashed
        self._due(0.1)
        self._check_checkpoint()
        self._check_end()

    # --- Reports --------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        self._events.append(event)

    def _gather(self) -> bool:
        """Move what has happened to the disk; False when there was no news."""
        if not self._events and not self._log:
            return False
        self._spool()
        return True

    def _spool(self) -> None:
        log = (LogChunk(offset=self.disk.log_bytes, text=self._log),) if self._log else ()
        self.disk.seq += 1
        report = Report(
            boot_id=self.process.boot_id, seq=self.disk.seq, events=tuple(self._events), log=log
        )
        self.disk.spool.append(report)
        self.disk.log_bytes += len(self._log.encode())
        self._events, self._log = [], ""

    def _due(self, delay: float) -> None:
        self._turn += 1
        self.process.after(delay, partial(self._report, self._turn))

    def _report(self, turn: int) -> None:
        if self.gone or turn != self._turn:
            return
        if not self._gather() and not self.disk.spool:
            self._spool()  # nothing new: that it lives is news enough
        self._due(self.control.config.report_seconds * self.world.random.uniform(0.8, 1.2))
        self._send()

    def _send(self) -> None:
        if self.gone or self._told or not self.disk.spool:
            return
        self._told = True
        head = self.disk.spool[0]
        report = head.model_copy(update={"boot_id": self.process.boot_id})
        call = self.process.call("report", self.disk.attempt_id)
        work = partial(self.control.report, call, report)
        self.process.send("report", work, partial(self._reported, head.seq))

    def _reported(self, seq: int, result: Any) -> None:
        self._told = False
        if self.gone:
            return
        if self._refused(result):
            if not self.gone:
                self.process.after(self._backoff(), self._send)
            return
        self._tries = 0
        self.disk.spool.pop(0)
        for order in result.orders:
            if order.attempt_id == self.disk.attempt_id:
                paused = order.order == "pause"
                self.order_stop(Reason.PAUSED if paused else Reason.CANCELLED)
        self._send()
        self._check_checkpoint()
        self._check_end()

    def _refused(self, result: Any) -> bool:
        """Whether it was an error: an outage is borne, a lost lease ends everything."""
        if isinstance(result, Conflict | NotFound):
            self._lose(result.detail)
        elif isinstance(result, EspalierError) and not isinstance(result, Unavailable):
            self.control.ledger.fail("what a worker says is understood", result.detail)
        return isinstance(result, EspalierError)

    def _lose(self, why: str) -> None:
        self.world.note("attempt is lost", self.process.machine.name, why)
        self.gone = True
        self.process.over(self)

    def _backoff(self) -> float:
        self._tries += 1
        return min(0.5 * 2.0**self._tries, 15.0)

    # --- Checkpoints ----------------------------------------------------------------------

    def _check_checkpoint(self) -> None:
        """Publish the checkpoint once all that led up to it has been reported."""
        saved = self.disk.checkpoint
        if self.gone or self._saving or saved is None:
            return
        if self.disk.spool and self.disk.spool[0].seq <= saved.after_seq:
            return
        self._saving = True
        upload(self, saved.data, partial(self._uploaded, saved))

    def _uploaded(self, saved: Saved, file: FileEntry) -> None:
        message = CheckpointPublished(boot_id=self.process.boot_id, step=saved.step, files=(file,))
        call = self.process.call("checkpoint", self.disk.attempt_id)
        work = partial(self.control.checkpoint, call, message)
        self.process.send("checkpoint", work, partial(self._recorded, saved, file))

    def _recorded(self, saved: Saved, file: FileEntry, result: Any) -> None:
        if self.gone:
            return
        if result is not None and self._refused(result):
            if not self.gone:
                self.process.after(self._backoff(), partial(self._uploaded, saved, file))
            return
        self._saving = False
        if self.disk.checkpoint is saved:
            self.disk.checkpoint = None
        self._check_checkpoint()
        self._check_end()

    # --- The end --------------------------------------------------------------------------

    def _check_end(self) -> None:
        """Finish when everything has been told and the last checkpoint is published."""
        if self.gone or self._finishing or not self._outcome:
            return
        if self.disk.spool or self._told or self._saving or self.disk.checkpoint:
            return
        self._finishing = True
        if self._outcome[0] == "succeeded":
            assert self.disk.output is not None
            upload(self, self.disk.output, self._finish)
        else:
            self._finish(None)

    def _finish(self, file: FileEntry | None) -> None:
        assert self._outcome is not None
        state, reason = self._outcome
        kind = OUTPUT_KIND[self.facts.kind]  # type: ignore[index]
        output = (
            (OutputManifest(role=kind, kind=ArtifactKind(kind), files=(file,)),) if file else ()
        )
        failed = state == "failed"
        message = Finish(
            boot_id=self.process.boot_id,
            state=state,
            reason=reason,
            error=Failure(code=reason, message=f"It ended: {reason}.") if failed else None,
            outputs=output,
        )
        call = self.process.call("finish", self.disk.attempt_id)
        work = partial(self.control.finish, call, message)
        self.process.send("finish", work, partial(self._finished, file))

    def _finished(self, file: FileEntry | None, result: Any) -> None:
        if self.gone:
            return
        if self._refused(result):
            if not self.gone:
                self.process.after(self._backoff(), partial(self._finish, file))
            return
        self.gone = True
        self.process.over(self)
