"""An attempt's directory, and what is written down in it for whoever finds it after a crash.

==================  ==========================================================================
``attempt.json``    whose it is (Owner): written first, replaced whole
``spool.jsonl``     reports that the control plane has not acknowledged (worker.spool)
``ledger.jsonl``    what there is to publish, and how it ended: this module
``group.json``      the child's process group (worker.groups)
``inputs/ROLE/``    hard links into the blob cache
``checkpoint/``     the one that the child resumes from
``output/``         what the child writes: its outputs, and checkpoints until they are published
``scratch/``        the child's own
==================  ==========================================================================

No secrets: of the assignment only what finishing needs. A line of the ledger has a checksum and
is written only when the files that it names are on the disk: what is in the ledger can be
published, whatever happened since. The directory goes when the control plane has answered how
the attempt ended, or that it is another's; until then it is kept, over any number of starts.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from io import BufferedRandom
from pathlib import Path
from threading import Lock
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from espalier.errors import EspalierError
from espalier.messages import Assignment, CheckpointEvent, Finish, OutputEvent
from espalier.states import Kind
from worker.disk import pack, sync, sync_tree, unpack, write_whole

log = logging.getLogger("worker")

Named = TypeVar("Named", CheckpointEvent, OutputEvent)

SPOOL = "spool.jsonl"
_OWNER = "attempt.json"
_LEDGER = "ledger.jsonl"
#: Starts of the worker that are remembered as possible owners, besides the last certain one.
_MAX_BOOTS = 16


class Owner(BaseModel):
    """``boots``: the process that holds the attempt for certain, then those that asked for it.

    Seconds since the epoch; ``report_seconds`` is what the claim was told.
    """

    model_config = ConfigDict(frozen=True)

    attempt_id: str
    kind: Kind
    boots: tuple[str, ...]
    began: float
    report_seconds: float


class Ledger:
    """One attempt's directory. Any thread."""

    def __init__(self, directory: Path, owner: Owner) -> None:
        self.directory = directory.resolve()
        self.owner = owner
        self.checkpoint: CheckpointEvent | None = None  # announced, not published yet
        self.outputs: tuple[OutputEvent, ...] | None = (
            None  # all of them, of a child that ended well
        )
        self.finish: Finish | None = None  # how it ended
        self._lock = Lock()

    @classmethod
    def begin(cls, directory: Path, assignment: Assignment, boot_id: str, began: float) -> "Ledger":
        """Make the directory of an attempt that was claimed. Raises OSError."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        owner = Owner(
            attempt_id=assignment.attempt_id,
            kind=assignment.kind,
            boots=(boot_id,),
            began=began,
            report_seconds=assignment.report_seconds,
        )
        ledger = cls(directory, owner)
        ledger._write_owner()
        return ledger

    @classmethod
    def find(cls, directory: Path) -> "Ledger | None":
        """Open what an earlier process has left; None where it did not get that far."""
        try:
            owner = Owner.model_validate_json((directory / _OWNER).read_bytes())
        except (OSError, ValueError) as error:
            log.warning("%s is no attempt's directory: %s", directory, error)
            return None
        ledger = cls(directory, owner)
        ledger._read()
        return ledger

    @property
    def attempt_id(self) -> str:
        return self.owner.attempt_id

    @property
    def spool(self) -> Path:
        return self.directory / SPOOL

    def ask(self, boot_id: str) -> tuple[str, ...]:
        """Return who may hold it, and note that ``boot_id`` is about to ask for it.

        Before it asks: it may get the attempt and end before it can write that down.
        """
        asked = self.owner.boots
        kept = (asked[0], *asked[1:][-_MAX_BOOTS:], boot_id)
        self._note_boots(kept)
        return asked

    def inherit(self, boot_id: str) -> None:
        """The process ``boot_id`` holds the attempt now."""
        self._note_boots((boot_id,))

    def announced(self, event: CheckpointEvent) -> None:
        """A checkpoint stands complete; it replaces one that was not published."""
        self.checkpoint = event
        self._append("checkpoint", lambda: self._settled(event))

    def published(self, event: CheckpointEvent) -> None:
        """The checkpoint is in the store, or was refused for good."""
        if self.checkpoint == event:
            self.checkpoint = None
        self._append("published", lambda: event.step)

    def completed(self, outputs: Sequence[OutputEvent]) -> None:
        """The child has ended well, and these are its outputs."""
        self.outputs = tuple(outputs)
        self._append("outputs", lambda: [self._settled(output) for output in outputs])

    def ended(self, finish: Finish) -> None:
        """How it ended is known, and has to be told."""
        self.finish = finish
        self._append("finish", lambda: finish)

    def remove(self) -> None:
        """The control plane knows the end: nothing here is needed any more."""
        self.discard(self.directory)

    @staticmethod
    def discard(directory: Path) -> None:
        """Throw out a directory in which nothing was written down, or what is left of one."""
        shutil.rmtree(directory, ignore_errors=True)

    # --- The files ------------------------------------------------------------------------

    def _note_boots(self, boots: tuple[str, ...]) -> None:
        self.owner = self.owner.model_copy(update={"boots": boots})
        try:
            self._write_owner()
        except OSError as error:  # a full disk: only another crash, right now, would mind
            log.warning("attempt %s: its owner is not written down: %s", self.attempt_id, error)

    def _write_owner(self) -> None:
        write_whole(self.directory / _OWNER, self.owner.model_dump_json().encode())

    def _settled(self, event: Named) -> Named:
        """Return the event with a relative path, for a data directory may be moved.

        When this returns, its files are on the disk.
        """
        directory = Path(event.directory).resolve()
        sync_tree(directory)
        inside = str(directory.relative_to(self.directory))
        return event.model_copy(update={"directory": inside})

    def _append(self, name: str, fact: Callable[[], object]) -> None:
        """Write a fact down; a disk that is full costs the attempt this insurance, not its life."""
        try:
            line = pack(json.dumps({name: fact()}, default=_plain).encode())
            with self._lock, (self.directory / _LEDGER).open("a+b") as file:
                file.write(_cut_off(file) + line)
                file.flush()
                sync(file.fileno())
        except (OSError, ValueError) as error:
            log.warning("attempt %s: its %s is not written down: %s", self.attempt_id, name, error)

    def _read(self) -> None:
        try:
            lines = (self.directory / _LEDGER).read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        for line in lines:
            body = unpack(line)
            try:
                fact = json.loads(body) if body else {}
                self._learn(fact)
            except (ValueError, EspalierError) as error:
                log.warning("%s: a line is left out: %s", self.directory / _LEDGER, error)

    def _learn(self, fact: dict[str, object]) -> None:
        if "checkpoint" in fact:
            event = CheckpointEvent.model_validate(fact["checkpoint"])
            whole = self._whole(event.directory)
            self.checkpoint = event.model_copy(update={"directory": whole})
        elif "published" in fact:
            if self.checkpoint and self.checkpoint.step == fact["published"]:
                self.checkpoint = None
        elif isinstance(outputs := fact.get("outputs"), list):
            events = [OutputEvent.model_validate(output) for output in outputs]
            self.outputs = tuple(
                e.model_copy(update={"directory": self._whole(e.directory)}) for e in events
            )
        elif "finish" in fact:
            self.finish = Finish.model_validate(fact["finish"])

    def _whole(self, inside: str) -> str:
        path = (self.directory / inside).resolve()
        if not path.is_relative_to(self.directory):
            raise ValueError(f"{inside} is outside of the attempt's directory")
        return str(path)


def _cut_off(file: BufferedRandom) -> bytes:
    """Return what ends a line that a crash or a full disk left unfinished."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return b""
    file.seek(size - 1)
    return b"" if file.read(1) == b"\n" else b"\n"


def _plain(value: object) -> object:
    assert isinstance(value, BaseModel)
    return value.model_dump(mode="json")
