"""Several variants of one model: how they are called, and which one a later job takes."""

import pytest

from espalier.errors import InvalidInput
from espalier.messages import OutputManifest
from espalier.states import ArtifactKind
from scheduler.models import Job
from tests.integration.scheduler.stack import Stack

QUANTIZE = {"kind": "quantize", "model": "team/base", "data": "team/wikisql", "variants": "4 6 8"}


def _made(stack: Stack) -> str:
    """A job of three variants, the second of which is recommended."""
    stack.worker()
    job = stack.submit(QUANTIZE)
    ticket = stack.claimed()
    with stack.database.transaction() as session:
        outputs = tuple(
            OutputManifest(
                role=role,
                kind=ArtifactKind.MODEL,
                files=stack.files(session, {"model.safetensors": role.encode()}),
                meta={"recommended": role == "q6"},
            )
            for role in ("q4", "q6", "q8")
        )
    stack.finish(ticket, outputs=outputs)
    return job


def test_each_variant_is_an_artifact_and_the_recommended_one_is_taken(stack: Stack) -> None:
    job = _made(stack)
    names = {f"team/base-quantized-{role}@v1" for role in ("q4", "q6", "q8")}
    assert set(stack.outputs(job)) == names
    taken = stack.submit({"kind": "export", "model": f"job:{job}"})
    assert _input(stack, taken) == "team/base-quantized-q6"
    named = stack.submit({"kind": "export", "model": f"job:{job}#q8"})
    assert _input(stack, named) == "team/base-quantized-q8"


def _input(stack: Stack, job_id: str) -> str:
    with stack.database.reading() as session:
        (item,) = [i for i in session.get_one(Job, job_id).inputs if i.role == "model"]
        assert item.version is not None
        return f"{item.version.artifact.project.name}/{item.version.artifact.name}"


def test_calibration_is_a_data_set_of_the_store(stack: Stack) -> None:
    spec = QUANTIZE | {"variants": "gptq", "calibration": "team/wikisql"}
    job = stack.submit(spec)
    refs = {item.role: item.ref for item in stack.job(job).inputs}
    assert refs["calibration"] == "team/wikisql"
    assert stack.job(job).name == "team/base-quantized"
    single = stack.submit({"kind": "quantize", "model": "team/base", "q_mode": "nvfp4"})
    assert stack.job(single).name == "team/base-nvfp4"


def test_names_of_variants_are_judged_before_hours_of_work(stack: Stack) -> None:
    _made(stack)
    stack.submit({"kind": "train", "model": "team/base", "data": "team/wikisql"}, name="team/x")
    stack.finish(stack.claimed())
    with pytest.raises(InvalidInput, match="team/x is a adapter already"):
        stack.submit(QUANTIZE, name="team/x")
    stack.submit({"kind": "train", "model": "team/base", "data": "team/wikisql"}, name="team/y-q8")
    stack.finish(stack.claimed())
    with pytest.raises(InvalidInput, match="team/y-q8 is a adapter already"):
        stack.submit(QUANTIZE, name="team/y")
    assert stack.submit(QUANTIZE | {"publish": "recommended"}, name="team/y")
    with pytest.raises(InvalidInput, match="use 1 to 96"):
        stack.submit(QUANTIZE, name="team/" + "y" * 96)
