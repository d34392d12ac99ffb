"""A team's afternoon, made by the same functions that workers and people use.

Only the moments are moved afterwards, so that the jobs lie hours apart as they would.
"""

import json
import math
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select

from espalier.messages import (
    MetricsEvent,
    NoticeEvent,
    PhaseEvent,
    ProofEvent,
    TableEvent,
)
from espalier.states import ArtifactKind, Reason
from scheduler import access
from scheduler.catalog import aliases, gates, registry
from scheduler.db import now
from scheduler.lifecycle import jobs, requests
from scheduler.models import Attempt, Job, Worker
from tests.browser import things
from tests.browser.stage import GIB, Stage

MACS = (
    ("studio-1", "Apple M3 Ultra", 512, 474),
    ("studio-2", "Apple M2 Ultra", 192, 172),
    ("mini-1", "Apple M4 Pro", 48, 40),
)


@dataclass(frozen=True)
class Team:
    """What the seeded database holds that tests ask for by name."""

    login: str
    succeeded: str
    running: str
    failed: str
    queued: str
    evaluated: str
    quantized: str
    worker: str
    paused: str
    laddered: str
    preempted: str
    set_aside: str


class Seed(Stage):
    """The afternoon of a team: a finished pipeline, one that runs, failures, and what waits."""

    def make(self) -> Team:
        """Fill the database and return the team."""
        with self.database.transaction() as db:
            admin = access.ensure_first_run(db)
            self.actor = access.actor_for(admin)
            login = access.mint(db, "login", user=admin, expires_in=access.LOGIN_LIFETIME)
        for mac in MACS:
            self.join(*mac)
        self.base_artifacts()
        succeeded, evaluated, quantized = self._finished_pipeline()
        failed = self._failed()
        self._cancelled()
        aside, paused, laddered = self._set_aside(), self._paused(), self._laddered()
        running = self._running_pipeline()
        held = paused, laddered, self._preempted(running), aside
        queued = self._queued()
        with self.database.transaction() as db:
            away = db.get_one(Worker, self.workers["mini-1"])
            assert away.seen_at
            away.seen_at -= timedelta(hours=2)
            newest = db.scalars(select(Worker).where(Worker.id != away.id))
            for worker in newest:
                worker.seen_at = now(db)
        return Team(
            login, succeeded, running, failed, queued, evaluated, quantized, "studio-2", *held
        )

    def _finished_pipeline(self) -> tuple[str, str, str]:
        train, evaluate, fuse, quantize, export = self.pipeline("sql assistant", "sql-lora", 800)
        attempt = self.start(train, "studio-1")
        self.report(
            attempt,
            PhaseEvent(name="loading", time=0.0),
            log="Loading pretrained model\nTrainable parameters: 0.594% (2.933M/494.033M)\n",
        )
        self.train(attempt, 10, 800, 800)
        for step in (100, 200, 300, 400, 500, 600, 700, 800):
            self.checkpoint(attempt, step)
        self.report(
            attempt,
            NoticeEvent(
                message="3 rows are longer than 2048 tokens and were cut.",
                level="warning",
                time=0.0,
            ),
        )
        self.finish(
            attempt,
            "adapter",
            ArtifactKind.ADAPTER,
            {"adapters.safetensors": things.adapter(), "adapter_config.json": b'{"rank": 16}'},
            iters=800,
            best_step=500,
        )
        attempt = self.start(evaluate, "studio-2")
        rows = tuple(
            (
                step,
                0.70 + abs(step - 500) * 0.0002,
                0.67 + abs(step - 500) * 0.0002,
                0.73 + abs(step - 500) * 0.0002,
                math.exp(0.70 + abs(step - 500) * 0.0002),
                step == 500,
                "overfitting" if step > 500 else "",
            )
            for step in range(100, 900, 100)
        )
        self.report(
            attempt,
            MetricsEvent(
                step=0,
                values={
                    "test_loss": 0.7012,
                    "perplexity": 2.0162,
                    "base_perplexity": 9.814,
                    "best_step": 500,
                    "tokens": 48213,
                },
                time=0.0,
            ),
            TableEvent(
                name="checkpoints",
                columns=(
                    "step",
                    "test_loss",
                    "test_loss_low",
                    "test_loss_high",
                    "perplexity",
                    "best",
                    "remark",
                ),
                rows=rows,
                time=0.0,
            ),
            ProofEvent(
                name="perplexity_below_base",
                value=2.0162,
                limit=9.814,
                ok=True,
                detail="48213 tokens of the test split",
                time=0.0,
            ),
        )
        self.finish(
            attempt,
            "report",
            ArtifactKind.REPORT,
            {"report.json": b"{}", "samples.jsonl": things.samples(60)},
            samples={"file": "samples.jsonl", "rows": 60},
        )
        attempt = self.start(fuse, "studio-1")
        self.report(
            attempt,
            ProofEvent(
                name="max_kl",
                value=3.1e-06,
                limit=0.01,
                ok=True,
                detail="base + adapter against fused, on held-out text",
                time=0.0,
            ),
            ProofEvent(name="perplexity_difference", value=0.00002, limit=0.01, ok=True, time=0.0),
        )
        self.finish(
            attempt,
            "model",
            ArtifactKind.MODEL,
            {"config.json": b"{}", "model.safetensors": things.weights(5)},
        )
        attempt = self.start(quantize, "studio-1")
        self.report(
            attempt,
            TableEvent(
                name="quantize",
                columns=(
                    "variant",
                    "bits_per_weight",
                    "size_bytes",
                    "perplexity",
                    "prompt_tokens_per_second",
                    "tokens_per_second",
                    "peak_memory_bytes",
                ),
                rows=(
                    ("original", 16.0, 988 << 20, 2.0162, 9120.4, 142.3, int(1.4 * GIB)),
                    ("4-bit, group 64", 4.501, 278 << 20, 2.1038, 7912.8, 391.8, int(0.6 * GIB)),
                ),
                time=0.0,
            ),
            ProofEvent(name="perplexity_increase", value=0.0434, limit=0.15, ok=True, time=0.0),
        )
        self.finish(
            attempt,
            "model",
            ArtifactKind.MODEL,
            {"config.json": b'{"quantization": {}}', "model.safetensors": things.weights(2)},
        )
        attempt = self.start(export, "studio-2")
        self.report(
            attempt,
            ProofEvent(
                name="token_match",
                value=1.0,
                limit=0.95,
                ok=True,
                detail="greedy tokens of llama.cpp against MLX, 8 prompts",
                time=0.0,
            ),
        )
        self.finish(attempt, "gguf", ArtifactKind.GGUF, {"model-q8_0.gguf": things.gguf()})
        with self.database.transaction() as db:
            artifact = registry.find_artifact(db, "team", "sql-lora")
            aliases.set_alias(db, self.actor, artifact, "best", artifact.versions[0])
        self._served()
        for job, minutes in (
            (train, 300),
            (evaluate, 262),
            (fuse, 258),
            (quantize, 255),
            (export, 251),
        ):
            self.age(job, timedelta(minutes=minutes), timedelta(minutes=36 if job == train else 3))
        return train, evaluate, quantize

    def _served(self) -> None:
        """Three versions that people pushed, and the aliases that wander over them."""
        for seed in (1, 2, 3):
            config = {"model_type": "qwen2", "rope_theta": 10_000.0 * seed}
            contents = {
                "README.md": f"# SQL, tiny\n\nThe try number {seed}.\n".encode(),
                "config.json": json.dumps(config).encode(),
                "model.safetensors": things.weights(2, seed),
            }
            number = self.publish("sql-tiny", ArtifactKind.MODEL, contents)
            with self.database.transaction() as db:
                artifact = registry.find_artifact(db, "team", "sql-tiny")
                version = artifact.versions[0]
                aliases.set_alias(db, self.actor, artifact, "staging", version)
                if number != 2:
                    aliases.set_alias(db, self.actor, artifact, "production", version)
                data = registry.find_artifact(db, "team", "wikisql").versions[0]
                if number == 3:
                    gates.set_gate(
                        db, self.actor, artifact, "production",
                        data=registry.label(data), metric="perplexity", min_delta=0.05,
                    )  # fmt: skip

    def _running_pipeline(self) -> str:
        train = self.pipeline("sql assistant, rank 16", "sql-lora-r16", 1000)[0]
        first = self.start(train, "mini-1")
        self.report(first, PhaseEvent(name="loading", time=0.0), log="Loading pretrained model\n")
        self.train(first, 10, 300, 1000)
        self.checkpoint(first, 300)
        with self.database.transaction() as db:
            attempt = db.get_one(Attempt, first)
            jobs.lose(db, attempt, Reason.LEASE_LOST, "mini-1 has not been heard of for 180 s.")
        self.age(train, timedelta(minutes=24), timedelta(minutes=9))
        second = self.start(train, "studio-1")
        self.train(second, 310, 620, 1000)
        self.checkpoint(second, 600)
        with self.database.transaction() as db:
            attempt = db.get_one(Attempt, second)
            attempt.placed_at -= timedelta(minutes=6)
            assert attempt.claimed_at
            attempt.claimed_at -= timedelta(minutes=6)
            self.spread_metrics(db, train, second, timedelta(minutes=6))
        return train

    def _failed(self) -> str:
        job = self.submit(
            {
                "spec": {
                    "kind": "train",
                    "model": "team/qwen2.5-0.5b",
                    "data": "team/wikisql",
                    "iters": 400,
                    "learning_rate": 0.5,
                },
                "name": "sql-hot",
                "note": "how hot can it go?",
            }
        )
        attempt = self.start(job, "studio-2")
        self.train(attempt, 10, 40, 400)
        self.failed(
            attempt,
            Reason.NAN_LOSS,
            "The training loss became NaN at step 47.",
            "Lower the learning rate (it was 0.5), or raise the warm-up.",
        )
        self.age(job, timedelta(minutes=130), timedelta(minutes=2))
        return job

    def _cancelled(self) -> None:
        job = self.submit(
            {
                "spec": {
                    "kind": "eval",
                    "model": "team/qwen2.5-0.5b",
                    "data": "team/wikisql",
                    "split": "valid",
                }
            }
        )
        with self.database.transaction() as db:
            requests.cancel(db, self.actor, db.get_one(Job, job))
        self.age(job, timedelta(minutes=95), timedelta(minutes=1))

    def _paused(self) -> str:
        job = self._train("sql-long", iters=2000, note="overnight")
        attempt = self.start(job, "studio-2")
        self.train(attempt, 10, 240, 2000)
        self.checkpoint(attempt, 200)
        with self.database.transaction() as db:
            requests.pause(db, self.actor, db.get_one(Job, job))
        self.checkpoint(attempt, 240)
        self.stopped(attempt, Reason.PAUSED)
        self.age(job, timedelta(minutes=48), timedelta(minutes=6))
        return job

    def _laddered(self) -> str:
        """Out of memory twice on the small Mac; then it runs there, with less held at once."""
        job = self._train("sql-wide", iters=600, batch_size=4, max_seq_length=4096)
        for step in (40, 80):
            attempt = self.start(job, "mini-1")
            self.train(attempt, max(10, step - 30), step, 600)
            self.checkpoint(attempt, step)
            self.failed(
                attempt,
                Reason.OUT_OF_MEMORY,
                "Metal could not allocate 5.1 GiB more: the limit is 40.0 GiB.",
            )
        self.age(job, timedelta(minutes=40), timedelta(minutes=5))
        with self.database.transaction() as db:
            db.get_one(Job, job).not_before = None
        attempt = self.start(job, "studio-2")
        self.train(attempt, 90, 260, 600)
        return job

    def _preempted(self, urgent: str) -> str:
        job = self._train("sql-draft", iters=500, priority=-5)
        attempt = self.start(job, "studio-1")
        self.train(attempt, 10, 120, 500)
        self.checkpoint(attempt, 120)
        with self.database.transaction() as db:
            jobs.preempt(db, db.get_one(Attempt, attempt), db.get_one(Job, urgent), now(db))
        self.stopped(attempt, Reason.PREEMPTED)
        self.age(job, timedelta(minutes=12), timedelta(minutes=4))
        return job

    def _set_aside(self) -> str:
        job = self._train("sql-cursed", iters=300)
        ends = (
            (Reason.KILLED, "The job's process was ended by SIGKILL."),
            (Reason.METAL_ABORT, "The GPU hung or failed in the job's work."),
            (Reason.HUNG, "no progress for 120 s in its phase training, and no work either"),
        )
        for number in range(5):
            attempt = self.start(job, MACS[number % 3][0])
            self.train(attempt, 10, 30, 300)
            self.failed(attempt, *ends[number % 3])
        self.age(job, timedelta(minutes=75), timedelta(minutes=20))
        return job

    def _train(self, name: str, priority: int = 0, note: str = "", **spec: object) -> str:
        wanted = {"kind": "train", "model": "team/qwen2.5-0.5b", "data": "team/wikisql", **spec}
        return self.submit({"spec": wanted, "name": name, "priority": priority, "note": note})

    def _queued(self) -> str:
        job = self.submit(
            {
                "spec": {
                    "kind": "train",
                    "model": "team/qwen2.5-0.5b",
                    "data": "team/wikisql",
                    "fine_tune_type": "dora",
                },
                "name": "sql-dora",
                "priority": 5,
            }
        )
        self.age(job, timedelta(minutes=3), timedelta())
        return job
