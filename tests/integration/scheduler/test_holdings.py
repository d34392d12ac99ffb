"""Who holds what, on both databases: told by workers, used for placement and by their siblings."""

import time
from collections.abc import Iterable
from datetime import timedelta

import pytest
from sqlalchemy import select

from espalier import tickets
from espalier.messages import CheckpointPublished, Heartbeat, Hello
from espalier.settings import Settings
from espalier.states import ArtifactKind
from scheduler.db import now
from scheduler.lifecycle import ingest
from scheduler.models import Event, VersionFile, Worker, WorkerBlob
from scheduler.placing import fleet, holdings
from scheduler.placing.placement import STEP
from tests.integration.scheduler.stack import MACHINE, Stack

CONFIG = Settings(broker_url="redis://unused")
A, B, C = "a" * 64, "b" * 64, "c" * 64
KEY = "k" * 64


def hello(stack: Stack, name: str, blobs: dict[str, int] | None, **more: object) -> str:
    """Make a worker, or start it again, with this in its cache."""
    worker_id = stack.worker(name)
    boot = f"boot-of-{name}"
    message = Hello.model_validate(
        {"boot_id": boot, "machine": MACHINE.model_dump(), "blobs": blobs, **more}
    )
    with stack.at_work(worker_id) as (session, worker):
        fleet.hello(session, worker, message, CONFIG)
    stack.boots[worker_id] = boot
    return worker_id


def beat(stack: Stack, worker_id: str, **content: object) -> None:
    message = Heartbeat.model_validate({"boot_id": stack.boots[worker_id], **content})
    with stack.at_work(worker_id) as (session, worker):
        fleet.heartbeat(session, worker, message, CONFIG)


def held(stack: Stack, worker_id: str) -> dict[str, int]:
    with stack.database.reading() as session:
        rows = select(WorkerBlob.sha256, WorkerBlob.size).where(WorkerBlob.worker_id == worker_id)
        return dict(session.execute(rows).all())


def files_of(stack: Stack, names: Iterable[str] = ("config.json",)) -> dict[str, int]:
    """The blobs of the inputs' files of these paths."""
    with stack.database.reading() as session:
        rows = session.scalars(select(VersionFile).where(VersionFile.path.in_(list(names))))
        return {row.sha256: row.size for row in rows}


# --- What is told ---------------------------------------------------------------------------


def test_a_hello_replaces_and_heartbeats_change(stack: Stack) -> None:
    worker_id = hello(stack, "studio-1", {A: 1, B: 2})
    assert held(stack, worker_id) == {A: 1, B: 2}
    for _ in range(2):  # the answer was lost, and it is told again
        beat(stack, worker_id, added={C: 3, A: 1}, removed=[B])
        assert held(stack, worker_id) == {A: 1, C: 3}
    beat(stack, worker_id)
    assert held(stack, worker_id) == {A: 1, C: 3}
    beat(stack, worker_id, blobs={B: 2})
    assert held(stack, worker_id) == {B: 2}
    hello(stack, "studio-1", {C: 3})
    assert held(stack, worker_id) == {C: 3}


def test_a_worker_that_does_not_tell_holds_nothing_known(stack: Stack) -> None:
    worker_id = hello(stack, "studio-1", {A: 1}, shares_url="http://a:1", shares_key=KEY)
    hello(stack, "studio-1", None)  # an older version was installed
    assert held(stack, worker_id) == {}
    with stack.database.reading() as session:
        worker = session.get_one(Worker, worker_id)
        assert (worker.shares_url, worker.shares_key) == (None, None)


def test_of_a_worker_that_is_gone_nothing_is_kept(stack: Stack) -> None:
    here, gone, revoked = (hello(stack, name, {A: 10}) for name in ("here", "gone", "revoked"))
    with stack.database.transaction() as session:
        limit = now(session) - timedelta(days=7)
        session.get_one(Worker, gone).seen_at = limit - timedelta(days=1)
        session.get_one(Worker, revoked).revoked_at = now(session)
        holdings.forget(session, limit)
    assert [held(stack, worker) for worker in (here, gone, revoked)] == [{A: 10}, {}, {}]


def test_of_too_many_the_largest_are_kept(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "MAX_HOLDINGS", 2)
    worker_id = hello(stack, "studio-1", {A: 1, B: 3, C: 2})
    assert held(stack, worker_id) == {B: 3, C: 2}


# --- Placement ------------------------------------------------------------------------------


@pytest.fixture
def big(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """Every byte counts: the inputs of these tests are small."""
    monkeypatch.setattr("scheduler.placing.placement.STEP", 1)
    return stack


def test_a_job_goes_where_its_inputs_are_and_says_so(big: Stack) -> None:
    big.worker("studio-1", slots=4)
    near = hello(big, "studio-2", files_of(big))
    job_id = big.submit()
    (ticket,) = big.tick()
    assert ticket.worker_id == near
    with big.database.reading() as session:
        placed = session.scalar(select(Event).where(Event.job_id == job_id, Event.type == "placed"))
        assert placed is not None
        need = sum(files_of(big, ("config.json", "train.jsonl")).values())
        assert placed.message == f"Placed on studio-2: has 2 of {need} B of its inputs."
        assert placed.data == {"held_bytes": 2, "input_bytes": need}


def test_a_checkpoint_draws_its_job_back(big: Stack) -> None:
    first, second = big.worker("studio-1"), big.worker("studio-2")
    job_id = big.submit()
    ticket = big.claimed()
    other = second if ticket.worker_id == first else first
    with big.at_work(ticket.worker_id) as (session, worker):
        files = big.files(session, {"state.safetensors": b"x" * 5000})
        message = CheckpointPublished(boot_id=big.boots[worker.id], step=5, files=files)
        ingest.checkpoint(session, worker, ticket.attempt_id, message)
    beat(big, other, added={files[0].sha256: files[0].size})
    with big.database.transaction() as session:
        big.lose(session, ticket)
    big.let_pass(3600)
    (again,) = big.tick()
    assert again.worker_id == other
    assert big.job(job_id).attempts


def test_what_is_held_by_nobody_who_is_there_is_not_counted(big: Stack) -> None:
    hello(big, "studio-1", {A: 1})
    big.submit()
    assert len(big.tick()) == 1
    assert STEP == 16 << 20  # the constant itself was not changed for everybody


# --- Siblings -------------------------------------------------------------------------------


def shared(stack: Stack, size: int = holdings.SHARED_FROM) -> str:
    """Publish a model with one large file; return its sha256."""
    stack.artifact("large", ArtifactKind.MODEL, {"model.safetensors": b"\1" * size})
    (sha256,) = files_of(stack, ["model.safetensors"])
    return sha256


def test_a_claim_names_siblings_that_hold_what_is_lacking(stack: Stack) -> None:
    sha256 = shared(stack)
    there = {sha256: holdings.SHARED_FROM}
    for n in (2, 3, 4):
        more = {"shares_url": f"http://10.0.0.{n}:7", "shares_key": f"{n}" * 64}
        sharing = hello(stack, f"studio-{n}", there, **more)
        with stack.at_work(sharing) as (_, worker):
            worker.draining = True  # it gets no jobs, and still gives
    hello(stack, "silent", there)
    worker_id = stack.worker("studio-1")
    with stack.database.transaction() as session:
        silent = session.scalars(select(Worker).where(Worker.name == "silent")).one()
        silent.draining = True
    stack.submit({"model": "team/large"})
    (ticket,) = stack.tick()
    assert ticket.worker_id == worker_id
    found = stack.claim(ticket).sources
    assert len(found) == holdings.SIBLINGS
    assert {one.sha256 for one in found} == {sha256}
    assert {one.name for one in found} <= {"studio-2", "studio-3", "studio-4"}
    for one in found:
        assert tickets.is_good(one.name[-1] * 64, sha256, one.ticket, time.time())
        assert not tickets.is_good(one.name[-1] * 64, sha256, one.ticket, time.time() + 86400)
    assert KEY not in stack.claim(ticket).model_dump_json()


def test_nobody_is_named_for_what_is_small_or_here_or_by_who_is_away(stack: Stack) -> None:
    sha256 = shared(stack)
    more = {"shares_url": "http://10.0.0.2:7", "shares_key": KEY}
    sibling = hello(stack, "studio-2", {sha256: holdings.SHARED_FROM, **files_of(stack)}, **more)
    with stack.at_work(sibling) as (_, worker):
        worker.draining = True
    mine = stack.worker("studio-1")
    stack.submit({"model": "team/large"})
    (ticket,) = stack.tick()
    assert [one.sha256 for one in stack.claim(ticket).sources] == [sha256]
    beat(stack, mine, added={sha256: holdings.SHARED_FROM})
    assert stack.claim(ticket).sources == ()
    beat(stack, mine, removed=[sha256])
    with stack.at_work(sibling) as (_, worker):
        worker.seen_at = None
    assert stack.claim(ticket).sources == ()
