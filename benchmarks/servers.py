"""What the hub's figures are taken from: web processes, a plain file server, a counting wire."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from scheduler import access
from scheduler.db import Database, migrate

#: Seconds for a server to answer on a busy machine.
PATIENCE = 180.0
#: Seconds between two looks at a process's memory.
TICK = 0.05


@dataclass
class Web:
    """A hub of its own: one process family, its address, an admin's token, its log."""

    process: subprocess.Popen[bytes]
    url: str
    token: str
    home: Path
    log: Path

    def family(self) -> list[psutil.Process]:
        leader = psutil.Process(self.process.pid)
        return [leader, *leader.children(recursive=True)]

    def resident(self) -> int:
        """Bytes, of all its processes; one that ended meanwhile has none."""
        total = 0
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total


@contextlib.contextmanager
def web(home: Path, settings: Mapping[str, str] | None = None, url: str = "") -> Iterator[Web]:
    """Start ``python -m web`` with a store and a database in ``home`` (or the database ``url``)."""
    home.mkdir(parents=True, exist_ok=True)
    database_url = url or f"sqlite:///{home / 'espalier.db'}"
    migrate(database_url)
    database = Database(database_url)
    with database.transaction() as session:
        user = access.ensure_first_run(session)
        access.project_for(session, access.actor_for(user), "bench", create=True)
        token = access.mint(session, "personal", user=user)
    database.close()
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")}
    environment |= {"ESPALIER_DATA_DIR": str(home), "ESPALIER_DATABASE_URL": database_url}
    command = [sys.executable, "-m", "web", "--port", str(port), "--access-log"]
    log = home / "web.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment | dict(settings or {}), stdout=out, stderr=out
        )
    try:
        _await(process, f"http://127.0.0.1:{port}/healthz", log)
        yield Web(process, f"http://127.0.0.1:{port}", token, home, log)
    finally:
        _end(process)


@contextlib.contextmanager
def plain(root: Path) -> Iterator[str]:
    """Start the plain file server; yield its address."""
    root.mkdir(parents=True, exist_ok=True)
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.plain", str(root), str(port)])
    try:
        (root / "ready").write_bytes(b"")
        _await(process, f"http://127.0.0.1:{port}/ready", None)
        yield f"http://127.0.0.1:{port}"
    finally:
        _end(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(process: subprocess.Popen[bytes], url: str, log: Path | None) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=PATIENCE).status_code == 200:
                return
        time.sleep(TICK)
    said = log.read_text(errors="replace")[-2000:] if log else ""
    raise SystemExit(f"{url} does not answer ({process.poll()}):\n{said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Wire:
    """A TCP relay that counts the bytes which clients send. Use it as a context manager."""

    def __init__(self, target: str) -> None:
        self._target = ("127.0.0.1", int(target.rsplit(":", 1)[1]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.sent = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "Wire":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                for source, sink, counts in ((near, far, True), (far, near, False)):
                    arguments = (source, sink, counts)
                    threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                self.sent += len(data) if counts else 0
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class Memory:
    """Watches what a hub holds; ``most`` is the highest resident size seen, in bytes."""

    def __init__(self, hub: Web) -> None:
        self._hub = hub
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.first = self.most = hub.resident()

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(TICK):
            self.most = max(self.most, self._hub.resident())
