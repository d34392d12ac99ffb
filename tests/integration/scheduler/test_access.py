"""Tokens, passwords, projects and the audit chain, on both databases."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import delete, func, select

from espalier.errors import Conflict, Forbidden, InvalidInput, NotFound, Unauthorized
from scheduler import access
from scheduler.access import TOKEN, Actor, actor_for
from scheduler.db import Database
from scheduler.models import Audit, Project, Token, User


def user(database: Database, name: str = "ada", *, is_admin: bool = False) -> User:
    with database.transaction() as session:
        return access.create_user(session, name, is_admin)


def test_labels_name_the_actor() -> None:
    assert Actor("1", "ada").label == "user:ada"
    assert Actor(None, "studio-1", worker_id="2").label == "worker:studio-1"
    assert access.SYSTEM.label == "system"


def test_the_first_run_makes_an_admin_and_a_project_once(database: Database) -> None:
    for _ in range(2):
        with database.transaction() as session:
            admin = access.ensure_first_run(session)
            assert (admin.name, admin.is_admin) == ("admin", True)
            assert [p.name for p in access.projects_of(session, actor_for(admin))] == ["team"]
    with database.reading() as session:
        assert session.scalar(select(func.count(User.id))) == 1


def test_a_token_is_shown_once_and_kept_as_its_hash(database: Database) -> None:
    ada = user(database)
    with database.transaction() as session:
        secret = access.mint(session, "personal", user=ada, name="laptop")
    assert TOKEN.fullmatch(secret)
    with database.reading() as session:
        token = access.authenticate(session, secret, "personal")
        assert token.user is not None
        assert (token.user.name, token.name) == ("ada", "laptop")
        assert secret not in str([vars(row) for row in session.scalars(select(Token))])
    with pytest.raises(ValueError, match="belongs to a worker"), database.transaction() as session:
        access.mint(session, "worker", user=ada)


def test_every_reason_to_refuse_a_token(database: Database) -> None:
    ada = user(database)
    with database.transaction() as session:
        late = access.mint(session, "personal", user=ada, expires_in=timedelta(seconds=-1))
        gone = access.mint(session, "personal", user=ada)
        row = access.authenticate(session, gone, "personal")
        access.revoke_token(session, actor_for(ada), row.id)
        link = access.mint(session, "login", user=ada)
    for secret, kind, told in (
        (late, "personal", "expired"),
        (gone, "personal", "revoked"),
        (link, "personal", "not a valid personal token"),
        ("hf_" + "0" * 40, "personal", "not a valid"),
        ("\udce4", "personal", "not a valid"),
        ("", "personal", "not a valid"),
    ):
        with pytest.raises(Unauthorized, match=told), database.reading() as session:
            access.authenticate(session, secret, kind)  # type: ignore[arg-type]


def test_of_many_who_redeem_at_once_one_succeeds(database: Database) -> None:
    ada = user(database)
    with database.transaction() as session:
        link = access.mint(session, "login", user=ada)
    start = threading.Barrier(6)
    outcomes: list[str] = []

    def redeem() -> None:
        start.wait()
        try:
            with database.transaction() as session:
                access.redeem(session, link, "login")
            outcomes.append("in")
        except Unauthorized:
            outcomes.append("out")

    threads = [threading.Thread(target=redeem) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in"] + ["out"] * 5


def test_others_tokens_cannot_be_revoked(database: Database) -> None:
    ada, eve = user(database), user(database, "eve")
    root = user(database, "root", is_admin=True)
    with database.transaction() as session:
        secret = access.mint(session, "personal", user=ada)
        token_id = access.authenticate(session, secret, "personal").id
    with pytest.raises(NotFound), database.transaction() as session:
        access.revoke_token(session, actor_for(eve), token_id)
    with database.transaction() as session:
        access.revoke_token(session, actor_for(root), token_id)
        assert access.tokens_of(session, ada.id) == []


def test_passwords(database: Database) -> None:
    ada = user(database)
    with database.transaction() as session:
        session.add(ada)
        secret = access.mint(session, "session", user=ada)
        access.set_password(session, ada, "correct horse battery")
        assert ada.password_hash is not None
        assert ada.password_hash.startswith("$argon2id$")
        with pytest.raises(Unauthorized):  # a new password ends the sessions
            access.authenticate(session, secret, "session")
        assert access.check_password(session, "ada", "correct horse battery").id == ada.id
        for name, password in (("ada", "correct horse"), ("eve", "correct horse battery")):
            with pytest.raises(Unauthorized, match="do not match"):
                access.check_password(session, name, password)
        for bad in ("short", "x" * 513):
            with pytest.raises(InvalidInput, match="12 to 512"):
                access.set_password(session, ada, bad)


def test_names_of_people(database: Database) -> None:
    user(database)
    with database.transaction() as session:
        with pytest.raises(Conflict):
            access.create_user(session, "ADA")
        with pytest.raises(InvalidInput):
            access.create_user(session, "../ada")


def test_a_foreign_project_reads_like_none(database: Database) -> None:
    ada, eve = (actor_for(user(database, name)) for name in ("ada", "eve"))
    root = actor_for(user(database, "root", is_admin=True))
    with database.transaction() as session:
        vision = access.project_for(session, ada, "vision", create=True)
        access.project_for(session, eve, "video", create=True)
    with database.transaction() as session:
        assert access.project_for(session, ada, "vision").id == vision.id
        assert access.project_for(session, root, "vision").id == vision.id
        refusals = []
        for name in ("vision", "absent"):
            with pytest.raises(NotFound) as refused:
                access.project_for(session, eve, name)
            refusals.append(refused.value.detail.replace(name, "X"))
            assert "video" in str(refused.value.hint)
        assert refusals[0] == refusals[1]
        with pytest.raises(NotFound):  # nor can its name be taken
            access.project_for(session, eve, "VISION", create=True)
        with pytest.raises(InvalidInput):
            access.project_for(session, ada, "api", create=True)
        assert access.may_see(session, ada, vision.id)
        assert not access.may_see(session, eve, vision.id)
        access.add_member(session, vision, str(eve.user_id))
        assert access.project_for(session, eve, "vision").id == vision.id
        assert session.scalar(select(func.count(Project.id))) == 2
    with pytest.raises(Forbidden):
        access.require_admin(eve)


def test_the_audit_chain_holds_under_concurrency_and_shows_tampering(database: Database) -> None:
    with database.transaction() as session:
        access.audit(session, access.SYSTEM, "first", "x", {"n": 1.5, "text": "ü"})
    start = threading.Barrier(4)

    def write(n: int) -> None:
        start.wait()
        for i in range(5):
            with database.transaction() as session:
                access.audit(session, Actor("1", f"p{n}"), "act", f"s{i}", {"i": i})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.transaction() as session:
        rows = list(session.scalars(select(Audit).order_by(Audit.id)))
        assert len(rows) == 21
        assert access.first_broken_audit(session) is None
        rows[7].data = {"i": 99}
    with database.transaction() as session:
        assert access.first_broken_audit(session) == rows[7].id
        session.execute(delete(Audit).where(Audit.id == rows[7].id))
    with database.reading() as session:
        assert access.first_broken_audit(session) == rows[8].id
