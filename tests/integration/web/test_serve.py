"""The server itself: gunicorn, started, asked and stopped."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from scheduler.db import migrate

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


def test_starts_answers_stays_small_and_stops(
    server: tuple[subprocess.Popen[bytes], str],
) -> None:
    process, url = server
    deadline = time.monotonic() + 30
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
    web = psutil.Process(process.pid)
    family = [web, *web.children(recursive=True)]
    assert sum(member.memory_info().rss for member in family) < IDLE_BYTES
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert not [member for member in family if member.is_running()]
