"""Signing in and out, tokens, CSRF, and the headers of every answer."""

from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import select, update

from scheduler import access
from scheduler.db import now
from scheduler.models import Audit, Token, User
from tests.integration.web.site import Browser, Door, Site
from web import create_app


def session_cookie(browser: Browser) -> str:
    app: Flask = browser.http.application
    cookie = browser.http.get_cookie(app.config["SESSION_COOKIE_NAME"])
    return cookie.value if cookie else ""


def test_a_login_link_works_once_and_opening_it_does_not_use_it_up(site: Site) -> None:
    link = site.mint("login", expires_in=access.LOGIN_LIFETIME)
    preview, person, thief = site.browser(), site.browser(), site.browser()
    for _ in range(2):
        assert link in preview.get(f"/login?token={link}").get_data(as_text=True)
    signed_in = person.post("/login", {"token": link, "next": "/jobs?state=running"})
    assert (signed_in.status_code, signed_in.location) == (302, "/jobs?state=running")
    assert person.get("/api/v1/whoami").json["user"] == "ada"
    again = thief.post("/login", {"token": link})
    assert again.status_code == 401
    assert "used already" in again.get_data(as_text=True)
    assert thief.get("/api/v1/whoami").status_code == 401


def test_a_link_that_expired_or_is_of_another_kind_is_refused(site: Site) -> None:
    for secret in (
        site.mint("login", expires_in=timedelta(seconds=-1)),
        site.mint("personal"),
        "hf_" + "x" * 40,
        "\x00",
    ):
        assert site.browser().post("/login", {"token": secret}).status_code == 401


def test_signing_in_by_password(site: Site) -> None:
    with site.database.transaction() as session:
        user = session.scalars(select(User).where(User.name == "ada")).one()
        access.set_password(session, user, "correct horse battery")
    wrong = site.browser().post("/login", {"name": "ada", "password": "correct horse"})
    unknown = site.browser().post("/login", {"name": "nobody", "password": "correct horse"})
    assert wrong.status_code == unknown.status_code == 401
    assert "do not match" in wrong.get_data(as_text=True)
    right = site.browser()
    assert (
        right.post("/login", {"name": "ada", "password": "correct horse battery"}).location == "/"
    )
    assert right.get("/api/v1/whoami").json["user"] == "ada"


def test_a_password_is_set_on_the_settings_page_and_ends_every_session(site: Site) -> None:
    here, elsewhere = site.browser(), site.browser()
    for browser in (here, elsewhere):
        browser.post("/login", {"token": site.mint("login")})
    short = here.post("/settings/password", {"password": "short"}, page="/settings")
    assert short.status_code == 422
    assert elsewhere.get("/settings").status_code == 200, "a refusal ends nothing"
    new = {"password": "correct horse battery"}
    assert here.post("/settings/password", new, page="/settings").status_code == 303
    assert elsewhere.get("/settings").status_code == 302
    again = site.browser()
    assert again.post("/login", {"name": "ada", **new}).location == "/"


def test_expired_sessions_do_not_pile_up(site: Site) -> None:
    for _ in range(3):
        site.mint("session", expires_in=timedelta(seconds=-1))
    site.browser().post("/login", {"token": site.mint("login")})
    with site.database.reading() as session:
        kinds = list(session.scalars(select(Token.kind).where(Token.kind == "session")))
    assert kinds == ["session"]


def test_sign_in_leads_nowhere_else(site: Site) -> None:
    for target in ("https://evil.test/", "//evil.test", "/\\evil.test", "javascript:x", "/a\nb"):
        link = site.mint("login")
        assert site.browser().post("/login", {"token": link, "next": target}).location == "/"


def test_signing_out_ends_the_session_on_the_server(site: Site) -> None:
    person, thief = site.browser(), site.browser()
    person.post("/login", {"token": site.mint("login")})
    name = site.app.config["SESSION_COOKIE_NAME"]
    thief.http.set_cookie(name, session_cookie(person))
    assert thief.get("/api/v1/whoami").status_code == 200
    token = person.csrf(f"/login?token={site.mint('login')}")
    assert person.http.post("/logout", data={"csrf_token": token}).location == "/login"
    assert thief.get("/api/v1/whoami").status_code == 401
    assert person.get("/api/v1/whoami").status_code == 401


def test_signing_out_everywhere_and_disabling(site: Site) -> None:
    first, second = site.browser(), site.browser()
    for browser in (first, second):
        browser.post("/login", {"token": site.mint("login")})
    with site.database.transaction() as session:
        user = session.scalars(select(User).where(User.name == "ada")).one()
        access.sign_out_everywhere(session, user)
    assert first.get("/api/v1/whoami").status_code == 401
    assert second.get("/api/v1/whoami").status_code == 401
    assert site.ada.get("/whoami").status_code == 200
    with site.database.transaction() as session:
        session.execute(update(User).where(User.name == "ada").values(disabled_at=now(session)))
    assert site.ada.get("/whoami").status_code == 401


def test_forms_without_their_csrf_token_are_refused(site: Site) -> None:
    browser = site.browser()
    link = site.mint("login")
    refused = browser.http.post("/login", data={"token": link})
    assert refused.status_code == 400
    assert browser.post("/login", {"token": link}).status_code == 302
    assert browser.http.post("/logout").status_code == 400
    assert browser.get("/api/v1/whoami").status_code == 200


def test_a_session_reads_the_api_and_changes_nothing(site: Site) -> None:
    browser = site.browser()
    browser.post("/login", {"token": site.mint("login")})
    assert browser.get("/api/v1/jobs").status_code == 200
    refused = browser.http.post("/api/v1/jobs", json={})
    assert (refused.status_code, refused.json["code"]) == (401, "unauthorized")


def test_tokens_that_are_no_good(site: Site) -> None:
    expired = site.mint("personal", expires_in=timedelta(seconds=-1))
    revoked = site.mint("personal", name="ada")
    with site.database.transaction() as session:
        user = session.scalars(select(User).where(User.name == "ada")).one()
        newest = access.tokens_of(session, user.id)[0]
        access.revoke_token(session, access.actor_for(user), newest.id)
    worker, _ = site.worker()
    for secret, told in (
        (expired, "expired"),
        (revoked, "revoked"),
        ("hf_" + "0" * 40, "not a valid"),
        ("nonsense", "not a valid"),
        (worker.token, "not a valid"),
        (site.mint("login"), "not a valid"),
    ):
        refused = Door(site.app, secret).get("/whoami")
        assert refused.status_code == 401
        assert told in refused.json["detail"]
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert site.app.test_client().get("/api/v1/whoami").status_code == 401
    assert Door(site.app, site.ada.token, "/agent/v1").post("/heartbeat", {}).status_code == 401


def test_a_token_is_kept_as_its_hash_and_its_use_is_noted(site: Site) -> None:
    site.ada.get("/whoami")
    with site.database.reading() as session:
        stored = session.scalars(select(Token)).all()
        assert not any(site.ada.token in str(vars(token)) for token in stored)
        used = access.authenticate(session, site.ada.token, "personal").used_at
        assert used is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_guessing_is_slowed_down_and_good_tokens_are_not(site: Site) -> None:
    browser = site.browser()
    statuses = [browser.post("/login", {"token": "x"}).status_code for _ in range(21)]
    assert statuses == [401] * 20 + [429]
    answers = [Door(site.app, "hf_x").get("/whoami") for _ in range(121)]
    assert answers[119].status_code == 401
    assert answers[120].status_code == 429
    assert int(answers[120].headers["Retry-After"]) > 0
    assert site.ada.get("/whoami").status_code == 200


def test_every_answer_carries_the_headers(site: Site) -> None:
    for path in ("/login", "/api/v1/whoami", "/nowhere", "/healthz"):
        headers = site.app.test_client().get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src 'self' 'nonce-" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert "Strict-Transport-Security" not in headers
    first, second = (
        site.app.test_client().get("/login").headers["Content-Security-Policy"] for _ in range(2)
    )
    assert first != second


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_https_is_believed_from_the_proxy_only_when_configured(site: Site) -> None:
    config = site.settings.model_copy(update={"public_url": "https://espalier.test"})
    app = create_app(config)
    proxied = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "espalier.test"}
    answer = app.test_client().get("/login", headers=proxied)
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("__Host-espalier-")
    assert "Secure" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Path=/" in cookie
    plain = site.app.test_client().get("/login", headers=proxied)
    assert "Strict-Transport-Security" not in plain.headers
    app.extensions["espalier"].database.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_key_that_signs_cookies_is_made_once_for_its_owner_only(site: Site) -> None:
    path = site.directory / "secret_key"
    assert path.stat().st_mode & 0o777 == 0o600
    app = create_app(site.settings)
    assert app.config["SECRET_KEY"] == site.app.config["SECRET_KEY"] == path.read_text()
    app.extensions["espalier"].database.close()


def test_what_people_did_is_in_the_audit_chain(site: Site) -> None:
    site.browser().post("/login", {"token": site.mint("login")})
    site.admin.post("/workers/join-tokens")
    with site.database.reading() as session:
        actions = list(session.scalars(select(Audit.action).order_by(Audit.id)))
        assert actions[-2:] == ["session.begin", "worker.invite"]
        assert access.first_broken_audit(session) is None
    with site.database.transaction() as session:
        victim = session.scalars(select(Audit).order_by(Audit.id).offset(1)).first()
        assert victim is not None
        victim.actor = "user:somebody-else"
    with site.database.reading() as session:
        assert access.first_broken_audit(session) == victim.id


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_database_that_is_away_is_503_and_says_when_to_come_again(site: Site) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing?connect_timeout=1"
    app = create_app(site.settings.model_copy(update={"database_url": nowhere}))
    away = Door(app, site.ada.token).get("/jobs")
    assert (away.status_code, away.json["code"]) == (503, "unavailable")
    assert int(away.headers["Retry-After"]) > 0
    assert "nobody" not in away.get_data(as_text=True)
    assert app.test_client().get("/healthz").status_code == 200
    ready = app.test_client().get("/readyz")
    assert (ready.status_code, ready.json["store"]) == (503, "ok")
    assert ready.json["database"] == "OperationalError"
