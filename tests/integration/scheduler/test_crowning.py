"""A sweep's best checkpoint is the adapter's next version, and its alias points there at once."""

from typing import Any

from sqlalchemy import select

from espalier.messages import OutputManifest
from espalier.refs import ArtifactRef
from espalier.states import ArtifactKind
from scheduler.catalog import aliases, gates, registry
from scheduler.models import Event, Lineage, Version
from scheduler.placing.dispatch import Ticket
from tests.integration.scheduler.stack import Stack

SWEEP = {"kind": "eval", "model": "team/base", "data": "team/wikisql", "sweep": True}


def trained(stack: Stack) -> str:
    stack.worker()
    job = stack.submit(name="team/tuned")
    stack.finish(stack.claimed())
    (ref,) = stack.outputs(job)
    return ref


def swept(stack: Stack, adapter: str, **more: Any) -> tuple[str, Ticket]:
    """Submit and finish a sweep that found the weights of step 20 the best."""
    job = stack.submit({**SWEEP, "adapter": adapter, **more}, name="team/judged")
    ticket = stack.claimed()
    finish(stack, ticket)
    return job, ticket


def finish(stack: Stack, ticket: Ticket) -> Any:
    with stack.database.transaction() as session:
        weights = {"adapters.safetensors": b"step 20", "adapter_config.json": b"{}"}
        outputs = (
            OutputManifest(
                role="report",
                kind=ArtifactKind.REPORT,
                files=stack.files(session, {"a.json": b"{}"}),
            ),
            OutputManifest(
                role="best",
                kind=ArtifactKind.ADAPTER,
                files=stack.files(session, weights),
                meta={"step": 20},
            ),
        )
    return stack.finish(ticket, outputs=outputs)


def best(stack: Stack) -> str | None:
    """Return what the alias points at."""
    with stack.database.reading() as session:
        artifact = registry.find_artifact(session, "team", "tuned")
        version = registry.version_of(session, artifact, "best")
        return registry.label(version) if version else None


def told(stack: Stack, job: str) -> list[str]:
    with stack.database.reading() as session:
        notices = select(Event.message).where(Event.job_id == job, Event.type == "notice")
        return list(session.scalars(notices))


def test_the_alias_points_at_the_best_checkpoint_when_the_job_has_succeeded(stack: Stack) -> None:
    adapter = trained(stack)
    assert adapter == "team/tuned@v1"
    job, ticket = swept(stack, adapter, move_best=True)
    assert stack.outputs(job) == ["team/judged@v1", "team/tuned@v2"]
    assert best(stack) == "team/tuned@v2"
    assert told(stack, job) == ["team/tuned@best points at v2."]
    with stack.database.reading() as session:
        version = registry.resolve(session, ArtifactRef("team", "tuned", "best"))
        assert (version.meta["step"], version.role) == (20, "best")
        made_of = select(Lineage.parent_id).where(Lineage.child_id == version.id)
        parents = [session.get_one(Version, one) for one in session.scalars(made_of)]
        made = set(map(registry.label, parents))
        assert made == {"team/tuned@v1", "team/base@v1", "team/wikisql@v1"}
    again = finish(stack, ticket)  # the answer had been lost on its way
    assert again.outputs["best"] == "team/tuned@v2"
    assert len(told(stack, job)) == 1


def test_unasked_it_is_an_output_like_any_other(stack: Stack) -> None:
    job, _ = swept(stack, trained(stack))
    assert stack.outputs(job) == ["team/judged@v1", "team/judged-best@v1"]
    assert best(stack) is None


def test_a_gate_keeps_the_alias_where_it_is_and_the_job_succeeds(stack: Stack) -> None:
    adapter = trained(stack)
    with stack.database.transaction() as session:
        artifact = registry.find_artifact(session, "team", "tuned")
        first = registry.resolve(session, ArtifactRef("team", "tuned", "v1"))
        aliases.set_alias(session, stack.actor, artifact, "best", first)
        gates.set_gate(session, stack.actor, artifact, "best", data="team/wikisql")
    job, _ = swept(stack, adapter, move_best=True)
    assert stack.job(job).state == "succeeded"
    assert stack.outputs(job) == ["team/judged@v1", "team/tuned@v2"]
    assert best(stack) == "team/tuned@v1"
    (notice,) = told(stack, job)
    assert notice.startswith("The alias best was not moved: There is no eval of v2")
