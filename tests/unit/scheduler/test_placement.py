"""Placement is pure: the same queue on the same workers gives the same assignments."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scheduler.placing.placement import (
    STEP,
    Candidate,
    Capacity,
    Placement,
    Running,
    Victim,
    place,
    victims,
)

START = datetime(2026, 1, 1, tzinfo=UTC)


def _job(
    name: str,
    priority: int = 0,
    age: int = 0,
    avoid: frozenset[str] = frozenset(),
    memory: int = 0,
) -> Candidate:
    return Candidate(name, priority, START - timedelta(seconds=age), avoid, memory)


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


def test_a_job_that_fits_nowhere_holds_nobody_back() -> None:
    jobs = [_job("huge", priority=9, memory=100), _job("small", memory=5)]
    assert place(jobs, [Capacity("w", "w", 1, 10)]) == [Placement("small", "w")]


def test_big_workers_are_kept_for_those_that_need_them() -> None:
    workers = [Capacity("a", "a", 1, 64), Capacity("b", "b", 1, 16)]
    jobs = [_job("first", age=2), _job("second", age=1, memory=32)]
    assert place(jobs, workers) == [Placement("first", "b"), Placement("second", "a")]


def _near(name: str, held: dict[str, int], need: int = 10 * STEP, **more: Any) -> Candidate:
    return Candidate(name, 0, START, input_bytes=need, held=held, **more)


def test_a_job_goes_where_most_of_its_inputs_are() -> None:
    workers = [Capacity("a", "a", 9), Capacity("b", "b", 1), Capacity("c", "c", 1)]
    job = _near("1", {"b": 8 * STEP, "c": 5 * STEP})
    assert place([job], workers) == [Placement("1", "b", 8 * STEP, 10 * STEP)]


def test_memory_goes_before_nearness() -> None:
    workers = [Capacity("a", "a", 1, 64), Capacity("b", "b", 1, 16)]
    job = _near("1", {"b": 10 * STEP}, min_memory_bytes=32)
    assert place([job], workers) == [Placement("1", "a", 0, 10 * STEP)]


def test_the_worker_that_lost_a_job_gets_it_last_however_near() -> None:
    workers = [Capacity("a", "a", 1), Capacity("b", "b", 1)]
    job = _near("1", {"a": 10 * STEP}, avoid=frozenset({"a"}))
    assert place([job], workers) == [Placement("1", "b", 0, 10 * STEP)]


def test_what_travels_in_a_moment_draws_no_job_to_a_big_worker() -> None:
    workers = [Capacity("a", "a", 1, 64), Capacity("b", "b", 1, 16)]
    assert place([_near("1", {"a": STEP - 1})], workers)[0].worker_id == "b"


def test_a_full_worker_is_nobodys_however_near() -> None:
    workers = [Capacity("a", "a", 1), Capacity("b", "b", 1)]
    jobs = [_near(name, {"a": 10 * STEP}) for name in ("1", "2")]
    assert [p.worker_id for p in place(jobs, workers)] == ["a", "b"]


def test_a_placement_says_why() -> None:
    told = Placement("1", "w", 4_100_000_000, 4_300_000_000).told("studio-2")
    assert told == "Placed on studio-2: has 4.1 of 4.3 GB of its inputs."
    assert Placement("1", "w", 12, 900).told("m") == "Placed on m: has 12 of 900 B of its inputs."
    assert Placement("1", "w", 0, 900).told("m") == "Placed on m."


_jobs = st.lists(
    st.builds(
        Candidate,
        st.uuids().map(str),
        st.integers(-3, 3),
        st.integers(0, 50).map(lambda s: START + timedelta(seconds=s)),
        st.frozensets(st.sampled_from("abc")),
        st.integers(0, 4),
        st.just(4 * STEP),
        st.dictionaries(st.sampled_from("abcde"), st.integers(0, 4 * STEP), max_size=3),
    ),
    max_size=20,
    unique_by=lambda j: j.job_id,
)
_workers = st.lists(
    st.builds(
        lambda n, free, memory: Capacity(n, n, free, memory),
        st.sampled_from("abcde"),
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    max_size=5,
    unique_by=lambda w: w.worker_id,
)


def _plainly(jobs: list[Candidate], workers: list[Capacity]) -> list[Placement]:
    """What is meant, said without regard to speed."""
    free = {w.worker_id: w.free for w in workers}
    found = []
    for job in sorted(jobs, key=lambda j: (-j.priority, j.queued_at, j.job_id)):
        fitting = [
            w for w in workers if free[w.worker_id] and w.memory_bytes >= job.min_memory_bytes
        ]
        if fitting:
            best = min(
                fitting,
                key=lambda w: (
                    w.worker_id in job.avoid,
                    # Among those that failed it, nearness is not worth a look.
                    -(0 if w.worker_id in job.avoid else job.held.get(w.worker_id, 0) // STEP),
                    -free[w.worker_id],
                    w.memory_bytes,
                    w.name,
                ),
            )
            free[best.worker_id] -= 1
            have = job.held.get(best.worker_id, 0)
            found.append(Placement(job.job_id, best.worker_id, have, job.input_bytes))
    return found


@given(_jobs, _workers)
def test_every_job_gets_the_best_slot_left_whatever_the_order(
    jobs: list[Candidate], workers: list[Capacity]
) -> None:
    placed = place(jobs, workers)
    assert placed == _plainly(jobs, workers)
    assert place(list(reversed(jobs)), list(reversed(workers))) == placed


# --- Who makes room -----------------------------------------------------------------------


def _running(name: str, priority: int = 0, age: int = 0, leaving: bool = False) -> Running:
    return Running(name, "w", priority, START - timedelta(seconds=age), leaving)


def test_the_lowest_priority_goes_then_the_youngest() -> None:
    running = [_running("a", 1), _running("b", 0, age=9), _running("c", 0, age=5)]
    jobs = [_job("1", 5, age=1), _job("2", 5)]
    assert victims(jobs, running, {"w": 0}) == [Victim("c", "1"), Victim("b", "2")]


def test_who_leaves_already_is_enough() -> None:
    running = [_running("a"), _running("b", leaving=True)]
    assert victims([_job("1", 5)], running, {"w": 0}) == []
    assert victims([_job("1", 5), _job("2", 5)], running, {"w": 0}) == [Victim("a", "2")]


def test_an_equal_priority_or_a_worker_that_is_too_small_ends_nobody() -> None:
    assert victims([_job("1", 0)], [_running("a")], {"w": 0}) == []
    assert victims([_job("1", 5, memory=9)], [_running("a")], {"w": 8}) == []
    assert victims([_job("1", 5)], [_running("a")], {}) == [], "its worker gets no jobs"


_held = st.lists(
    st.builds(
        lambda n, w, p, s, leaving: Running(n, w, p, START + timedelta(seconds=s), leaving),
        st.uuids().map(str),
        st.sampled_from("abc"),
        st.integers(-3, 3),
        st.integers(0, 50),
        st.booleans(),
    ),
    max_size=12,
    unique_by=lambda r: r.attempt_id,
)


@given(_jobs, _held, st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)))
def test_nobody_ends_in_vain(
    jobs: list[Candidate], running: list[Running], memory: dict[str, int]
) -> None:
    chosen = victims(jobs, running, memory)
    assert len({v.attempt_id for v in chosen}) == len({v.job_id for v in chosen}) == len(chosen)
    by_id, urgent = {r.attempt_id: r for r in running}, {j.job_id: j for j in jobs}
    for victim in chosen:
        attempt, job = by_id[victim.attempt_id], urgent[victim.job_id]
        assert attempt.priority < job.priority
        assert not attempt.leaving
        assert memory[attempt.worker_id] >= job.min_memory_bytes
