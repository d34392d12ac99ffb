"""What a hub behind may say: names with slashes, lies, bombs, redirects to what is denied."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from werkzeug.serving import make_server
from werkzeug.test import TestResponse
from werkzeug.wrappers import Request, Response

from scheduler.db import migrate
from tests.integration.web.site import Site
from web.mirror import upstream

COMMIT = "c" * 40
DATA = b"what the file holds"
ETAG = hashlib.sha256(DATA).hexdigest()
Answer = Callable[[Request], Response]


class Hub:
    """Answers by the path as it was sent, and notes what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.server = make_server("127.0.0.1", 0, self, threaded=True)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        path = environ["RAW_URI"]
        self.asked.append(f"{request.method} {path}")
        answer = self.answers.get(path, lambda _: Response(status=404))
        return answer(request)(environ, start_response)

    def says(self, path: str, body: Any, **headers: str) -> None:
        self.answers[path] = lambda _: Response(json.dumps(body), headers=headers)

    def has(self, path: str, answer: Answer, *, size: int = len(DATA), etag: str = ETAG) -> None:
        """Serve a file: HEAD as hubs do, GET as ``answer`` has it."""

        def both(request: Request) -> Response:
            if request.method != "HEAD":
                return answer(request)
            facts = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(size)}
            return Response(headers=facts)

        rev = path.split("/resolve/")[1].split("/")[0]
        self.answers[path] = self.answers[path.replace(f"/{rev}/", f"/{COMMIT}/")] = both

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def site(hub: Hub, tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("strange")
    url = f"sqlite:///{root / 'espalier.db'}"
    migrate(url)
    site = Site(
        url,
        root,
        broker_url,
        upstream_hub=f"http://127.0.0.1:{hub.server.port}",
        upstream_token=SecretStr("hf_ours"),
        upstream_deny=("denied/*",),
    )
    yield site
    site.close()


def get(site: Site, path: str, **options: Any) -> TestResponse:
    site.ada.prefix = ""
    return site.ada.get(path, **options)


@pytest.mark.parametrize("rev", ["feature%2Fx", "refs%2Fpr%2F3", "refs/pr/3"])
def test_a_slash_in_a_revision_stays_in_its_name(hub: Hub, site: Site, rev: str) -> None:
    quoted = rev.replace("/", "%2F")
    tree, file = f"/api/models/o/slash/tree/{quoted}", f"/o/slash/resolve/{quoted}/a%20b/c.json"
    hub.says(f"{tree}/a%20b?recursive=true", [{"type": "file", "path": "a b/c.json"}])
    hub.says(f"/api/models/o/slash/revision/{quoted}", {"id": "o/slash", "sha": COMMIT})
    hub.has(file, lambda _: Response(DATA))
    found = get(site, f"/api/models/o/slash/tree/{rev}/a%20b?recursive=True&expand=False&x=y")
    assert found.json == [{"type": "file", "path": "a b/c.json"}]
    assert get(site, f"/api/models/o/slash/revision/{rev}").json["sha"] == COMMIT
    answer = get(site, f"/o/slash/resolve/{rev}/a%20b/c.json")
    assert (answer.data, answer.headers["X-Repo-Commit"]) == (DATA, COMMIT)


def test_a_repository_can_be_read_not_written(hub: Hub, site: Site) -> None:
    asked = len(hub.asked)
    for path in ("/api/models/o/r/commit/main", "/api/models/o/r/preupload/main"):
        answer = site.ada.send("POST", path, data=b"{}")
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, "RepoNotFound")
        assert "not written" in answer.headers["X-Error-Message"]
    assert len(hub.asked) == asked


def test_a_project_s_name_goes_upstream_in_no_spelling(hub: Hub, site: Site) -> None:
    asked = len(hub.asked)
    assert get(site, "/api/models/TEAM/secret").status_code == 404
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000 + b"]" * 100_000, b"no json", b'"text"', b"\xff\xfe"],
    ids=["nested", "text", "string", "bytes"],
)
def test_a_document_that_is_none(hub: Hub, site: Site, body: bytes) -> None:
    hub.answers["/api/models/o/bomb"] = lambda _: Response(body)
    answer = get(site, "/api/models/o/bomb")
    assert answer.status_code == 502
    assert not list(site.directory.glob("mirror/said/models/o--bomb/*"))


def test_a_document_without_end(hub: Hub, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MAX_DOCUMENT", 1 << 20)

    def endless(_: Request) -> Response:
        return Response(b"[" + b" " * 65_536 for _ in range(1000))

    hub.answers["/api/models/o/endless"] = endless
    answer = get(site, "/api/models/o/endless")
    assert (answer.status_code, answer.headers["X-Error-Message"][-26:]) == (
        502,
        "1 MiB: no document of a hub is."[-26:],
    )


def test_a_file_that_is_longer_than_it_was_said_to_be(hub: Hub, site: Site) -> None:
    etag = hashlib.sha256(b"19 bytes, so it says").hexdigest()
    hub.has("/o/long/resolve/main/x", lambda _: Response(DATA * 100_000), etag=etag)
    answer = get(site, "/o/long/resolve/main/x")
    if answer.status_code == 200:  # the first bytes were on their way before it was noticed
        with pytest.raises(Exception, match="more than the 19 bytes"):
            answer.get_data()
    else:
        assert answer.status_code == 502
    assert not list(site.directory.glob(f"mirror/blobs/{etag}*"))


def test_a_range_of_which_nobody_asked(hub: Hub, site: Site) -> None:
    data = bytes(range(200))
    etag = hashlib.sha256(data).hexdigest()
    hub.has(
        "/o/range/resolve/main/x",
        lambda _: Response(data[7:], status=206, headers={"Content-Range": "bytes 7-199/200"}),
        size=200,
        etag=etag,
    )
    assert get(site, "/o/range/resolve/main/x").status_code == 502


@pytest.mark.parametrize("etag", ["abc", "../../../x", "x" * 300, "d41d8cd98f00b204-2"])
def test_an_etag_that_is_no_digest_is_not_believed(hub: Hub, site: Site, etag: str) -> None:
    hub.has("/o/etag/resolve/main/x", lambda _: Response(DATA), etag=etag)
    answer = get(site, "/o/etag/resolve/main/x")
    assert answer.status_code == 422
    assert "could not be verified" in answer.headers["X-Error-Message"]


def test_a_redirect_to_what_is_denied_is_not_followed_home(hub: Hub, site: Site) -> None:
    hub.says("/api/models/denied/x", {"id": "denied/x", "sha": COMMIT})
    hub.answers["/api/models/o/renamed"] = lambda _: Response(
        status=307, headers={"Location": "/api/models/denied/x"}
    )
    answer = get(site, "/api/models/o/renamed")
    assert answer.status_code == 403
    assert "denied/x is among" in answer.headers["X-Error-Message"]


def test_a_redirect_without_end(hub: Hub, site: Site) -> None:
    hub.answers["/api/models/o/round"] = lambda _: Response(
        status=307, headers={"Location": "/api/models/o/round"}
    )
    assert get(site, "/api/models/o/round").status_code == 502


def test_bytes_that_lie_elsewhere_are_fetched_without_our_token(
    hub: Hub, site: Site, tmp_path: Path
) -> None:
    tokens = []

    def far(request: Request) -> Response:
        tokens.append(request.headers.get("Authorization"))
        return Response(DATA + b"!")

    other = Hub()
    other.answers["/blob?signature=s"] = far
    where = f"http://127.0.0.1:{other.server.port}/blob?signature=s"
    hub.has(
        "/o/cdn/resolve/main/x",
        lambda _: Response(status=302, headers={"Location": where}),
        size=len(DATA) + 1,
        etag=hashlib.sha256(DATA + b"!").hexdigest(),
    )
    try:
        assert get(site, "/o/cdn/resolve/main/x").data == DATA + b"!"
    finally:
        other.close()
    assert tokens == [None]


def test_a_part_that_another_process_fetched_and_left_is_continued(hub: Hub, site: Site) -> None:
    import fcntl

    data = bytes(1000) + b"end"
    etag = hashlib.sha256(data).hexdigest()
    ranges = []

    def rest(request: Request) -> Response:
        ranges.append(request.headers["Range"])
        headers = {"Content-Range": f"bytes 600-{len(data) - 1}/{len(data)}"}
        return Response(data[600:], status=206, headers=headers)

    hub.has("/o/shared/resolve/main/x", rest, size=len(data), etag=etag)
    part = site.directory / "mirror" / "blobs" / f"{etag}.part"
    with part.open("wb") as file:  # as another process has it
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(data[:300])
        file.flush()
        body = iter(get(site, "/o/shared/resolve/main/x").response)
        assert next(body) == data[:300], "what the other one has is read at once"
        file.write(data[300:600])
    assert b"".join(body) == data[300:]
    assert ranges == ["bytes=600-"]
