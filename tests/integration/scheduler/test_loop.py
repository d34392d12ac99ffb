"""The scheduler's process: woken by the bell, publishing to a real broker, stopped by a signal."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from espalier.queue import queue_for
from scheduler.models import Attempt
from scheduler.wake import Waker
from tests.integration.scheduler.stack import Stack


@pytest.fixture
def scheduler(stack: Stack, broker_url: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        **os.environ,
        "ESPALIER_DATABASE_URL": stack.database.url,
        "ESPALIER_BROKER_URL": broker_url,
    }
    process = subprocess.Popen([sys.executable, "-m", "scheduler"], env=environment)
    yield process
    process.kill()
    process.wait()


def _ticket(stack: Stack, broker_url: str, worker_id: str) -> object:
    """Wait for the ticket as a living worker does: heard of all the while."""
    broker = Redis.from_url(broker_url, socket_timeout=None)
    for _ in range(60):
        stack.hear()
        if ticket := broker.blpop([queue_for(worker_id)], timeout=1):
            return ticket
    return None


def test_a_bell_wakes_who_waits(broker_url: str) -> None:
    waker = Waker(broker_url)
    woken: list[bool] = []
    waiting = threading.Thread(target=lambda: woken.append(Waker(broker_url).wait(60)))
    waiting.start()
    waker.wake()
    waiting.join(timeout=20)
    assert woken == [True]


def test_many_bells_are_one_tick(broker_url: str) -> None:
    waker = Waker(broker_url)
    for _ in range(5):
        waker.wake()
    assert waker.wait(1)
    assert not waker.wait(0.05)


def test_a_bell_without_a_broker_is_no_error() -> None:
    waker = Waker("redis://127.0.0.1:1/0")
    waker.wake()
    begun = time.monotonic()
    assert not waker.wait(0.05)
    assert time.monotonic() - begun >= 0.04


def test_a_submitted_job_reaches_its_workers_queue(
    stack: Stack, broker_url: str, scheduler: subprocess.Popen[bytes]
) -> None:
    worker_id = stack.worker()
    stack.submit()
    Waker(broker_url).wake()
    assert _ticket(stack, broker_url, worker_id)
    with stack.database.reading() as session:
        (attempt,) = session.query(Attempt)
        assert (attempt.worker_id, attempt.published) == (worker_id, 1)


def test_sigterm_ends_it_cleanly(scheduler: subprocess.Popen[bytes], broker_url: str) -> None:
    while not _blocked(broker_url):
        assert scheduler.poll() is None
    scheduler.send_signal(signal.SIGTERM)
    assert scheduler.wait(timeout=20) == 0


def _blocked(broker_url: str) -> bool:
    """Whether somebody sleeps on the bell."""
    return int(Redis.from_url(broker_url).info("clients")["blocked_clients"]) > 0
