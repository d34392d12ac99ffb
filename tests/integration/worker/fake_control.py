"""The agent API over real HTTP, honest about leases, uploads and outages, without SQL.

In the spirit of buildkite-agent's fake API server: the worker under test cannot tell it from the
control plane, and a test can look at what arrived and change its mind about what to answer.
"""

import hashlib
import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from espalier.errors import (
    Conflict,
    EspalierError,
    InvalidInput,
    LeaseLost,
    NotFound,
    Unauthorized,
    Unavailable,
)
from espalier.messages import (
    Assignment,
    CheckpointPublished,
    Claim,
    FileEntry,
    Finish,
    Heartbeat,
    Hello,
    Order,
    Report,
)

TOKEN = "hf_" + "w" * 34
WORKER = "w1"
PART_SIZE = 1 << 16

ROUTES = Map(
    [
        Rule(f"{prefix}{rule}", endpoint=endpoint, methods=[method])
        for prefix in ("/agent/v1", "/api/v1")
        for method, rule, endpoint in (
            ("POST", "/hello", "hello"),
            ("POST", "/heartbeat", "heartbeat"),
            ("POST", "/attempts/<attempt>/claim", "claim"),
            ("POST", "/attempts/<attempt>/report", "report"),
            ("POST", "/attempts/<attempt>/checkpoints", "checkpoint"),
            ("POST", "/attempts/<attempt>/finish", "finish"),
            ("POST", "/blobs/missing", "missing"),
            ("GET", "/blobs/<sha256>", "blob"),
            ("POST", "/uploads", "begin"),
            ("PUT", "/uploads/<upload>/parts/<int:number>", "part"),
            ("POST", "/uploads/<upload>/complete", "complete"),
        )
    ]
)


class _Quiet(WSGIRequestHandler):
    def log_request(self, *args: object) -> None:
        del args


@dataclass
class Attempt:
    """An attempt as the control plane knows it, and everything that was said about it."""

    assignment: Assignment
    state: str = "placed"
    boot_id: str | None = None
    cancel: bool = False
    pause: bool = False
    finishes: int = 0  # also repeats
    claims: int = 0
    reports: dict[int, Report] = field(default_factory=dict)
    arrivals: list[int] = field(default_factory=list)
    checkpoints: list[CheckpointPublished] = field(default_factory=list)
    overtaken: bool = False  # by a checkpoint that came before the reports that led to it
    finish: Finish | None = None

    @property
    def events(self) -> list[Any]:
        return [event for seq in sorted(self.reports) for event in self.reports[seq].events]

    @property
    def log(self) -> str:
        chunks = [c for seq in sorted(self.reports) for c in self.reports[seq].log]
        return "".join(c.text for c in sorted(chunks, key=lambda c: c.offset))

    def steps(self) -> list[int]:
        return [event.step for event in self.events if event.type == "metrics"]


class FakeControl:
    """Serves until closed. ``away`` refuses everything; ``stop`` and ``start`` cut the port.

    ``store_away`` refuses what needs the store, ``reports_away`` reports. What is in
    ``unanswered`` is done, and its answer is lost on the way.
    """

    def __init__(self, store: Path, broker_url: str = "redis://127.0.0.1:1/0") -> None:
        self.store = store
        self.broker_url = broker_url
        self.report_seconds = 0.2
        self.attempts: dict[str, Attempt] = {}
        self.hellos: list[Hello] = []
        self.heartbeats: list[Heartbeat] = []
        self.drain = False
        self.away = False
        self.store_away = False
        self.reports_away = False
        self.unanswered: set[str] = set()
        self.inherits = True
        self.part_delay = threading.Event()
        self.part_delay.set()
        self.uploads: dict[str, dict[str, Any]] = {}
        self.parts_received: dict[str, list[int]] = defaultdict(list)
        self.parts_begun: list[int] = []
        self.downloads: list[tuple[str, str | None]] = []
        self.ranges = True  # else Range is ignored, as some servers do
        self.downloads_before_they_hang: int | None = None
        self.cut_after: int | None = None
        self.changed = threading.Condition()
        self._server: BaseWSGIServer | None = None
        store.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self, port: int = 0) -> None:
        self._server = make_server("127.0.0.1", port, self, threaded=True, request_handler=_Quiet)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, content: bytes, path: str) -> FileEntry:
        """Keep a blob and return it as a file of an artifact."""
        sha256 = hashlib.sha256(content).hexdigest()
        (self.store / sha256).write_bytes(content)
        return FileEntry(path=path, sha256=sha256, size=len(content))

    def has(self, sha256: str) -> bool:
        return (self.store / sha256).exists()

    def place(self, assignment: Assignment) -> Attempt:
        attempt = self.attempts[assignment.attempt_id] = Attempt(assignment)
        return attempt

    def until(self, happened: Any, seconds: float = 60.0) -> None:
        """Wait for what a request brings about; fail when it does not."""
        with self.changed:
            assert self.changed.wait_for(happened, seconds), "it did not happen in time"

    # --- HTTP -----------------------------------------------------------------------------

    def __call__(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        try:
            response = self._answer(request)
        except EspalierError as error:
            response = _json(error.problem(), error.status, "application/problem+json")
        except HTTPException as error:
            response = error.get_response(environ)
        with self.changed:
            self.changed.notify_all()
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        if self.away:
            raise Unavailable("away")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Unauthorized("unknown token")
        endpoint, arguments = ROUTES.bind_to_environ(request.environ).match()
        if self.store_away and endpoint in ("missing", "begin", "part", "complete"):
            raise Unavailable("the store is away")
        if self.reports_away and endpoint == "report":
            raise Unavailable("reports are not taken")
        answer: Response = getattr(self, f"on_{endpoint}")(request, **arguments)
        if endpoint in self.unanswered:
            raise Unavailable("the answer is lost")
        return answer

    def on_hello(self, request: Request) -> Response:
        hello = Hello.model_validate_json(request.get_data())
        self.hellos.append(hello)
        return _json(
            {
                "worker_id": WORKER,
                "name": "mac-1",
                "queue": f"n:{WORKER}:jobs",
                "broker_url": self.broker_url,
                "lease_seconds": 60,
                "report_seconds": self.report_seconds,
                "inherited": self._pass_on(hello),
            }
        )

    def _pass_on(self, hello: Hello) -> list[str]:
        """Move what the worker holds to its new process; what it does not hold is lost."""
        held = {(item.attempt_id, item.boot_id) for item in hello.held}
        inherited = []
        for attempt_id, known in self.attempts.items():
            if known.state == "running" and known.boot_id != hello.boot_id:
                if self.inherits and (attempt_id, known.boot_id) in held:
                    known.boot_id = hello.boot_id
                else:
                    known.state = "lost"
            if (known.state, known.boot_id) == ("running", hello.boot_id):
                inherited.append(attempt_id)
        return inherited

    def on_heartbeat(self, request: Request) -> Response:
        self.heartbeats.append(Heartbeat.model_validate_json(request.get_data()))
        return self._orders([])

    def _orders(self, orders: list[Order]) -> Response:
        drain = [Order(order="drain")] if self.drain else []
        shown = [order.model_dump() for order in orders + drain]
        return _json({"orders": shown, "report_seconds": self.report_seconds})

    def on_claim(self, request: Request, attempt: str) -> Response:
        claim = Claim.model_validate_json(request.get_data())
        if attempt not in self.attempts:
            raise NotFound(f"no attempt {attempt}")
        known = self.attempts[attempt]
        known.claims += 1
        if known.state != "placed" and (known.state, known.boot_id) != ("running", claim.boot_id):
            raise Conflict(f"attempt {attempt} is {known.state}")
        known.state, known.boot_id = "running", claim.boot_id
        return Response(known.assignment.model_dump_json(), content_type="application/json")

    def _held(self, attempt: str, boot_id: str) -> Attempt:
        known = self.attempts[attempt]
        if (known.state, known.boot_id) != ("running", boot_id):
            raise LeaseLost(f"attempt {attempt} is {known.state}")
        return known

    def on_report(self, request: Request, attempt: str) -> Response:
        report = Report.model_validate_json(request.get_data())
        known = self._held(attempt, report.boot_id)
        known.arrivals.append(report.seq)
        known.reports.setdefault(report.seq, report)
        asked = {"cancel": known.cancel, "pause": known.pause and not known.cancel}
        return self._orders([Order(order=o, attempt_id=attempt) for o in asked if asked[o]])

    def on_checkpoint(self, request: Request, attempt: str) -> Response:
        published = CheckpointPublished.model_validate_json(request.get_data())
        known = self._held(attempt, published.boot_id)
        self._verify(published.files)
        # An attempt that went on from here would never report the steps before it again.
        known.overtaken |= published.step > max(known.steps(), default=0)
        if published not in known.checkpoints:
            known.checkpoints.append(published)
        return Response(status=204)

    def on_finish(self, request: Request, attempt: str) -> Response:
        finish = Finish.model_validate_json(request.get_data())
        self.attempts[attempt].finishes += 1
        if self.attempts[attempt].finish == finish:
            return self._finished(finish)
        known = self._held(attempt, finish.boot_id)
        for output in finish.outputs:
            self._verify(output.files)
        known.finish, known.state = finish, finish.state
        return self._finished(finish)

    def _finished(self, finish: Finish) -> Response:
        outputs = {o.role: f"team/{o.role}@v1" for o in finish.outputs}
        return _json({"job_state": finish.state, "outputs": outputs})

    def _verify(self, files: tuple[FileEntry, ...]) -> None:
        for entry in files:
            if not self.has(entry.sha256):
                raise InvalidInput(f"{entry.path}: blob {entry.sha256} is missing")

    def on_missing(self, request: Request) -> Response:
        asked = [blob["sha256"] for blob in json.loads(request.get_data())["blobs"]]
        return _json({"missing": [sha256 for sha256 in asked if not self.has(sha256)]})

    def on_begin(self, request: Request) -> Response:
        asked = json.loads(request.get_data())
        if self.has(asked["sha256"]):
            return _json({"upload_id": None})
        upload = f"u-{asked['sha256']}"
        known = self.uploads.setdefault(upload, {**asked, "parts": {}})
        parts = [{"number": n, "size": len(data)} for n, data in sorted(known["parts"].items())]
        return _json({"upload_id": upload, "part_size": PART_SIZE, "parts": parts}, 201)

    def on_part(self, request: Request, upload: str, number: int) -> Response:
        data = request.get_data()
        with self.changed:
            self.parts_begun.append(number)
            self.changed.notify_all()
        self.part_delay.wait(60)
        if upload not in self.uploads:
            raise NotFound("no such upload")
        self.uploads[upload]["parts"][number] = data
        self.parts_received[upload].append(number)
        return Response(status=204)

    def on_complete(self, request: Request, upload: str) -> Response:
        del request
        known = self.uploads.pop(upload, None)
        if known is None:
            raise NotFound("no such upload")
        content = b"".join(data for _, data in sorted(known["parts"].items()))
        sha256 = hashlib.sha256(content).hexdigest()
        if (sha256, len(content)) != (known["sha256"], known["size"]):
            raise InvalidInput("the bytes are not the sha256 they were announced as")
        (self.store / sha256).write_bytes(content)
        return _json({"sha256": sha256, "size": len(content)})

    def on_blob(self, request: Request, sha256: str) -> Response:
        if not self.has(sha256):
            raise NotFound(f"no blob {sha256}")
        asked = request.headers.get("Range") if self.ranges else None
        with self.changed:
            hangs = self.downloads_before_they_hang == len(self.downloads)
            if not hangs:
                self.downloads.append((sha256, asked))
        if hangs:
            self.part_delay.wait(60)
            raise Unavailable("too late")
        content = (self.store / sha256).read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-") if asked else ("0", "", "")
        body = content[int(first) : int(last) + 1 if last else None]
        headers = {"ETag": f'"{sha256}"', "Content-Length": str(len(body))}
        if self.cut_after is not None:  # the connection breaks on the way
            body, self.cut_after = body[: self.cut_after], None
        return Response(iter([body]), 206 if asked else 200, headers)


def _json(body: Any, status: int = 200, kind: str = "application/json") -> Response:
    return Response(json.dumps(body), status, content_type=kind)
