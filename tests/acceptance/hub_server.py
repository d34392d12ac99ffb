"""A hub over a socket, and its clients: one process for each version and way of uploading."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update
from werkzeug.serving import make_server

from scheduler.db import migrate
from scheduler.models import ProjectMember
from tests.integration.web.site import Site

#: The oldest huggingface_hub that is still common; `make test` puts it there.
OLDEST = "0.36.2"
HUBS = Path(sys.prefix) / "hubs"
ROOT = Path(__file__).parents[2]


class Counting:
    """A WSGI app in front of the hub that counts what bodies bring, and tells."""

    def __init__(self, app: Flask) -> None:
        self._app = app.wsgi_app
        self.received = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/bytes-received":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [str(self.received).encode()]
        environ["wsgi.input"] = _Body(environ["wsgi.input"], self)
        return self._app(environ, start_response)


class _Body:
    def __init__(self, stream: Any, counting: Counting) -> None:
        self._stream, self._counting = stream, counting

    def read(self, size: int = -1) -> bytes:
        return self._count(self._stream.read(size))

    def readline(self, size: int = -1) -> bytes:
        return self._count(self._stream.readline(size))

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _count(self, data: bytes) -> bytes:
        self._counting.received += len(data)
        return data


@dataclass
class Server:
    """Where the hub answers, and whose tokens it knows: ada owns `team`, eve is not in it."""

    url: str
    token: str
    stranger_token: str


@contextmanager
def serving(directory: Path) -> Iterator[Server]:
    """A hub with small parts, so that uploads have several."""
    migrate(f"sqlite:///{directory}/espalier.db")
    site = Site(f"sqlite:///{directory}/espalier.db", directory, None, part_bytes=5 << 20)
    with site.database.transaction() as session:
        session.execute(update(ProjectMember).values(role="owner"))
    server = make_server("127.0.0.1", 0, Counting(site.app), threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.port}", site.ada.token, site.eve.token)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        site.close()


class Client:
    """A process that runs tests' bodies with its huggingface_hub."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def run(self, module: str, name: str) -> None:
        """Run the body of a test; fail as it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([module, name]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            pytest.fail(f"The client's process ended: {self._log.read_text()[-4000:]}")
        failure = json.loads(answer)
        if failure is not None:
            pytest.fail(failure, pytrace=False)


@contextmanager
def client(server: Server, home: Path, version: str, xet: bool, **more: str) -> Iterator[Client]:
    """A client: ``newest`` is the project's own, ``oldest`` the one that is still common."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    path = [str(ROOT)] if version == "newest" else [str(HUBS / OLDEST), str(ROOT)]
    settings = {
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HOME": str(home),
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": server.token,
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HUB_URL": server.url,
        "HUB_TOKEN": server.token,
        "HUB_STRANGER_TOKEN": server.stranger_token,
        "HUB_LABEL": f"{version}-{'xet' if xet else 'plain'}",
    }
    log = home.with_suffix(".log")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.hub_client"],
            env={**kept, **settings, **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        yield Client(process, log)
        process.stdin.close()
