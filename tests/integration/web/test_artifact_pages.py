"""The store's pages without a browser: hostile content, strangers, refusals, and what they cost."""

import json
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import event, select
from werkzeug import Response
from werkzeug.serving import make_server

from espalier.ids import new_id
from espalier.messages import FileEntry
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.catalog import aliases, registry, retiring
from scheduler.db import now
from scheduler.models import Artifact, FormerName, Project, Version
from tests.integration.web.site import MODEL, Browser, Site

MARKUP = "<script>alert(1)</script>"
ODD_NAME = 'a"><img src=x onerror=alert(1)>.txt'


def signed_in(site: Site, name: str = "ada") -> Browser:
    browser = site.browser()
    assert browser.post("/login", {"token": site.mint("login", name)}).status_code == 302
    return browser


def text(browser: Browser, path: str, status: int = 200) -> str:
    answer = browser.get(path)
    assert answer.status_code == status, path
    return answer.get_data(as_text=True)


def publish(
    site: Site,
    name: str,
    contents: Mapping[str, bytes],
    kind: ArtifactKind = ArtifactKind.MODEL,
    count: int = 1,
) -> None:
    """Publish behind the doors' backs: what vetting would refuse may still lie in a store."""
    with site.database.transaction() as session:
        project = session.scalars(select(Project).where(Project.name == "team")).one()
        files = tuple(
            FileEntry(
                path=path, sha256=site.services.blobs.put_bytes(session, data), size=len(data)
            )
            for path, data in contents.items()
        )
        for number in range(count):
            registry.publish(
                session,
                site.services.blobs,
                project=project,
                name=name if count == 1 else f"{name}-{number:03}",
                kind=kind,
                files=files,
                meta={},
                parents=[],
                created_by=None,
            )


@contextmanager
def counted(site: Site) -> Iterator[list[str]]:
    """Yield the list of SQL statements that are sent."""
    sent: list[str] = []

    def note(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    engine = site.database.engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_nothing_that_is_published_becomes_markup_or_a_script(site: Site) -> None:
    config = json.dumps({"model_type": MARKUP}).encode()
    publish(
        site,
        "odd",
        {
            "README.md": f"---\nlicense: '{MARKUP}'\n---\n# {MARKUP}\n[x](javascript:alert(1))\n"
            "<a href='javascript:alert(2)'>y</a> ![i](https://evil.example/i.png)".encode(),
            "config.json": config,
            ODD_NAME: MARKUP.encode(),
            f"f/{ODD_NAME}": b"",
            "rows.jsonl": json.dumps({MARKUP: MARKUP}).encode() + b"\n",
        },
    )
    ada = signed_in(site)
    quoted = "a%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E.txt"
    first = "/team/odd/v/1/files/"
    for path in ("/team/odd", first, f"{first}f", f"{first}README.md", f"{first}config.json",
                 f"{first}{quoted}", f"{first}rows.jsonl", "/team/odd/versions"):  # fmt: skip
        page = text(ada, path)
        assert MARKUP not in page, path
        assert "onerror=alert(1)>" not in page, path
        assert 'href="javascript:' not in page, path
        assert "evil.example" not in page, path
    policy = ada.get("/team/odd").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "img-src 'self' data:" in policy
    script = next(part for part in policy.split(";") if "script-src" in part)
    assert "unsafe" not in script


LIES = (
    ("m0.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "Its header claims"),
    ("m1.safetensors", b"", "too few"),
    ("m2.safetensors", struct.pack("<Q", 9) + b'{"w": [1}', "not JSON"),
    ("m0.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), "more than any model has"),
    ("m1.gguf", b"GGUF", "does not end"),
    ("x.json", b"[" * 50_000, "not JSON"),
    ("x.txt", b"\0\1\2", "no text"),
    ("x.jsonl", b"[" * 300_000, "longer than"),
)


def test_a_file_that_lies_is_a_sentence_on_its_page(site: Site) -> None:
    publish(site, "liar", {name: data for name, data, _ in LIES})
    ada = signed_in(site)
    for name, _, said in LIES:
        assert said in text(ada, f"/team/liar/v/1/files/{name}"), name
    text(ada, "/team/liar")


def test_what_a_proof_speaks_against_is_marked_on_its_page(site: Site, tmp_path: Path) -> None:
    mark = "model-q4_0.gguf: token_match is 0.91, the limit 0.95 <b>"
    files = {"model-q4_0.gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 0)}
    answer = site.ada.publish(tmp_path, "team/doubtful", "gguf", files, meta={"marked": mark})
    assert answer.status_code == 201
    page = text(signed_in(site), "/team/doubtful")
    assert "Marked: a proof does not hold." in page
    assert "the limit 0.95 &lt;b&gt;" in page


def test_a_file_is_looked_into_without_reading_it(site: Site, monkeypatch: Any) -> None:
    tensor = {"dtype": "U8", "shape": [4 << 20], "data_offsets": [0, 4 << 20]}
    header = json.dumps({new_id(): tensor})  # headers are kept by sha256, whoever asked before
    data = struct.pack("<Q", len(header)) + header.encode() + bytes(4 << 20)
    publish(site, "big", {"model.safetensors": data})
    read: list[int] = []
    blobs = site.services.blobs
    opened = blobs.open

    def noted(sha256: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        for chunk in opened(sha256, start, length):
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr(type(blobs), "open", lambda _self, *args: noted(*args))
    assert "4 194 304 parameters".replace(" ", "\u202f", 2) in text(
        signed_in(site), "/team/big/v/1/files/model.safetensors"
    )
    assert sum(read) == 8 + len(header)


def test_ten_thousand_files_are_listed_a_folder_and_a_page_at_a_time(site: Site) -> None:
    data = site.services
    with site.database.transaction() as session:
        blob = data.blobs.put_bytes(session, b"x")
        project = session.scalars(select(Project).where(Project.name == "team")).one()
        files = [
            FileEntry(path=f"{folder}/{i:04}.txt", sha256=blob, size=1)
            for folder in ("a", "b_", "bc")
            for i in range(700)
        ]
        registry.publish(
            session, data.blobs, project=project, name="tree", kind=ArtifactKind.DATASET,
            files=files, meta={}, parents=[], created_by=None,
        )  # fmt: skip
    ada = signed_in(site)
    page = text(ada, "/team/tree")
    assert "2100" in page
    assert len(page) < 40_000
    root = text(ada, "/team/tree/v/1/files/")
    assert root.count("700 files") == 3
    first, last = (text(ada, f"/team/tree/v/1/files/b_?page={n}") for n in (1, 4))
    assert first.count('aria-label="Download') == 200
    assert last.count('aria-label="Download') == 100
    assert "bc/" not in first  # "_" is a letter, not a pattern
    assert ada.get("/team/tree/v/1/files/nothing").status_code == 404
    assert ada.get("/team/tree/v/1/files/a/../b").status_code in (404, 422)


def test_a_shelf_of_many_costs_as_many_questions_as_one_of_few(site: Site) -> None:
    publish(site, "few", MODEL, count=3)
    ada = signed_in(site)
    text(ada, "/artifacts")
    with counted(site) as few:
        text(ada, "/artifacts")
    publish(site, "many", MODEL, count=70)
    with counted(site) as many:
        page = text(ada, "/artifacts")
    assert len(many) == len(few)
    assert "73 artifacts, page 1 of 2" in page
    second = text(ada, "/artifacts?page=2&sort=name&q=many")
    assert "70 artifacts, page 2 of 2" in second
    assert second.count('class="title" href="/team/many-') == 20
    assert "No artifact fits" in text(ada, "/artifacts?page=9")


def test_filters_are_the_address(site: Site) -> None:
    site.with_inputs()
    publish(site, "tuned", MODEL)
    with site.database.transaction() as session:
        found = registry.find_artifact(session, "team", "tuned")
        aliases.set_alias(session, access.SYSTEM, found, "production", found.versions[0])
    ada = signed_in(site)
    for query, names in (
        ("", {"base", "sql", "tuned"}),
        ("?kind=model", {"base", "tuned"}),
        ("?alias=production", {"tuned"}),
        ("?made=people&kind=dataset", {"sql"}),
        ("?made=job", set()),
        ("?project=team&q=TUN", {"tuned"}),
        ("?q=team sql", {"sql"}),
        ("?deleted=yes", set()),
        ("?sort=nonsense&page=0", {"base", "sql", "tuned"}),
    ):
        page = text(ada, f"/artifacts{query}")
        assert {n for n in ("base", "sql", "tuned") if f'href="/team/{n}"' in page} == names, query
    assert "team/tuned" not in text(signed_in(site, "eve"), "/artifacts?alias=production")


def test_strangers_learn_nothing_from_any_page_of_an_artifact(site: Site) -> None:
    publish(site, "secret", MODEL)
    eve = signed_in(site, "eve")
    first = "/team/secret/v/1"
    for path in ("/team/secret", first, f"{first}/files/", f"{first}/files/config.json",
                 f"{first}/deletion", "/team/secret/deletion", "/team/secret/versions",
                 "/team/secret/compare?from=v1&to=v1"):  # fmt: skip
        assert eve.get(path).status_code == 404, path
    for path in (f"{first}/deletion", "/team/secret/deletion", "/team/secret/restoration",
                 f"{first}/restoration", "/team/secret/aliases/x/rollback",
                 "/team/secret/aliases/x/removal"):  # fmt: skip
        assert eve.post(path, {}, page="/settings").status_code == 404, path
    with site.database.transaction() as session:
        found = registry.find_artifact(session, "team", "secret")
        retiring.delete_artifact(session, access.SYSTEM, found)
    assert eve.get("/team/secret").status_code == 404
    assert "was deleted" not in text(eve, "/team/secret", 404)
    assert "secret" not in text(eve, "/storage")
    assert eve.post("/storage/collection", {}, page="/settings").status_code == 403


def test_a_deleted_versions_address_tells_what_it_was(site: Site) -> None:
    publish(site, "tuned", MODEL)
    publish(site, "tuned", {**MODEL, "README.md": b"# two"})
    with site.database.transaction() as session:
        two = session.scalars(select(Version).where(Version.number == 2)).one()
        retiring.delete_version(session, access.SYSTEM, two)
        commit = two.commit
    ada = signed_in(site)
    for selector in ("2", "v2", commit[:10]):
        page = text(ada, f"/team/tuned/v/{selector}", 404)
        assert "team/tuned@v2 was deleted" in page
        assert commit[:12] in page
    assert 'tuned</a> <span class="muted">v1' in text(ada, "/team/tuned")
    answer = ada.post("/team/tuned/v/2/restoration", {}, page="/settings")
    assert answer.status_code == 303
    assert 'tuned</a> <span class="muted">v2' in text(ada, "/team/tuned")


def test_what_is_moved_is_found_under_its_old_name_on_pages_too(site: Site) -> None:
    publish(site, "old", MODEL)
    with site.database.transaction() as session:
        found = registry.find_artifact(session, "team", "old")
        session.add(
            FormerName(
                project_id=found.project_id, name="old", artifact_id=found.id,
                created_at=now(session),
            )
        )  # fmt: skip
        found.name = "new"
    answer = signed_in(site).get("/team/old/v/1")
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("/team/new/v/1")


def test_addresses_that_the_hubs_clients_print_lead_to_pages(site: Site) -> None:
    publish(site, "tuned", MODEL)
    ada = signed_in(site)
    with site.database.reading() as session:
        commit = session.scalars(select(Version.commit)).one()
    for path, end in (
        (f"/team/tuned/commit/{commit}", f"/team/tuned/v/{commit}"),
        ("/team/tuned/tree/main", "/team/tuned/v/main"),
        ("/team/tuned/blob/main/config.json", "/team/tuned/v/main/files/config.json"),
        ("/datasets/team/tuned", "/team/tuned/v/main"),
        ("/datasets/team/tuned/blob/v1/config.json", "/team/tuned/v/v1/files/config.json"),
    ):
        assert ada.get(path).headers["Location"] == end
        text(ada, end)


def test_what_is_fetched_ahead_is_told_of_and_what_fails_says_why(
    database_url: str, tmp_path: Path, broker_url: str
) -> None:
    behind = make_server("127.0.0.1", 0, Response("{}", status=404), threaded=True)
    threading.Thread(target=behind.serve_forever, daemon=True).start()
    upstream = f"http://127.0.0.1:{behind.server_port}"
    site = Site(database_url, tmp_path, broker_url, upstream_hub=upstream)
    ada = signed_in(site)
    answer = ada.post("/storage/prefetch", {"repo": "org/base", "kind": "models"}, page="/storage")
    assert answer.status_code == 303
    page, end = "", time.monotonic() + 60
    while "fault" not in page:
        assert time.monotonic() < end, page
        page = text(ada, "/storage/mirror")
    assert "org/base" in page
    assert "hx-trigger" not in page  # nothing is under way any more
    ada.post("/storage/prefetch", {"repo": "no repository", "kind": "models"}, page="/storage")
    assert "note bad" in text(ada, "/storage")
    behind.shutdown()
    site.close()


def test_storage_counts_each_blob_once_in_what_is_asked_about(site: Site) -> None:
    publish(site, "one", {"a": b"x" * 1000, "b": b"y" * 500})
    publish(site, "two", {"a": b"x" * 1000})
    with site.database.transaction() as session:
        project = session.scalars(select(Project).where(Project.name == "team")).one()
        project.quota_bytes = 3000
    page = text(signed_in(site), "/storage")
    assert "50 % of 2.9 KiB" in page
    assert "1.5 KiB" in page
    assert "Sweep" not in page
    with site.database.transaction() as session:
        found = session.scalars(select(Artifact).where(Artifact.name == "one")).one()
        retiring.delete_artifact(session, access.SYSTEM, found)
    page = text(signed_in(site, "admin"), "/storage")
    assert "500 B more" in page
    assert "Sweep now" in page
