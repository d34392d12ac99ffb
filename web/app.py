"""The app factory: configuration, services, and every door."""

import hashlib
import os
import secrets
from contextlib import suppress
from functools import partial
from pathlib import Path

from flask import Flask
from flask_wtf import CSRFProtect
from werkzeug.middleware.proxy_fix import ProxyFix

from espalier.settings import Settings
from espalier.settings import settings as process_settings
from scheduler.access import SESSION_LIFETIME
from scheduler.bytes.blobs import Blobs
from scheduler.db import Database
from scheduler.queries.upstream import needed_upstream
from scheduler.store import open_driver
from scheduler.wake import Waker
from web import agent, api, auth, headers, health, hub, pages, problems
from web.mirror import Mirror, Prefetcher
from web.services import Services

#: Bytes of a request's body, unless its address takes more (parts of uploads, data files).
MAX_BODY = 16 << 20


def create_app(settings: Settings | None = None) -> Flask:
    """Return the WSGI app; the database must be migrated (``python -m scheduler init``)."""
    config = settings or process_settings()
    app = Flask("web")
    _configure(app, config)
    database = Database(config.sql_url)
    mirror = Mirror(config, partial(_needed_upstream, database))
    app.extensions["espalier"] = Services(
        settings=config,
        database=database,
        mirror=mirror,
        prefetcher=Prefetcher(mirror),
        blobs=Blobs(open_driver(config), config),
        waker=Waker(config.broker_url) if config.broker_url else None,
    )
    csrf = CSRFProtect(app)
    for programs in (api.register(app), *agent.register(app), hub.register(app)):
        csrf.exempt(programs)  # a Bearer token is never sent by a browser on its own
    app.register_blueprint(auth.blueprint)
    app.register_blueprint(health.make_blueprint())
    problems.register(app)
    headers.register(app)
    pages.register(app)
    return app


def _needed_upstream(database: Database) -> set[tuple[str, str]]:
    with database.reading() as session:
        return needed_upstream(session)


def _configure(app: Flask, config: Settings) -> None:
    https = (config.public_url or "").startswith("https://")
    key = config.secret_key.get_secret_value() if config.secret_key else _secret_key(config.home)
    # Cookies know no ports: two stacks on one machine must not sign each other out.
    name = f"espalier-{hashlib.sha256(key.encode()).hexdigest()[:6]}"
    app.config.update(
        SECRET_KEY=key,
        SESSION_COOKIE_NAME=f"__Host-{name}" if https else name,
        SESSION_COOKIE_SECURE=https,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=SESSION_LIFETIME,
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session
        MAX_CONTENT_LENGTH=MAX_BODY,
    )
    app.url_map.merge_slashes = False  # an address says what it means, or nothing
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the default provider has it
    if https:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]  # as Flask documents it
            app.wsgi_app, x_for=1, x_proto=1, x_host=1
        )


def _secret_key(home: Path) -> str:
    """Return the key that signs cookies, made once; several processes may start together."""
    path = home / "secret_key"
    home.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        draft = home / f".secret_key.{os.getpid()}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        with suppress(FileExistsError):  # another process was first: its key counts
            os.link(draft, path)
        draft.unlink()
    return path.read_text().strip()
