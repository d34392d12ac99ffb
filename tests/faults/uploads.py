"""A large upload with what it is made of in view: a relay that counts each request's body.

The relay speaks just enough HTTP to know which request a byte belongs to, and stops the line at a
byte that was asked for, so that a kill comes in the middle of a part and not by luck.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from itsdangerous import URLSafeTimedSerializer

from espalier.cli.common import AWAY
from scheduler import access
from scheduler.db import Database, migrate
from scheduler.store.base import blob_key
from tests.faults.stacks import Server, kept_port

#: Seconds; reached only when nothing comes any more.
PATIENCE = 600.0
MIB = 1 << 20
_CHUNK = 1 << 16
#: The counts of one begin(), and which of them a request's is.
Mine = tuple[list[tuple[str, int]], int]


class Relay:
    """Forwards requests to ``port`` and counts what clients send. A context manager."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._changed = threading.Condition()
        self._sent: list[tuple[str, int]] = []  # request line, bytes of its body so far
        self._total = 0
        self._hold_at: int | None = None
        self._passed = self._answered = 0  # requests that went through whole, and answers
        self._forgotten = 0  # times that what came before counts no more

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        self.release()

    # --- What the test sees ---------------------------------------------------------------

    def begin(self, hold_at: int | None = None) -> None:
        """Count afresh; stop the line when clients have sent ``hold_at`` bytes of bodies."""
        with self._changed:
            self._sent, self._total, self._hold_at = [], 0, hold_at
            self._changed.notify_all()

    def held(
        self, process: subprocess.Popen[bytes], start: Callable[[], subprocess.Popen[bytes]]
    ) -> subprocess.Popen[bytes]:
        """Wait until the line is stopped; return the client, begun again if it had given up."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with self._changed:
                if self._changed.wait_for(self._is_held, 0.2):
                    return process
                assert time.monotonic() < deadline, f"only {self._total} bytes were sent"
            if process.poll() is not None:
                assert process.returncode != 0, "the client has ended before it was killed"
                process = start()

    def settle(self) -> None:
        """Wait until what went through whole has been answered: whose answer is lost, is sent

        again, and nobody could know better.
        """
        with self._changed:
            assert self._changed.wait_for(lambda: self._answered >= self._passed, PATIENCE)

    def forget(self) -> None:
        """Wait for no answer of a side that is dead."""
        with self._changed:
            self._passed = self._answered = 0
            self._forgotten += 1

    def release(self) -> None:
        with self._changed:
            self._hold_at = None
            self._changed.notify_all()

    def parts(self) -> dict[tuple[str, int], int]:
        """Return the bytes sent of each part, native or LFS: (upload, number) → bytes."""
        found: dict[tuple[str, int], int] = {}
        with self._changed:
            for line, sent in self._sent:
                verb, path = line.split(" ")[:2]
                part = _part(path) if verb == "PUT" else None
                if part is not None:
                    found[part] = found.get(part, 0) + sent
        return found

    # --- Passing --------------------------------------------------------------------------

    def _is_held(self) -> bool:
        return self._hold_at is not None and self._total >= self._hold_at

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near:
            far = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
            with self._changed:
                mine = self._forgotten
            with far:
                threading.Thread(target=self._answer, args=(far, near, mine), daemon=True).start()
                with near.makefile("rb") as reader:
                    while self._request(reader, far):
                        with self._changed:  # what a dead client left may still go through
                            self._passed += mine == self._forgotten

    def _answer(self, far: socket.socket, near: socket.socket, mine: int) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(_CHUNK):
                near.sendall(data)
                with self._changed:
                    if mine == self._forgotten:
                        self._answered += data.count(b"HTTP/1.1 ")
                    self._changed.notify_all()
        with contextlib.suppress(OSError):  # an early answer is read before its end is felt
            near.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)

    def _request(self, reader: BinaryIO, far: socket.socket) -> bool:
        """Pass one request on; return whether another may follow."""
        head = [reader.readline()]
        while head[-1] not in (b"\r\n", b""):
            head.append(reader.readline())
        if not head[-1]:
            return False
        far.sendall(b"".join(head))
        fields = dict(line.lower().split(b":", 1) for line in head[1:-1])
        with self._changed:
            self._sent.append((head[0].decode("latin-1"), 0))
            mine = (self._sent, len(self._sent) - 1)
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            while size := self._chunk(reader, far, mine):
                assert size
            return True
        return self._pass(reader, far, int(fields.get(b"content-length", b"0")), mine)

    def _chunk(self, reader: BinaryIO, far: socket.socket, mine: Mine) -> int:
        line = reader.readline()
        size = int(line.split(b";")[0] or b"0", 16)
        far.sendall(line)
        self._pass(reader, far, size, mine)
        far.sendall(reader.readline())
        return size

    def _pass(self, reader: BinaryIO, far: socket.socket, left: int, mine: Mine) -> bool:
        while left:
            data = reader.read(min(_CHUNK, left))
            if not data:
                return False
            left -= len(data)
            self._count(len(data), mine)
            far.sendall(data)
        return True

    def _count(self, size: int, mine: Mine) -> None:
        sent, index = mine
        with self._changed:
            self._total += size
            if sent is self._sent:  # else it belongs to a count that is over
                line, before = self._sent[index]
                self._sent[index] = (line, before + size)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_held())


def _part(path: str) -> tuple[str, int] | None:
    if native := re.fullmatch(r"/api/v1/uploads/(\w+)/parts/(\d+)", path):
        return native[1], int(native[2])
    if lfs := re.fullmatch(r"/uploads/lfs/([^/]+)", path):
        # What is signed says which part it is; whether it is ours the server has judged.
        _, (upload_id, _owner, number) = URLSafeTimedSerializer("").loads_unsafe(lfs[1])
        return upload_id, number
    return None


@dataclass
class Hub:
    """A web process that may be killed and started again, and the way to it."""

    server: Server
    home: Path
    port: int
    token: str

    def finished(self) -> dict[tuple[str, int], int]:
        """Return the parts that the database says are there: (upload, number) → bytes."""
        with closing(sqlite3.connect(self.home / "espalier.db", timeout=PATIENCE)) as connection:
            rows = connection.execute("SELECT upload_id, number, size FROM upload_parts")
            return {(upload_id, number): size for upload_id, number, size in rows}

    def check(self, folder: Path) -> None:
        """Assert that the weights are in the store, byte by byte."""
        with (folder / "model.safetensors").open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        stored = self.home / "store" / blob_key(sha256)
        with stored.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == sha256
        assert not self.finished(), "nothing of an upload stays"

    def client(self, url: str, *argv: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a client that knows the hub as ``url``."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")}
        environment |= {"ESPALIER_URL": url, "ESPALIER_TOKEN": self.token, **more}
        return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def hub(home: Path, settings: Mapping[str, str]) -> Iterator[Hub]:
    """Start ``python -m web`` on SQLite and a directory store; ``team`` is there."""
    home.mkdir(parents=True)
    url = f"sqlite:///{home / 'espalier.db'}"
    migrate(url)
    database = Database(url)
    with database.transaction() as session:
        admin = access.ensure_first_run(session)
        token = access.mint(session, "personal", user=admin)
    database.close()
    port = kept_port()
    argv = (sys.executable, "-m", "web", "--port", str(port))
    environment = {"ESPALIER_DATA_DIR": str(home), "ESPALIER_DATABASE_URL": url, **settings}

    def answers() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60.0).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    server = Server("web", argv, answers, home / "web.log", environment)
    server.start()
    try:
        yield Hub(server, home, port, token)
    finally:
        server.stop()


def model(folder: Path, size: int) -> Path:
    """Write a model folder whose weights are ``size`` bytes that nobody has."""
    folder.mkdir(parents=True)
    room = size - 8 - 128
    header = {"w": {"dtype": "U8", "shape": [room], "data_offsets": [0, room]}}
    with (folder / "model.safetensors").open("wb") as file:
        file.write((128).to_bytes(8, "little") + json.dumps(header).encode().ljust(128))
        left = room
        while left:
            block = secrets.token_bytes(min(left, MIB))
            file.write(block)
            left -= len(block)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


# --- The walk -----------------------------------------------------------------------------

ESPALIER = str(Path(sys.executable).with_name("espalier"))


def push(stack: Hub, relay: Relay, folder: Path) -> subprocess.Popen[bytes]:
    """Start the native client."""
    return stack.client(relay.url, ESPALIER, "model", "push", str(folder), "team/big")


@dataclass
class Walk:
    """What a walk saw: of each leg the bytes sent of parts that were finished when it began.

    ``spared`` are the bytes of those parts that a leg could go without, the last leg's.
    """

    repeated: list[int]
    spared: int = 0


def interrupted(
    stack: Hub,
    relay: Relay,
    side: str,
    start: Callable[[], subprocess.Popen[bytes]],
    points: Sequence[float],
    size: int,
) -> Walk:
    """Send ``size`` bytes, and kill a side each time when about such a share is there."""
    walk, client = Walk([]), start()
    there: dict[tuple[str, int], int] = {}
    relay.begin(int(points[0] * size))
    for following in (*points[1:], None):
        client = relay.held(client, start)
        relay.settle()
        walk.repeated.append(_again(relay, there))
        if side == "client":
            client.kill()
            client.wait(PATIENCE)
        else:
            stack.server.kill()
        relay.forget()
        there = stack.finished()
        room = None if following is None else int(following * size) - sum(there.values())
        relay.begin(None if room is None else max(MIB, room))
        if side == "server":
            stack.server.start()
        else:
            client = start()
    walk.spared = sum(there.values())
    while client.wait(PATIENCE) != 0:  # it may have given the dead server up
        assert client.returncode == AWAY or side == "server", client.returncode
        client = start()
    walk.repeated.append(_again(relay, there))
    return walk


def _again(relay: Relay, there: Mapping[tuple[str, int], int]) -> int:
    return sum(sent for part, sent in relay.parts().items() if part in there)
