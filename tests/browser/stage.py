"""Machines, attempts and time for a seeded database: the very functions that the doors call."""

import json
import math
import random
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from espalier.messages import (
    CheckpointPublished,
    Claim,
    Event,
    Failure,
    FileEntry,
    Finish,
    Hello,
    LogChunk,
    Machine,
    MetricsEvent,
    OutputManifest,
    PhaseEvent,
    ProgressEvent,
    Report,
)
from espalier.settings import Settings
from espalier.specs import JobRequest, PipelineRequest, parse
from espalier.states import ArtifactKind, Reason
from espalier.textsql import write_dataset
from scheduler.access import Actor
from scheduler.bytes.blobs import Blobs
from scheduler.catalog import registry
from scheduler.db import Database, now
from scheduler.lifecycle import assignments, ingest, jobs, submit
from scheduler.models import Attempt, Job, Metric, Project, Worker
from scheduler.models import Event as EventRow
from scheduler.placing import fleet
from scheduler.placing.placement import Placement
from tests.browser import things
from web.pages.upload import DataFiles, publish_files

GIB = 1 << 30


class Stage:
    """What workers and people do, each as one call and one transaction, as in life."""

    def __init__(self, database: Database, blobs: Blobs, settings: Settings) -> None:
        self.database, self.blobs, self.settings = database, blobs, settings
        self.workers: dict[str, str] = {}
        self.seq: dict[str, int] = {}
        self.actor: Actor

    # --- Machines and artifacts -----------------------------------------------------------

    def join(self, name: str, chip: str, memory: int, limit: int) -> None:
        machine = Machine(
            hostname=f"{name}.local",
            platform="macOS 26.1",
            chip=chip,
            memory_total=memory * GIB,
            memory_limit=limit * GIB,
            disk_free=1400 * GIB,
            versions={"espalier": "0.1.0", "mlx": "0.30.4", "mlx-lm": "0.32.2"},
        )
        with self.database.transaction() as db:
            worker, _ = fleet.join(db, name)
            settings = self.settings.model_copy(update={"broker_url": "redis://127.0.0.1:1"})
            fleet.hello(db, worker, Hello(boot_id=f"boot-{name}", machine=machine), settings)
            self.workers[name] = worker.id

    def _files(self, db: Session, contents: dict[str, bytes]) -> list[FileEntry]:
        return [
            FileEntry(path=path, sha256=self.blobs.put_bytes(db, data), size=len(data))
            for path, data in contents.items()
        ]

    def base_artifacts(self) -> None:
        with TemporaryDirectory() as folder:
            write_dataset(Path(folder), rows=400, seed=0)
            files = DataFiles({path.name: path for path in Path(folder).iterdir()})
            publish_files(self.database, self.blobs, self.actor, "team/wikisql", files)
            text = files.paths["train.jsonl"].read_text()
        config = {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24}
        self.publish(
            "qwen2.5-0.5b",
            ArtifactKind.MODEL,
            {
                "README.md": things.CARD.encode(),
                "config.json": json.dumps(config).encode(),
                "model.safetensors": things.weights(),
                "tokenizer.json": _tokenizer(text),
            },
        )

    def publish(self, name: str, kind: ArtifactKind, contents: dict[str, bytes]) -> int:
        """Publish a version of ``team/<name>`` as a person does; return its number."""
        with self.database.transaction() as db:
            version = registry.publish(
                db,
                self.blobs,
                project=db.scalars(select(Project)).one(),
                name=name,
                kind=kind,
                files=self._files(db, contents),
                meta={},
                parents=[],
                created_by=self.actor.user_id,
            )
            return version.number

    # --- Attempts -------------------------------------------------------------------------

    def start(self, job_id: str, worker: str, boot: str | None = None) -> str:
        """Place and claim a queued job; return its attempt's id."""
        with self.database.transaction() as db:
            placement = Placement(job_id, self.workers[worker])
            attempt = jobs.place(db, placement, now(db))
            assert attempt is not None
            found = attempt.id
        with self.database.transaction() as db:
            held = db.get_one(Worker, self.workers[worker])
            assignments.claim(db, held, found, Claim(boot_id=boot or f"boot-{worker}"))
        return found

    def report(self, attempt_id: str, *events: Event, log: str = "", memory: float = 0) -> None:
        """Send a batch as the worker that holds the attempt."""
        self.seq[attempt_id] = self.seq.get(attempt_id, 0) + 1
        with self.database.transaction() as db:
            attempt = db.get_one(Attempt, attempt_id)
            worker = db.get_one(Worker, attempt.worker_id)
            chunk = (LogChunk(offset=attempt.log_bytes, text=log),) if log else ()
            ingest.report(
                db,
                worker,
                attempt_id,
                Report(
                    boot_id=str(attempt.boot_id),
                    seq=self.seq[attempt_id],
                    events=events,
                    log=chunk,
                    memory_bytes=int(memory * GIB) or None,
                    peak_memory_bytes=int(memory * 1.1 * GIB) or None,
                ),
            )

    def train(self, attempt_id: str, first: int, last: int, total: int) -> None:
        """Report training from step to step, as the engine does."""
        rng = random.Random(first)
        self.report(attempt_id, PhaseEvent(name="training", time=0.0))
        events: list[Event] = []
        lines = []
        for step in range(first, last + 1, 10):
            base = 0.62 + 2.3 * math.exp(-step / 180)
            loss = base + rng.gauss(0, 0.05)
            values = {
                "train_loss": loss,
                "learning_rate": 1e-4 * min(1.0, step / 50),
                "tokens_per_second": 2480 + rng.gauss(0, 45),
                "peak_memory_bytes": (9.1 + 0.9 * (step > 60)) * GIB,
            }
            lines.append(_reported(step, values))
            if step % 50 == 0:
                values["val_loss"] = base + 0.06 + max(0, step - 500) * 0.0004
                lines.append(f"Iter {step}: Val loss {values['val_loss']:.3f}, Val took 3.214s")
            events.append(MetricsEvent(step=step, values=values, time=float(step)))
        events.append(ProgressEvent(done=last, total=total, unit="steps", time=0.0))
        self.report(attempt_id, *events, log="\n".join(lines) + "\n", memory=9.2)

    def checkpoint(self, attempt_id: str, step: int) -> None:
        with self.database.transaction() as db:
            attempt = db.get_one(Attempt, attempt_id)
            files = self._files(db, {"adapters.safetensors": f"adapter at {step}".encode()})
            message = CheckpointPublished(
                boot_id=str(attempt.boot_id), step=step, files=tuple(files)
            )
            ingest.checkpoint(db, db.get_one(Worker, attempt.worker_id), attempt_id, message)

    def finish(
        self,
        attempt_id: str,
        role: str,
        kind: ArtifactKind,
        contents: dict[str, bytes],
        **meta: object,
    ) -> None:
        with self.database.transaction() as db:
            output = OutputManifest(
                role=role, kind=kind, files=tuple(self._files(db, contents)), meta=meta
            )
        self._end(attempt_id, state="succeeded", outputs=(output,))

    def failed(
        self, attempt_id: str, reason: Reason, message: str, hint: str | None = None
    ) -> None:
        """End an attempt as its worker does after a failure."""
        error = Failure(code=reason, message=message, hint=hint or None)
        self._end(attempt_id, state="failed", reason=reason, error=error)

    def stopped(self, attempt_id: str, reason: Reason) -> None:
        """End an attempt as its worker does on order, after a checkpoint."""
        self._end(attempt_id, state="cancelled", reason=reason)

    def _end(self, attempt_id: str, **content: Any) -> None:
        with self.database.reading() as db:
            attempt = db.get_one(Attempt, attempt_id)
        message = Finish(boot_id=str(attempt.boot_id), **content)
        worker = attempt.worker_id
        assignments.prepare(self.database, self.blobs, worker, attempt_id, message)
        with self.database.transaction() as db:
            assignments.finish(db, self.blobs, db.get_one(Worker, worker), attempt_id, message)

    def submit(self, request: dict[str, object]) -> str:
        with self.database.transaction() as db:
            return submit.submit(db, self.actor, parse(JobRequest, request)).id

    def pipeline(self, name: str, output: str, iters: int) -> list[str]:
        """Submit train → eval → fuse → quantize → export."""
        model, data = "team/qwen2.5-0.5b", "team/wikisql"
        steps = [
            {
                "step": "train",
                "name": output,
                "spec": {
                    "kind": "train",
                    "model": model,
                    "data": data,
                    "iters": iters,
                    "learning_rate": 1e-4,
                    "save_every": 100,
                    "lora_parameters": {"rank": 16},
                },
            },
            {
                "step": "eval",
                "spec": {
                    "kind": "eval",
                    "model": model,
                    "data": data,
                    "adapter": "step:train",
                    "sweep": True,
                },
            },
            {"step": "fuse", "spec": {"kind": "fuse", "model": model, "adapter": "step:train"}},
            {"step": "quantize", "spec": {"kind": "quantize", "model": "step:fuse", "q_bits": 4}},
            {"step": "export", "spec": {"kind": "export", "model": "step:fuse", "type": "q8_0"}},
        ]
        with self.database.transaction() as db:
            made = submit.submit_pipeline(
                db, self.actor, parse(PipelineRequest, {"note": name, "steps": steps})
            )
            return [job.id for job in made]

    # --- Time -----------------------------------------------------------------------------

    def age(self, job_id: str, back: timedelta, length: timedelta) -> None:
        """Move a job's moments into the past; what ended it, ``length`` after it began."""
        with self.database.transaction() as db:
            job = db.get_one(Job, job_id)
            self._shift(job, back, length)
            for attempt in job.attempts:
                self._shift(attempt, back, length)
                self.spread_metrics(db, job_id, attempt.id, length, back)
            events = list(
                db.scalars(select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.id))
            )
            for index, event in enumerate(events):
                event.created_at -= back - length * index / max(1, len(events) - 1)
            for version in job.outputs:
                version.created_at -= back - length
                version.artifact.updated_at = version.created_at

    def _shift(self, row: Job | Attempt, back: timedelta, length: timedelta) -> None:
        for column in row.__table__.columns:
            moment = getattr(row, column.key)
            if isinstance(moment, datetime) and column.key != "lease_expires_at":
                setattr(
                    row,
                    column.key,
                    moment - back + (length if column.key == "finished_at" else timedelta()),
                )

    def spread_metrics(
        self,
        db: Session,
        job_id: str,
        attempt: str,
        length: timedelta,
        back: timedelta | None = None,
    ) -> None:
        points = list(
            db.scalars(
                select(Metric)
                .where(Metric.job_id == job_id, Metric.attempt_id == attempt)
                .order_by(Metric.step)
            )
        )
        for index, point in enumerate(points):
            point.created_at -= (length if back is None else back) - length * index / max(
                1, len(points) - 1
            )


def _reported(step: int, values: dict[str, float]) -> str:
    """Return the line that mlx-lm prints."""
    return (
        f"Iter {step}: Train loss {values['train_loss']:.3f},"
        f" Learning Rate {values['learning_rate']:.3e}, It/sec 4.100,"
        f" Tokens/sec {values['tokens_per_second']:.3f},"
        f" Peak mem {values['peak_memory_bytes'] / 1e9:.3f} GB"
    )


def _tokenizer(text: str) -> bytes:
    """Train a small tokenizer, as a real model brings one."""
    tokenizer = Tokenizer(BPE(unk_token=None))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=600, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    written: str = tokenizer.to_str()
    return written.encode()
