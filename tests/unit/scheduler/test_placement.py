"""Placement is pure: the same queue on the same workers gives the same assignments."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from scheduler.placement import Candidate, Capacity, Placement, place

START = datetime(2026, 1, 1, tzinfo=UTC)


def _job(
    name: str, priority: int = 0, age: int = 0, avoid: frozenset[str] = frozenset()
) -> Candidate:
    return Candidate(name, priority, START - timedelta(seconds=age), avoid)


def test_priority_goes_before_age() -> None:
    jobs = [_job("old", age=100), _job("urgent", priority=5)]
    assert place(jobs, [Capacity("w", "w", 1)]) == [Placement("urgent", "w")]


def test_age_goes_before_youth() -> None:
    jobs = [_job("young", age=1), _job("old", age=100)]
    assert place(jobs, [Capacity("w", "w", 1)]) == [Placement("old", "w")]


def test_work_is_spread_over_free_workers() -> None:
    workers = [Capacity("a", "a", 2), Capacity("b", "b", 2)]
    placed = place([_job("1", age=2), _job("2", age=1)], workers)
    assert {p.worker_id for p in placed} == {"a", "b"}


def test_the_worker_that_lost_a_job_gets_it_last() -> None:
    workers = [Capacity("a", "a", 3), Capacity("b", "b", 1)]
    assert place([_job("1", avoid=frozenset({"a"}))], workers) == [Placement("1", "b")]


def test_but_it_gets_it_when_it_is_the_only_one() -> None:
    assert place([_job("1", avoid=frozenset({"a"}))], [Capacity("a", "a", 1)])


_jobs = st.lists(
    st.builds(
        Candidate,
        st.uuids().map(str),
        st.integers(-3, 3),
        st.integers(0, 50).map(lambda s: START + timedelta(seconds=s)),
        st.frozensets(st.sampled_from("abc")),
    ),
    max_size=20,
    unique_by=lambda j: j.job_id,
)
_workers = st.lists(
    st.builds(lambda n, free: Capacity(n, n, free), st.sampled_from("abcd"), st.integers(0, 3)),
    max_size=4,
    unique_by=lambda w: w.worker_id,
)


@given(_jobs, _workers)
def test_no_slot_twice_no_job_twice_and_no_slot_idle(
    jobs: list[Candidate], workers: list[Capacity]
) -> None:
    placed = place(jobs, workers)
    assert len({p.job_id for p in placed}) == len(placed)
    for worker in workers:
        assert sum(p.worker_id == worker.worker_id for p in placed) <= worker.free
    assert len(placed) == min(len(jobs), sum(w.free for w in workers))
    best = sorted(jobs, key=lambda j: (-j.priority, j.queued_at, j.job_id))[: len(placed)]
    assert [p.job_id for p in placed] == [j.job_id for j in best]
    assert place(list(reversed(jobs)), list(reversed(workers))) == placed
