"""Gated aliases: what evals measured decides where an alias may go, on both databases.

Versions and measurements come about as they do for people: jobs are submitted, placed, claimed,
reported on and finished.
"""

import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from espalier.errors import Conflict, Forbidden, GateRefused, InvalidInput
from espalier.messages import MetricsEvent, ProofEvent
from espalier.refs import ArtifactRef
from espalier.states import ArtifactKind
from scheduler import access
from scheduler.access import Actor, actor_for
from scheduler.catalog import aliases, gates, registry
from scheduler.db import Database
from scheduler.models import Alias, Artifact, Audit, Gate, Version
from tests.integration.scheduler.stack import Stack

DATA = "team/wikisql@v1"


class Lab:
    """A stack with one worker that trains and evaluates whatever is asked for."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        stack.worker()

    def train(self, **spec: Any) -> str:
        """Run a training to its end; return its adapter's reference."""
        job = self.stack.submit(spec, name="team/tuned")
        self.stack.finish(self.stack.claimed())
        (ref,) = self.stack.outputs(job)
        return ref

    def evaluate(
        self, ref: str, loss: float, *, proof: bool | None = True, data: str = DATA, **spec: Any
    ) -> str:
        """Run an eval of an adapter that measures ``loss``; return the job's id."""
        wanted = {"kind": "eval", "model": "team/base", "adapter": ref, "data": data, **spec}
        job = self.stack.submit({name: value for name, value in wanted.items() if value})
        ticket = self.stack.claimed()
        measured = MetricsEvent(step=10, values={"test_loss": loss, "perplexity": 9.0}, time=1.0)
        held = ProofEvent(name="perplexity_below_base", value=9.0, limit=8.0, ok=proof, time=2.0)
        self.stack.report(ticket, events=(measured, held))
        self.stack.finish(ticket)
        return job

    def gate(self, alias: str = "production", actor: Actor | None = None, **asked: Any) -> None:
        with self.stack.database.transaction() as session:
            artifact = registry.find_artifact(session, "team", "tuned")
            given = {"data": "team/wikisql", "min_delta": 0.02, **asked}
            gates.set_gate(session, actor or self.stack.actor, artifact, alias, **given)

    def move(self, ref: str, alias: str = "production", actor: Actor | None = None) -> None:
        with self.stack.database.transaction() as session:
            artifact = registry.find_artifact(session, "team", "tuned")
            version = registry.resolve(session, ArtifactRef("team", "tuned", ref))
            aliases.set_alias(session, actor or self.stack.actor, artifact, alias, version)

    def rollback(self, alias: str = "production") -> None:
        with self.stack.database.transaction() as session:
            artifact = registry.find_artifact(session, "team", "tuned")
            aliases.rollback(session, self.stack.actor, artifact, alias)

    def at(self, alias: str = "production") -> str | None:
        with self.stack.database.reading() as session:
            number = select(Version.number).join(Alias, Alias.version_id == Version.id)
            found = session.scalar(number.where(Alias.name == alias))
            return f"v{found}" if found else None

    def moves(self, alias: str = "production") -> list[tuple[str, str | None, str | None, str]]:
        with self.stack.database.reading() as session:
            artifact = registry.find_artifact(session, "team", "tuned")
            return [
                (
                    move.why,
                    f"v{move.before.number}" if move.before else None,
                    f"v{move.after.number}" if move.after else None,
                    move.detail,
                )
                for move in aliases.history(session, artifact, alias)
            ]


@pytest.fixture
def lab(database: Database, tmp_path: Path) -> Lab:
    return Lab(Stack.make(database, tmp_path))


def test_a_worse_model_is_refused_by_how_much_a_better_one_moves_and_goes_back(lab: Lab) -> None:
    one, two, three = lab.train(), lab.train(seed=1), lab.train(seed=2)
    lab.gate()
    with pytest.raises(GateRefused) as missing:
        lab.move("v1")
    assert missing.value.detail == (
        "There is no eval of v1 on team/wikisql@v1: run"
        " `espalier eval --model team/base@v1 --adapter team/tuned@v1 --data team/wikisql@v1`."
    )
    first = lab.evaluate(one, 1.81)
    lab.move("v1")
    lab.evaluate(two, 1.92)
    with pytest.raises(GateRefused) as worse:
        lab.move("v2")
    assert worse.value.detail == (
        "test_loss 1.92 is 0.11 worse than production's 1.81 (v1) on team/wikisql@v1;"
        " it has to be at least 0.02 better."
    )
    lab.evaluate(three, 1.80)
    with pytest.raises(GateRefused, match=r"1\.8 is 0\.01 better than production's 1\.81 \(v1\)"):
        lab.move("v3")
    assert lab.at() == "v1"
    better = lab.evaluate(three, 1.79)  # measured again: the newest counts
    lab.move("v3")
    assert lab.at() == "v3"
    lab.rollback()
    assert lab.at() == "v1"
    measured = "test_loss 1.79 is 0.02 better than production's 1.81 (v1) on team/wikisql@v1"
    assert lab.moves() == [
        ("rollback", "v3", "v1", "Back from v3 to v1."),
        ("set", "v1", "v3", f"{measured}; jobs {better} and {first}."),
        (
            "set",
            None,
            "v1",
            f"test_loss 1.81 on team/wikisql@v1 (job {first}); production pointed at nothing"
            " before.",
        ),
    ]


def test_a_proof_that_failed_is_named(lab: Lab) -> None:
    one = lab.train()
    lab.gate()
    job = lab.evaluate(one, 1.0, proof=False)
    with pytest.raises(GateRefused) as refused:
        lab.move("v1")
    assert refused.value.detail == (
        f"A proof of v1 does not hold: perplexity_below_base is 9, the limit 8 (job {job})."
    )
    lab.gate(proofs=False)
    lab.move("v1")
    assert lab.at() == "v1"


def test_only_what_was_measured_alike_is_compared(lab: Lab) -> None:
    one, two = lab.train(), lab.train(seed=1)
    lab.evaluate(one, 1.8)
    lab.gate()
    lab.move("v1")
    with pytest.raises(GateRefused, match=r"no eval of v2 on team/wikisql@v1: run .*@v1`"):
        lab.move("v2")
    lab.evaluate(two, 1.1, test_batches=5, seed=3)
    with pytest.raises(GateRefused) as refused:
        lab.move("v2")
    assert refused.value.detail == (
        "There is no eval of v1 on team/wikisql@v1 that was measured like v2's: run `espalier eval"
        " --model team/base@v1 --adapter team/tuned@v1 --data team/wikisql@v1 --test-batches 5"
        " --seed 3`."
    )
    lab.evaluate(two, 1.1, split="valid")
    with pytest.raises(GateRefused, match="measured like"):
        lab.move("v2")
    lab.evaluate(one, 1.2, test_batches=5, seed=3)
    third = lab.train(seed=2)
    with pytest.raises(GateRefused, match=r"like v1's: .*--test-batches 5 --seed 3`"):
        lab.move("v3")
    assert third == "team/tuned@v3"
    lab.move("v2")
    assert lab.at() == "v2"


def test_an_eval_that_has_not_ended_is_named(lab: Lab) -> None:
    one = lab.train()
    lab.gate()
    spec = {"kind": "eval", "model": "team/base", "adapter": one, "data": DATA}
    job = lab.stack.submit(spec)
    with pytest.raises(GateRefused, match=f"job {job}, is queued: try again"):
        lab.move("v1")


def test_data_that_changes_later_is_another_version(lab: Lab) -> None:
    one = lab.train()
    lab.gate()
    lab.stack.artifact("wikisql", ArtifactKind.DATASET, {"train.jsonl": b'{"text": "y"}\n'})
    lab.evaluate(one, 1.0, data="team/wikisql@v2")
    with pytest.raises(GateRefused, match=r"no eval of v1 on team/wikisql@v1"):
        lab.move("v1")


def test_a_measurement_that_is_no_number_passes_nothing(lab: Lab) -> None:
    one = lab.train()
    lab.gate(metric="exact_match")
    job = lab.evaluate(one, 1.0)
    with pytest.raises(GateRefused, match=f"Job {job}, the eval of v1, has no exact_match"):
        lab.move("v1")


def test_members_meet_the_gate_and_owners_set_it(lab: Lab) -> None:
    one = lab.train()
    with lab.stack.database.transaction() as session:
        ada = access.create_user(session, "ada")
        project = access.project_for(session, lab.stack.actor, "team")
        access.add_member(session, project, ada.id)
        member = actor_for(ada)
    with pytest.raises(Forbidden, match="Only an owner of team"):
        lab.gate(actor=member)
    lab.gate()
    lab.evaluate(one, 1.0)
    lab.move("v1", actor=member)
    with lab.stack.database.transaction() as session:
        artifact = registry.find_artifact(session, "team", "tuned")
        with pytest.raises(Forbidden):  # set anew, it would have nothing to beat
            aliases.remove_alias(session, member, artifact, "production")
        with pytest.raises(Forbidden):
            gates.remove_gate(session, member, artifact, "production")
        gates.remove_gate(session, lab.stack.actor, artifact, "production")
        aliases.remove_alias(session, member, artifact, "production")
    with lab.stack.database.reading() as session:
        assert session.scalars(select(Gate)).all() == []
        told = session.scalars(select(Audit.action).order_by(Audit.id.desc()).limit(2)).all()
        assert told == ["alias.remove", "gate.remove"]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"metric": "beauty"}, "no metric 'beauty'"),
        ({"min_delta": -0.1}, "no distance"),
        ({"min_delta": float("nan")}, "no distance"),
        ({"data": "team/base"}, "evals measure on a data set"),
    ],
)
def test_a_gate_that_nothing_could_pass_is_refused(
    lab: Lab, asked: dict[str, Any], why: str
) -> None:
    lab.train()
    with pytest.raises(InvalidInput, match=why):
        lab.gate(**asked)


def test_what_no_eval_measures_has_no_gate(lab: Lab) -> None:
    with lab.stack.database.transaction() as session:
        data = registry.find_artifact(session, "team", "wikisql")
        with pytest.raises(InvalidInput, match="no eval measures one"):
            gates.set_gate(session, lab.stack.actor, data, "production", data=DATA)


def test_a_model_is_measured_without_an_adapter(lab: Lab) -> None:
    with lab.stack.database.transaction() as session:
        base = registry.find_artifact(session, "team", "base")
        gates.set_gate(session, lab.stack.actor, base, "production", data=DATA)
    lab.evaluate(lab.train(), 0.5)  # of an adapter on the base: says nothing about the base

    def move() -> None:
        with lab.stack.database.transaction() as session:
            base = session.scalars(select(Artifact).where(Artifact.name == "base")).one()
            version = registry.head(session, base)
            assert version is not None
            aliases.set_alias(session, lab.stack.actor, base, "production", version)

    with pytest.raises(GateRefused, match="run `espalier eval --model team/base@v1 --data"):
        move()
    lab.evaluate("", 2.0)
    move()
    assert lab.at() == "v1"


def test_rolled_back_twice_it_goes_one_further_and_passes_over_what_was_deleted(lab: Lab) -> None:
    for seed in range(4):
        lab.train(seed=seed)
    for ref in ("v1", "v2", "v3", "v4"):
        lab.move(ref)
    with lab.stack.database.transaction() as session:
        artifact = registry.find_artifact(session, "team", "tuned")
        third = registry.resolve(session, ArtifactRef("team", "tuned", "v3"))
        third.deleted_at = third.created_at
        assert aliases.before(session, artifact, "production") is not third
    lab.rollback()
    assert lab.at() == "v2"
    lab.rollback()
    assert lab.at() == "v1"
    with pytest.raises(Conflict, match="nothing before"):
        lab.rollback()
    lab.move("v4")
    with lab.stack.database.transaction() as session:
        artifact = registry.find_artifact(session, "team", "tuned")
        aliases.remove_alias(session, lab.stack.actor, artifact, "production")
    lab.rollback()
    assert lab.at() == "v4", "what was removed comes back"


def test_of_two_that_move_it_from_the_same_place_one_does(lab: Lab) -> None:
    for seed in range(3):
        lab.train(seed=seed)
    lab.move("v1")
    together, ended = threading.Barrier(2, timeout=60), []

    def move(ref: str) -> None:
        together.wait()
        try:
            with lab.stack.database.transaction() as session:
                artifact = registry.find_artifact(session, "team", "tuned")
                version = registry.resolve(session, ArtifactRef("team", "tuned", ref))
                aliases.set_alias(
                    session, lab.stack.actor, artifact, "production", version, expected="v1"
                )
            ended.append(ref)
        except Conflict as error:
            ended.append(error.code)

    threads = [threading.Thread(target=move, args=(ref,)) for ref in ("v2", "v3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(ended) in (["conflict", "v2"], ["conflict", "v3"])
    assert lab.at() in ended
