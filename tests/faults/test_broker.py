"""A broker that forgets a thousand jobs' tickets costs nothing but seconds.

All settings are the defaults but the time between heartbeats: the workers are stopped while their
tickets are sent, and must not be away for that. A ticket that was not claimed is sent again after
30 s, or as soon as the scheduler sees that the broker has forgotten it.
BROKER_JOBS makes it another number of jobs.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis import Redis
from sqlalchemy import func, select

from espalier.client import Client
from scheduler.db import Database, now
from scheduler.models import Attempt, Job
from tests.acceptance.stacks import Up, up
from tests.faults import evidence, stacks

JOBS = int(os.environ.get("BROKER_JOBS", "1000"))
WORKERS, SLOTS = 4, 125
#: What the project promises: seconds from the broker's return to the last claim.
LIMIT = 60.0
OUTAGE = 2.0
PATIENCE = 300.0


def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.1)  # between looks


@contextlib.contextmanager
def _consumer(
    stack: Up, client: Client, home: Path, name: str
) -> Iterator[subprocess.Popen[bytes]]:
    join = client.post("/api/v1/workers/join-tokens")["token"]
    with Client(stack.url, join) as joining:
        token = joining.post("/agent/v1/join", {"name": name})["token"]
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")}
    given = {"URL": stack.url, "TOKEN": token, "DATA_DIR": str(home)}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.consumer", str(SLOTS)],
            env=kept | {f"ESPALIER_{name}": value for name, value in given.items()},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _until(lambda: b"worker: ready" in (home / "log").read_bytes(), f"{name} to be ready")
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def _submit(client: Client) -> None:
    for number in range(JOBS):
        spec = {"kind": "eval", "model": "team/tiny", "data": "team/textsql"}
        client.post("/api/v1/jobs", {"spec": spec, "note": str(number)})


def _drain(client: Client, names: list[str], draining: bool) -> None:
    for name in names:
        client.post(f"/api/v1/workers/{name}/drain", {"draining": draining})


def _tickets(redis: Redis) -> int:
    return sum(int(redis.llen(key)) for key in redis.scan_iter("n:*:jobs"))


def _claimed(database: Database) -> int:
    with database.reading() as session:
        claims = select(func.count(Attempt.job_id.distinct()))
        return session.scalar(claims.where(Attempt.claimed_at.is_not(None))) or 0


def _seconds(database: Database, since: datetime) -> list[float]:
    """Return, for each job, the seconds from ``since`` to its claim, in order."""
    with database.reading() as session:
        claims = select(func.max(Attempt.claimed_at)).group_by(Attempt.job_id)
        return sorted((at - since).total_seconds() for at in session.scalars(claims) if at)


def test_a_wiped_broker_keeps_no_job_waiting(
    tmp_path: Path, tiny_model: Path, dataset: Path
) -> None:
    with TemporaryDirectory(prefix="espalier-pg-", ignore_cleanup_errors=True) as home:
        postgres, url = stacks.postgres(Path(home), tmp_path / "postgres.log")
        broker = stacks.broker(tmp_path / "valkey")
        given = {
            "ESPALIER_DATABASE_URL": url,
            "ESPALIER_BROKER_URL": broker.url,
            "ESPALIER_REPORT_SECONDS": "30",
        }
        with (
            stacks.running(postgres, broker),
            up(tmp_path / "data", workers=0, settings=given) as stack,
            Client(stack.url, stack.token) as client,
        ):
            stack.run("model", "push", str(tiny_model), "team/tiny")
            stack.run("dataset", "push", str(dataset), "team/textsql")
            database = Database(url.replace("postgresql://", "postgresql+psycopg://"))
            with contextlib.ExitStack() as consumers:
                names = [f"mac-{n}" for n in range(WORKERS)]
                processes = [
                    consumers.enter_context(_consumer(stack, client, tmp_path / name, name))
                    for name in names
                ]
                _drain(client, names, True)
                _submit(client)
                assert _claimed(database) == 0
                back, lost = _forget(broker, processes, lambda: _drain(client, names, False))
                _until(lambda: _claimed(database) == JOBS, "all jobs to be claimed")
                # Whoever is killed between claim and finish ends nothing.
                _until(lambda: _ended(database), "all jobs to end")
            _judge(database, back, lost)
            database.close()


def _forget(
    broker: stacks.Broker, workers: list[subprocess.Popen[bytes]], go: Callable[[], None]
) -> tuple[datetime, int]:
    """Kill and wipe the broker while every slot's ticket is in it; return when it was back, and
    how many tickets it took with it. The workers are asleep until then, so that none is taken."""
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    go()
    with Redis.from_url(broker.url) as redis:
        _until(lambda: _tickets(redis) >= min(WORKERS * SLOTS, JOBS), "tickets for every slot")
        lost = _tickets(redis)
    broker.kill()
    broker.wipe()
    for worker in workers:
        worker.send_signal(signal.SIGCONT)
    time.sleep(OUTAGE)  # the outage itself
    broker.start()
    return datetime.now(UTC), lost


def _judge(database: Database, back: datetime, lost: int) -> None:
    seconds = _seconds(database, back)
    with database.reading() as session:
        skew = abs((now(session) - datetime.now(UTC)).total_seconds())
        assert skew < 1.0, "the database's clock is this machine's"
    figures: dict[str, Any] = {
        "jobs": JOBS,
        "tickets lost": lost,
        "first claim s": round(seconds[0], 1),
        "median s": round(statistics.median(seconds), 1),
        "last claim s": round(seconds[-1], 1),
    }
    text = evidence.markdown(tuple(figures), [tuple(map(str, figures.values()))])
    print(f"\nBroker wiped; seconds from its return:\n{text}")
    evidence.save("broker", figures, text)
    assert evidence.unfinished(database) == []
    assert seconds[-1] <= LIMIT


def _ended(database: Database) -> bool:
    with database.reading() as session:
        return session.scalar(select(func.count(Job.id)).where(Job.finished_at.is_(None))) == 0
