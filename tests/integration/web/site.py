"""A control plane with its doors: the app on a real database, store and broker."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from espalier.client import Client
from espalier.messages import FileEntry
from espalier.settings import Settings
from espalier.transfer import Transfer
from scheduler import access
from scheduler.access import TokenKind
from scheduler.db import Database
from scheduler.models import User
from scheduler.placing.dispatch import Dispatcher, Ticket
from tests.integration.web.samples import ADAPTER, DATASET, MODEL, safetensors
from web import create_app
from web.services import Services

__all__ = ["ADAPTER", "DATASET", "MODEL", "Door", "Site", "safetensors"]

MACHINE = {
    "hostname": "studio",
    "platform": "Linux",
    "chip": "x86_64",
    "memory_total": 32 << 30,
    "memory_limit": 24 << 30,
    "disk_free": 1 << 40,
}


@dataclass
class Door:
    """One token's way in: the test client for raw requests, the real client for uploads."""

    app: Flask
    token: str
    prefix: str = "/api/v1"

    def __post_init__(self) -> None:
        self.http: FlaskClient = self.app.test_client()
        transport = httpx.WSGITransport(app=self.app.wsgi_app)
        self.client = Client("http://espalier.test", self.token, backoff=(), transport=transport)
        self.transfer = Transfer(self.client, self.prefix)

    def send(self, method: str, path: str, **options: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        url = path if path.startswith(("/api", "/agent")) else self.prefix + path
        return self.http.open(url, method=method, headers=headers, **options)

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.send("GET", path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> TestResponse:
        return self.send("POST", path, json={} if body is None else body, **options)

    def upload(self, folder: Path, files: dict[str, bytes]) -> list[dict[str, Any]]:
        """Upload the files with the real client; return their entries."""
        entries = []
        for path, data in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            entries.append(FileEntry(path=path, sha256=digest, size=len(data)))
        self.transfer.push(folder, entries)
        return [entry.model_dump() for entry in entries]

    def publish(
        self, folder: Path, ref: str, kind: str, files: dict[str, bytes], **more: Any
    ) -> TestResponse:
        body = {"kind": kind, "files": self.upload(folder, files), **more}
        return self.post(f"/artifacts/{ref}/versions", body)


class Site:
    """The app and its people: an admin, ada in `team`, eve in `elsewhere`."""

    def __init__(self, url: str, directory: Path, broker_url: str | None, **settings: Any) -> None:
        self.directory = directory
        self.settings = Settings(
            data_dir=directory, database_url=url, broker_url=broker_url, **settings
        )
        self.app = create_app(self.settings)
        self.services: Services = self.app.extensions["espalier"]
        self.database: Database = self.services.database
        self.sent: list[Ticket] = []
        self.dispatcher = Dispatcher(self.database, self.sent.append, self.settings)
        with self.database.transaction() as session:
            admin = access.ensure_first_run(session)
            people = {"admin": admin}
            for name, project in (("ada", "team"), ("eve", "elsewhere")):
                user = people[name] = access.create_user(session, name)
                home = access.project_for(session, access.SYSTEM, project, create=True)
                access.add_member(session, home, user.id)
            tokens = {
                name: access.mint(session, "personal", user=user) for name, user in people.items()
            }
        self.admin, self.ada, self.eve = (
            Door(self.app, tokens[name]) for name in ("admin", "ada", "eve")
        )

    def close(self) -> None:
        self.database.close()

    def mint(self, kind: TokenKind, name: str = "ada", **options: Any) -> str:
        with self.database.transaction() as session:
            user = session.query(User).filter_by(name=name).one()
            return access.mint(session, kind, user=user, **options)

    def with_inputs(self) -> "Site":
        """Put a base model and a data set into the team's store."""
        self.ada.publish(self.directory / "m", "team/base", "model", MODEL)
        self.ada.publish(self.directory / "d", "team/sql", "dataset", DATASET)
        return self

    def submit(self, **envelope: Any) -> str:
        spec = {"kind": "train", "model": "team/base", "data": "team/sql", "iters": 10}
        response = self.ada.post("/jobs", {"spec": spec, **envelope})
        assert response.status_code == 201, response.json
        job_id: str = response.json["id"]
        return job_id

    def worker(self, name: str = "studio-1") -> tuple[Door, str]:
        """Join a worker and let it say hello; return its door and its boot id."""
        invitation = self.admin.post("/workers/join-tokens").json["token"]
        joined = Door(self.app, invitation, "/agent/v1").post("/join", {"name": name})
        door = Door(self.app, joined.json["token"], "/agent/v1")
        hello = {"boot_id": f"boot-{name}", "machine": MACHINE}
        assert door.post("/hello", hello).status_code == 200
        return door, f"boot-{name}"

    def tick(self) -> list[Ticket]:
        """Run the scheduler once; return the tickets it sent."""
        before = len(self.sent)
        self.dispatcher.tick()
        return self.sent[before:]

    def browser(self) -> "Browser":
        return Browser(self.app)


class Browser:
    """A person's browser: cookies, forms, and the CSRF token a page gave it."""

    def __init__(self, app: Flask) -> None:
        self.http = app.test_client()

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.http.get(path, **options)

    def post(self, path: str, form: dict[str, str], page: str = "/login") -> TestResponse:
        """Post a form as it stands on ``page``, with that page's CSRF token."""
        return self.http.post(path, data={"csrf_token": self.csrf(page), **form})

    def csrf(self, page: str) -> str:
        html = self.http.get(page).get_data(as_text=True)
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', html)
        assert found, f"{page} has no CSRF token"
        return found[1]
