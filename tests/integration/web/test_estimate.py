"""What a job needs, over the API: facts from the store, the workers, what earlier jobs took."""

import json
from typing import Any

import pytest
from sqlalchemy import func, select

from espalier.states import AttemptState
from scheduler.db import now
from scheduler.models import Attempt, Job, ModelConfig, Worker
from scheduler.placing import estimates
from tests.integration.configs import LLAMA_1B as CONFIG
from tests.integration.web.site import DATASET, MODEL, Site, safetensors

GIB = 1 << 30
SPEC = {"kind": "train", "model": "team/base", "data": "team/sql", "batch_size": 8}


def publish(site: Site, config: Any, folder: str = "m") -> None:
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    files = {**MODEL, "config.json": data, "model.safetensors": safetensors({"w": [1024, 1024]})}
    made = site.ada.publish(site.directory / folder, "team/base", "model", files)
    assert made.status_code == 201, made.json


@pytest.fixture
def ready(site: Site) -> Site:
    publish(site, CONFIG)
    rows = {path: lines * 2 for path, lines in DATASET.items()}  # a batch of 8 in each split
    site.ada.publish(site.directory / "d", "team/sql", "dataset", rows)
    return site


def explained(site: Site, **spec: Any) -> dict[str, Any]:
    return answered(site, {"spec": {**SPEC, **spec}})


def answered(site: Site, body: dict[str, Any]) -> dict[str, Any]:
    answer = site.ada.post("/estimate", body)
    assert answer.status_code == 200, answer.json
    found: dict[str, Any] = answer.get_json()
    return found


def submitted(site: Site, spec: dict[str, Any]) -> str:
    answer: Any = site.ada.post("/jobs", {"spec": spec}).json
    return str(answer["id"])


def gives(site: Site, **limits: int) -> None:
    """Have a worker of each name that gives so many GiB."""
    for name, limit in limits.items():
        site.worker(name)
        with site.database.transaction() as session:
            worker = session.scalars(select(Worker).where(Worker.name == name)).one()
            worker.machine = {**worker.machine, "memory_limit": limit * GIB, "chip": f"{name} chip"}


def test_an_estimate_tells_parts_workers_and_the_change_that_helps(ready: Site) -> None:
    alone = explained(ready)
    assert alone["known"]
    assert alone["needs"] == sum(part["bytes"] for part in alone["parts"])
    assert "no worker has joined" in alone["summary"]
    needs = alone["needs"] // GIB
    assert needs > 4, alone
    gives(ready, mini=needs - 2, studio=needs + 2)
    found = explained(ready)
    assert {w["name"]: w["fits"] for w in found["workers"]} == {"studio": True, "mini": False}
    assert found["change"] is None
    assert "Fits studio, not mini" in found["summary"]

    larger = explained(ready, batch_size=64)
    change = larger["change"]
    assert not any(w["fits"] for w in larger["workers"])
    assert change["needs"] <= (needs + 2) * GIB < larger["needs"]
    again = explained(ready, batch_size=64, **{change["setting"]: change["after"]})
    assert again["needs"] == change["needs"], "what was promised is what is then said"
    with ready.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0, "nothing was submitted"


def test_get_takes_a_job_or_a_spec(ready: Site) -> None:
    posted = explained(ready)
    spec = json.dumps(SPEC)
    assert ready.ada.get("/estimate", query_string={"spec": spec}).json == posted
    job = submitted(ready, SPEC)
    assert ready.ada.get("/estimate", query_string={"job": job}).json == posted
    with ready.database.reading() as session:
        assert estimates.needed(session, session.get_one(Job, job)) == posted["needs"]
    assert ready.eve.get("/estimate", query_string={"job": job}).status_code == 404
    assert ready.eve.post("/estimate", {"spec": SPEC}).status_code == 404
    for query in ({}, {"job": job, "spec": spec}, {"spec": "{"}, {"spec": "[" * 9000}):
        assert ready.ada.get("/estimate", query_string=query).status_code == 422, query


def test_shorter_rows_need_less(ready: Site) -> None:
    body = {"spec": SPEC, "longest": 100}
    assert answered(ready, body)["needs"] < explained(ready)["needs"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**CONFIG, "model_type": "mamba"},
        {**CONFIG, "hidden_size": -5},
        {**CONFIG, "num_hidden_layers": 10**40},
        {**CONFIG, "vocab_size": "many"},
        {**CONFIG, "quantization": {"bits": {"deep": 4}}},
    ],
)
def test_a_strange_config_is_said_to_be_unknown(site: Site, config: Any) -> None:
    site.with_inputs()
    publish(site, config, "strange")
    site.worker("studio")
    found = explained(site)
    assert (found["known"], found["needs"]) == (False, None)
    assert found["why"] in found["summary"]
    assert [worker["fits"] for worker in found["workers"]] == [None]
    job = site.submit()
    with site.database.reading() as session:
        assert estimates.needed(session, session.get_one(Job, job)) is None


def test_measured_jobs_correct_the_next_estimate(ready: Site) -> None:
    before = explained(ready)
    gives(ready, studio=512)
    for factor in (1.2, 1.5, 9.0):
        job = submitted(ready, SPEC)
        with ready.database.transaction() as session:
            worker = session.scalars(select(Worker)).one()
            session.add(
                Attempt(
                    job_id=job,
                    worker_id=worker.id,
                    number=1,
                    state=AttemptState.SUCCEEDED,
                    placed_at=now(session),
                    finished_at=now(session),
                    peak_memory_bytes=int(before["needs"] * factor),
                )
            )
    found = explained(ready)
    assert found["correction"] == {"ratio": pytest.approx(1.5), "attempts": 3, "chip": None}
    assert found["needs"] == pytest.approx(1.5 * before["needs"], rel=1e-6)
    assert found["workers"][0]["correction"]["chip"] == "studio chip"
    other = answered(ready, {"spec": {"kind": "eval", "model": "team/base", "data": "team/sql"}})
    assert other["correction"] is None, "another kind of job has its own"


def test_a_model_that_a_job_will_make_is_known_before_it_is_made(ready: Site) -> None:
    spec = {"kind": "quantize", "model": "team/base"}
    first = submitted(ready, spec)
    explained(ready)  # reads the config
    whole = explained(ready)
    quantized = explained(ready, model=f"job:{first}")
    sizes = [
        next(p["bytes"] for p in e["parts"] if p["name"] == "activations")
        for e in (whole, quantized)
    ]
    assert quantized["known"]
    assert sizes[0] == sizes[1]


def test_a_config_is_read_from_the_store_once(ready: Site, monkeypatch: Any) -> None:
    explained(ready)
    opened: list[str] = []
    blobs = ready.services.blobs

    def note(self: Any, sha256: str, *more: Any) -> list[bytes]:
        opened.append(sha256)
        return []

    monkeypatch.setattr(type(blobs), "open", note)
    explained(ready)
    assert opened == []
    with ready.database.reading() as session:
        assert session.scalar(select(func.count()).select_from(ModelConfig)) == 1


def test_a_model_of_a_public_hub_is_not_guessed_at(ready: Site) -> None:
    found = explained(ready, model="hf:org/model")
    assert found["known"] is False
    assert "config.json" in found["why"]
