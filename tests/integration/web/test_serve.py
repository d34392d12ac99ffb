"""The server itself: gunicorn, started, asked and stopped."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import text

from scheduler import leader
from scheduler.db import Database, migrate
from scheduler.models import Presence
from web.beat import Beat

#: Bytes that the web's two processes may hold together when idle.
IDLE_BYTES = 260 << 20


@pytest.fixture
def server(tmp_path: Path, broker_url: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A running server and its URL, on an empty migrated SQLite."""
    migrate(f"sqlite:///{tmp_path / 'espalier.db'}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "ESPALIER_DATA_DIR": str(tmp_path),
        "ESPALIER_BROKER_URL": broker_url,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "web", "--port", str(port)],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


def beaten(directory: Path) -> bool:
    """Whether the scheduler would see that the door is open."""
    with closing(sqlite3.connect(directory / "espalier.db")) as connection:
        found = connection.execute("SELECT holder FROM presence WHERE name = 'web'").fetchone()
    return found is not None


def test_starts_answers_stays_small_and_stops(
    server: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    process, url = server
    deadline = time.monotonic() + 120
    while True:
        try:
            # The port is open before the app is loaded, which a busy machine takes its time for.
            ready = httpx.get(f"{url}/readyz", timeout=60)
            break
        except httpx.ConnectError:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert ready.json() == {
        "status": "ok",
        "database": "ok",
        "store": "ok",
        "broker": "ok",
    }
    assert httpx.get(f"{url}/login", timeout=60).status_code == 200
    assert httpx.get(f"{url}/api/v1/jobs", timeout=60).status_code == 401
    until(lambda: beaten(tmp_path))
    web = psutil.Process(process.pid)
    family = [web, *web.children(recursive=True)]
    assert sum(member.memory_info().rss for member in family) < IDLE_BYTES
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    until(lambda: all(ended(member) for member in family))


def ended(process: psutil.Process) -> bool:
    """Whether it is over; one whose parent is gone waits for the system to take notice."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_beat_outlives_the_databases_absence(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so once, beats on, and is heard when the database is back."""
    beat = Beat(database, lease_seconds=0.2)
    with database.transaction() as session:
        session.execute(text("ALTER TABLE presence RENAME TO gone"))
    beat.start()
    try:
        until(lambda: "does not take a beat" in caplog.text)
        with database.transaction() as session:
            session.execute(text("ALTER TABLE gone RENAME TO presence"))
        until(lambda: door(database) is not None)
    finally:
        beat.stop()
    assert caplog.text.count("does not take a beat") == 1
    found = door(database)
    assert found is not None
    assert found.holder.endswith(f":{os.getpid()}")
    lasts = (found.expires_at - found.seen_at).total_seconds()
    assert 0 < lasts < 0.2, "a door that is shut for a lease is seen to be"


def door(database: Database) -> Presence | None:
    with database.reading() as session:
        return session.get(Presence, leader.WEB)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
