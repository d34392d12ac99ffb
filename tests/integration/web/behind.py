"""A hub behind this one: a second Espalier whose answers can be counted, cut, held and spoilt."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from pydantic import SecretStr
from werkzeug.serving import BaseWSGIServer, make_server

from scheduler import access
from scheduler.db import migrate
from tests.integration.web.site import MODEL, Site, safetensors

WEIGHTS = safetensors({"w": [1024, 1024]})  # 2 MiB: more than one chunk
FILES = {**MODEL, "model.safetensors": WEIGHTS}


@dataclass
class Front:
    """A WSGI server before an app, that counts what passes and breaks what it is told to."""

    app: Callable[..., Iterable[bytes]]
    seen: Counter[str] = field(default_factory=Counter)
    tokens: set[str | None] = field(default_factory=set)
    cut_after: list[int] = field(default_factory=list)  # bytes of the next answers' bodies
    spoil: bool = False
    hold: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.hold.set()
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server: BaseWSGIServer = make_server("127.0.0.1", self.port, self, threaded=True)
        self.port = self.server.port
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO'].rpartition('/')[2]}"
        with self._lock:
            self.seen[what] += 1
            self.tokens.add(environ.get("HTTP_AUTHORIZATION"))
        body = self.app(environ, start_response)
        return self._weights(body) if what == "GET model.safetensors" else body

    def _weights(self, body: Iterable[bytes]) -> Iterator[bytes]:
        self.hold.wait(60)
        left = self.cut_after.pop(0) if self.cut_after else 1 << 40
        for chunk in body:
            if self.spoil:
                chunk = b"\xff" * len(chunk)
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0:
                raise ConnectionAbortedError("cut by the test")


@dataclass
class Stage:
    upstream: Front
    ours: Front
    site: Site
    token: str  # of the upstream's admin
    far: Site

    def snapshot(self, folder: Path, revision: str | None = None) -> dict[str, bytes]:
        where = snapshot_download(
            "acme/tiny",
            revision=revision,
            endpoint=self.ours.url,
            token=self.site.ada.token,
            cache_dir=folder,
        )
        return {p.name: p.read_bytes() for p in Path(where).iterdir()}

    def api(self) -> HfApi:
        return HfApi(endpoint=self.ours.url, token=self.site.ada.token)


@contextmanager
def staged(tmp_path: Path, broker_url: str, **settings: Any) -> Iterator[Stage]:
    """Two sites: `ours` mirrors `upstream`, with the token of an admin there."""

    def site(name: str, **settings: Any) -> Site:
        (tmp_path / name).mkdir()
        url = f"sqlite:///{tmp_path / name / 'espalier.db'}"
        migrate(url)
        return Site(url, tmp_path / name, broker_url, **settings)

    far = site("far")
    with far.database.transaction() as session:
        access.project_for(session, access.SYSTEM, "acme", create=True)
    far.admin.publish(tmp_path / "push", "acme/tiny", "model", FILES)
    upstream = Front(far.app)
    near = site(
        "near",
        **{
            "upstream_hub": upstream.url,
            "upstream_token": SecretStr(far.admin.token),
            "upstream_allow": ("acme/*",),
            "mirror_bytes": 3 << 20,
            **settings,
        },
    )
    ours = Front(near.app)
    yield Stage(upstream, ours, near, far.admin.token, far)
    near.services.prefetcher.stop()
    for front in (ours, upstream):
        front.stop()
    near.close()
    far.close()


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)
