"""The transition tables: complete, and with no way out of an end but the ones that are meant."""

from espalier.states import (
    ATTEMPT_LIVE,
    ATTEMPT_TRANSITIONS,
    JOB_ENDED,
    JOB_OPEN,
    JOB_TRANSITIONS,
    AttemptState,
    JobState,
)


def test_every_state_has_its_row() -> None:
    assert set(JOB_TRANSITIONS) == set(JobState)
    assert set(ATTEMPT_TRANSITIONS) == set(AttemptState)


def test_success_is_final() -> None:
    assert not JOB_TRANSITIONS[JobState.SUCCEEDED]
    assert not ATTEMPT_TRANSITIONS[AttemptState.SUCCEEDED]


def test_only_retry_leaves_an_end() -> None:
    for state in JOB_ENDED:
        assert JOB_TRANSITIONS[state] <= {JobState.QUEUED, JobState.WAITING}
    assert set(JobState) == JOB_ENDED | JOB_OPEN


def test_a_job_runs_only_from_the_queue() -> None:
    sources = {s for s, targets in JOB_TRANSITIONS.items() if JobState.RUNNING in targets}
    assert sources == {JobState.QUEUED}


def test_only_a_lost_attempt_comes_back() -> None:
    ended = set(AttemptState) - ATTEMPT_LIVE
    assert {s for s in ended if ATTEMPT_TRANSITIONS[s]} == {AttemptState.LOST}


def test_every_job_state_can_be_reached() -> None:
    seen, todo = set(), [JobState.WAITING]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo.extend(JOB_TRANSITIONS[state])
    assert seen == set(JobState)
