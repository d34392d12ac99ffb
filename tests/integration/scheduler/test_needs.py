"""Where a job goes that is predicted not to fit everywhere, and that none waits for ever."""

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from espalier.states import ArtifactKind
from scheduler.db import now
from scheduler.models import Event, Job, ModelConfig, Worker
from scheduler.placing import estimates, needs
from tests.integration.configs import LLAMA_1B as CONFIG
from tests.integration.scheduler.stack import TRAIN, Stack

GIB = 1 << 30
#: Needs some 100 GiB as the predictor has it: rows of 2048 tokens over a large vocabulary.
WIDE = {**TRAIN, "model": "team/llama", "batch_size": 8}


@pytest.fixture
def known(stack: Stack) -> Stack:
    """A control plane that has read its model's config."""
    data = json.dumps(CONFIG).encode()
    stack.artifact("llama", ArtifactKind.MODEL, {"config.json": data})
    with stack.database.transaction() as session:
        (entry,) = stack.files(session, {"config.json": data})
        moment = now(session)
        session.add(ModelConfig(sha256=entry.sha256, facts=CONFIG, created_at=moment))
    return stack


def gives(stack: Stack, **limits: int) -> dict[str, str]:
    """Have a worker of each name that gives so many GiB; return their ids."""
    ids = {}
    for name, limit in limits.items():
        ids[name] = stack.worker(name)
        with stack.database.transaction() as session:
            worker = session.get_one(Worker, ids[name])
            worker.machine = {**worker.machine, "memory_limit": limit * GIB}
    return ids


def placed(stack: Stack) -> dict[str, str]:
    """Tick; return job → worker."""
    tickets = {ticket.attempt_id: ticket.worker_id for ticket in stack.tick()}
    with stack.database.reading() as session:
        jobs = session.query(Job).all()
        return {j.id: tickets[a.id] for j in jobs for a in j.attempts if a.id in tickets}


def notices(stack: Stack, job_id: str) -> list[str]:
    with stack.database.reading() as session:
        query = select(Event).where(Event.job_id == job_id, Event.type == "notice")
        return [event.message for event in session.scalars(query)]


def test_a_job_waits_for_a_worker_that_can_hold_it_and_holds_up_nobody(known: Stack) -> None:
    ids = gives(known, mini=8, studio=512)
    first, second = known.submit(WIDE), known.submit(WIDE)
    other = known.submit()
    found = placed(known)
    assert found == {first: ids["studio"], other: ids["mini"]}
    with known.database.reading() as session:
        assert estimates.needed(session, session.get_one(Job, first))
        assert 8 * GIB < (session.get_one(Job, second).min_memory_bytes or 0) < 512 * GIB
        assert session.get_one(Job, other).min_memory_bytes == 0, "nobody can tell"
    assert notices(known, first) == []


def test_what_fits_nowhere_goes_to_the_largest_with_a_warning(known: Stack) -> None:
    ids = gives(known, mini=4, small=6)
    job = known.submit(WIDE)
    assert placed(known) == {job: ids["small"]}
    (notice,) = notices(known, job)
    assert "no worker has more to give than small: 6.0 GiB" in notice


def test_a_worker_that_is_gone_for_long_is_not_waited_for(known: Stack) -> None:
    ids = gives(known, mini=8, studio=512)
    with known.database.transaction() as session:
        gone = now(session) - needs.PATIENCE - timedelta(minutes=1)
        session.execute(update(Worker).where(Worker.id == ids["studio"]).values(seen_at=gone))
    job = known.submit(WIDE)
    assert placed(known) == {job: ids["mini"]}


def test_what_a_job_ran_out_of_is_no_prediction(known: Stack) -> None:
    gives(known, mini=8)
    job = known.submit(WIDE)
    with known.database.transaction() as session:
        row = session.get_one(Job, job)
        row.min_memory_bytes = 16 * GIB
        row.rungs = [{"rung": "min_memory_bytes", "from": 8 * GIB, "to": 8 * GIB + 1}]
    assert placed(known) == {}


@pytest.mark.parametrize("need", [1, 15, 16, 17, 100, 5 * GIB + 3, 2**62 + 1])
def test_a_need_is_cut_by_less_than_a_sixteenth(need: int) -> None:
    assert need * 15 / 16 <= needs.rounded(need) <= need


def test_needs_fall_into_few_classes() -> None:
    classes: set[Any] = {needs.rounded(need) for need in range(GIB, 2 * GIB, 1 << 20)}
    assert len(classes) <= 2 * needs.STEPS
