"""Pipelines and references: what is submitted together, pinned, and refused at the door."""

import pytest

from espalier.errors import InvalidInput, NotFound
from espalier.specs import PipelineRequest, parse
from espalier.states import JobState, Reason
from scheduler.lifecycle import submit
from scheduler.models import Job
from tests.integration.scheduler.stack import TRAIN, Stack


def _pipeline(stack: Stack) -> dict[str, str]:
    steps = [
        {"step": "train", "spec": TRAIN, "name": "team/sql"},
        {
            "step": "fuse",
            "spec": {"kind": "fuse", "model": "team/base", "adapter": "step:train"},
        },
        {"step": "quantize", "spec": {"kind": "quantize", "model": "step:fuse"}},
    ]
    with stack.database.transaction() as session:
        made = submit.submit_pipeline(
            session, stack.actor, parse(PipelineRequest, {"steps": steps})
        )
        return {str(job.step): job.id for job in made}


def test_a_pipeline_runs_in_order_each_on_what_the_last_made(stack: Stack) -> None:
    stack.worker()
    ids = _pipeline(stack)
    assert stack.job(ids["fuse"]).state == JobState.WAITING
    for step in ("train", "fuse", "quantize"):
        (ticket,) = stack.tick()
        stack.claim(ticket)
        assert stack.finish(ticket).job_state == JobState.SUCCEEDED
        assert stack.job(ids[step]).state == JobState.SUCCEEDED
    assert stack.outputs(ids["fuse"]) == ["team/sql-fused@v1"]
    assert stack.outputs(ids["quantize"]) == ["team/sql-fused-q4@v1"]


def test_proofs_are_measured_on_the_data_it_was_trained_on(stack: Stack) -> None:
    ids = _pipeline(stack)
    for step in ("fuse", "quantize"):
        assert {i.role: i.ref for i in stack.job(ids[step]).inputs}["data"] == "team/wikisql@v1"


def test_a_failure_ends_what_waited_and_a_retry_brings_it_back(stack: Stack) -> None:
    stack.worker()
    ids = _pipeline(stack)
    stack.fail(stack.claimed(), Reason.BAD_INPUT)
    for step in ("fuse", "quantize"):
        job = stack.job(ids[step])
        assert (job.state, job.reason) == (JobState.CANCELLED, Reason.UPSTREAM)
    stack.retry(ids["train"])
    states = [stack.job(ids[s]).state for s in ("train", "fuse", "quantize")]
    assert states == [JobState.QUEUED, JobState.WAITING, JobState.WAITING]


def test_retry_from_the_failed_step_keeps_what_succeeded(stack: Stack) -> None:
    stack.worker()
    ids = _pipeline(stack)
    stack.finish(stack.claimed())
    stack.fail(stack.claimed(), Reason.BAD_INPUT)
    stack.retry(ids["fuse"])
    states = [stack.job(ids[s]).state for s in ("train", "fuse", "quantize")]
    assert states == [JobState.SUCCEEDED, JobState.QUEUED, JobState.WAITING]


# --- What is refused at the door ----------------------------------------------------------


def _count(stack: Stack) -> int:
    with stack.database.reading() as session:
        return session.query(Job).count()


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ({"model": "team/bass"}, NotFound, "base"),
        ({"data": "team/base"}, InvalidInput, "data needs a dataset"),
        ({"model": "elsewhere/base"}, NotFound, "elsewhere"),
        ({"model": "job:nosuchjob"}, NotFound, "nosuchjob"),
        ({"model": "team/base@v9"}, NotFound, "v9"),
        ({"model": "step:train"}, InvalidInput, "inside a pipeline"),
    ],
)
def test_bad_references_start_nothing(
    stack: Stack, spec: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as refusal:
        stack.submit(spec)
    shown = f"{refusal.value} {getattr(refusal.value, 'hint', '')}"
    assert text in shown
    assert _count(stack) == 0


def test_an_output_of_another_kind_is_refused(stack: Stack) -> None:
    with pytest.raises(InvalidInput, match="is a model already"):
        stack.submit(name="team/base")


def test_a_pipeline_with_one_bad_step_submits_nothing(stack: Stack) -> None:
    steps = [
        {"step": "train", "spec": TRAIN},
        {"step": "eval", "spec": {"kind": "eval", "model": "team/base", "data": "team/nope"}},
    ]
    request = parse(PipelineRequest, {"steps": steps})
    with pytest.raises(NotFound), stack.database.transaction() as session:
        submit.submit_pipeline(session, stack.actor, request)
    assert _count(stack) == 0
