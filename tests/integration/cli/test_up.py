"""``espalier up`` in a process of its own: one stack a directory, and nothing left behind."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from espalier.client import Client
from espalier.processes import is_alive

PATIENCE = 120.0


@dataclass
class Up:
    process: subprocess.Popen[str]
    ready: dict[str, Any]

    def everything(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def _command(data_dir: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "espalier.cli", "up", "--data-dir", str(data_dir), *flags]


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")}


@contextmanager
def _up(data_dir: Path, *flags: str) -> Iterator[Up]:
    process = subprocess.Popen(
        _command(data_dir, "--json", *flags),
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"it ended with {process.wait()}"
        yield Up(process, json.loads(line))
    finally:
        process.terminate()
        process.wait(PATIENCE)
        process.stdout.close()


def _refused(data_dir: Path, *flags: str) -> str:
    done = subprocess.run(
        _command(data_dir, *flags),
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def _recorded(data_dir: Path) -> dict[str, int]:
    rows = json.loads((data_dir / "run" / "pids.json").read_text())
    return {row["role"]: row["pid"] for row in rows}


def _valkey(data_dir: Path) -> Redis:
    """Return a client of the embedded broker, patient while that is started."""
    lines = (data_dir / "valkey" / "valkey.conf").read_text().splitlines()
    said = dict(line.split(" ", 1) for line in lines)
    retry = Retry(ConstantBackoff(0.2), retries=int(PATIENCE / 0.2))
    return Redis(port=int(said["port"]), password=said["requirepass"], retry=retry)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _gone(processes: list[psutil.Process]) -> None:
    _until(lambda: not any(map(is_alive, processes)))


def _taken_port() -> socket.socket:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with _taken_port() as taken:
        port = taken.getsockname()[1]
        assert f"Port {port}" in _refused(tmp_path / "data", "--port", str(port))
    assert not (tmp_path / "data").exists()


def test_a_stack_comes_back_from_anything_and_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "my data é%20?#"
    with _up(data) as first:
        ready = first.ready
        assert list(ready["pids"]) == ["valkey", "web", "scheduler", "worker-1"]
        assert ready["data_dir"] == str(data)
        assert (data / "espalier.db").is_file()
        assert (data / "store").is_dir()
        for secret in ("token", "valkey/password", "valkey/valkey.conf"):
            assert stat.S_IMODE((data / secret).stat().st_mode) == 0o600
        arguments = [" ".join(p.cmdline()) for p in first.everything()]
        password = (data / "valkey" / "password").read_text()
        assert not [a for a in arguments if password in a or ready["token"] in a]

        assert "is in use by another stack" in _refused(data)

        os.kill(ready["pids"]["web"], signal.SIGKILL)
        _until(lambda: _recorded(data)["web"] != ready["pids"]["web"])
        with Client(ready["url"], ready["token"], backoff=(1.0,) * 60) as client:
            (worker,) = client.get("/api/v1/workers")["workers"]
            assert (worker["name"], worker["state"]) == ("local-1", "idle")

        with _valkey(data) as valkey:
            valkey.set("ticket", "kept")
        os.kill(ready["pids"]["valkey"], signal.SIGKILL)
        _until(lambda: _recorded(data)["valkey"] != ready["pids"]["valkey"])
        with _valkey(data) as again:
            assert again.get("ticket") == b"kept"

        everything = first.everything()
        first.process.kill()
        first.process.wait()
        _gone(everything)

    with _up(data, "--workers", "0") as second:
        with Client(second.ready["url"], ready["token"]) as client:
            assert client.get("/api/v1/whoami")["projects"] == ["team"]
        everything = second.everything()
        second.process.send_signal(signal.SIGINT)
        assert second.process.wait(PATIENCE) == 0
        assert not any(map(is_alive, everything))


def _postmaster(data_dir: Path) -> psutil.Process | None:
    """Return the embedded PostgreSQL's first process, if it runs."""
    try:
        pid = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        return psutil.Process(pid)
    except (OSError, IndexError, psutil.NoSuchProcess):
        return None


@pytest.mark.slow
def test_up_brings_its_own_postgresql_and_keeps_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with _up(data, "--postgres", "--workers", "0") as stack:
        assert "postgres" in stack.ready["pids"]
        with Client(stack.ready["url"], stack.ready["token"], backoff=(1.0,) * 90) as client:
            assert client.get("/api/v1/whoami")["is_admin"]
            first = _postmaster(data)
            assert first is not None
            first.kill()  # the server
            _until(lambda: _postmaster(data) not in (None, first))
            assert client.get("/api/v1/whoami")["is_admin"]
            holder = _recorded(data)["postgres"]
            os.kill(holder, signal.SIGKILL)  # who holds it
            _until(lambda: _recorded(data)["postgres"] != holder)
            _until((data / "postgres.url").exists)
            assert client.get("/api/v1/whoami")["is_admin"]
        second = _postmaster(data)
        assert second is not None
        everything = [second, *stack.everything()]
        stack.process.terminate()
        assert stack.process.wait(PATIENCE) == 0
        _gone(everything)
    assert not (data / "espalier.db").exists()
