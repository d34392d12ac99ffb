"""The OpenAPI document is valid, complete, and what the API really answers."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from espalier.specs import SPECS
from tests.integration.web.site import ADAPTER, Site

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def document(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site.app.test_client().get("/api/openapi.json").json
    return found


def test_the_document_is_openapi_3_1(site: Site) -> None:
    found = document(site)
    assert found["openapi"] == "3.1.0"
    validate(found, cls=OpenAPIV31SpecValidator)


def test_every_route_of_the_api_is_in_it(site: Site) -> None:
    told = {
        (method.upper(), path) for path, item in document(site)["paths"].items() for method in item
    }
    served = {
        (method, _as_openapi(rule.rule))
        for rule in site.app.url_map.iter_rules()
        if rule.rule.startswith("/api/v1")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert told == served


def _as_openapi(rule: str) -> str:
    parts = [part.split(":")[-1] for part in rule.replace(">", "}").split("<")]
    return "{".join(parts)


def test_specs_keep_their_limits_and_defaults(site: Site) -> None:
    schemas = document(site)["components"]["schemas"]
    train = schemas["TrainSpec"]
    assert train["properties"]["batch_size"] == {
        "default": 4,
        "description": "rows a step; sequences if packed",
        "maximum": 4096,
        "minimum": 1,
        "title": "Batch Size",
        "type": "integer",
    }
    assert train["additionalProperties"] is False
    kinds = schemas["JobRequest"]["properties"]["spec"]["discriminator"]["mapping"]
    assert set(kinds) == set(SPECS)


def test_answers_are_what_the_document_says(site: Site, tmp_path: Path) -> None:
    """Every GET of a site with something of everything, held to its own schema."""
    site.with_inputs()
    job_id = site.submit(name="team/tuned")
    worker, boot = site.worker()
    (ticket,) = site.tick()
    attempt = f"/attempts/{ticket.attempt_id}"
    worker.post(f"{attempt}/claim", {"boot_id": boot})
    values = {"train_loss": 2.0, "tokens_per_second": 100.0}
    event = {"type": "metrics", "step": 10, "values": values, "time": 1.0}
    worker.post(f"{attempt}/report", {"boot_id": boot, "seq": 1, "events": [event]})
    outputs = [{"role": "adapter", "kind": "adapter", "files": worker.upload(tmp_path, ADAPTER)}]
    finish = {"boot_id": boot, "state": "succeeded", "outputs": outputs}
    assert worker.post(f"{attempt}/finish", finish).status_code == 200
    failed = site.submit(name="team/other")
    (ticket,) = site.tick()
    worker.post(f"/attempts/{ticket.attempt_id}/claim", {"boot_id": boot})
    error = {"code": "bad_input", "message": "No.", "hint": "Try."}
    finish = {"boot_id": boot, "state": "failed", "reason": "bad_input", "error": error}
    worker.post(f"/attempts/{ticket.attempt_id}/finish", finish)
    laddered = site.submit(name="team/wide")
    (ticket,) = site.tick()
    worker.post(f"/attempts/{ticket.attempt_id}/claim", {"boot_id": boot})
    finish = {"boot_id": boot, "state": "failed", "reason": "out_of_memory"}
    worker.post(f"/attempts/{ticket.attempt_id}/finish", finish)
    steps = [{"step": "a", "spec": {"kind": "export", "model": "team/base"}}]
    pipeline = site.ada.post("/pipelines", {"steps": steps}).json["id"]
    found = document(site)
    for path, actual in (
        ("/whoami", ""),
        ("/jobs", ""),
        ("/jobs/{job_id}", f"/jobs/{job_id}"),
        ("/jobs/{job_id}", f"/jobs/{failed}"),
        ("/jobs/{job_id}/metrics", f"/jobs/{job_id}/metrics"),
        ("/jobs/{job_id}/events", f"/jobs/{job_id}/events"),
        ("/jobs/{job_id}/logs", f"/jobs/{job_id}/logs"),
        ("/pipelines/{pipeline_id}", f"/pipelines/{pipeline}"),
        ("/artifacts", ""),
        ("/artifacts/{project}/{name}", "/artifacts/team/tuned"),
        (
            "/artifacts/{project}/{name}/versions/{selector}",
            "/artifacts/team/tuned/versions/latest",
        ),
        ("/workers", ""),
        ("/projects", ""),
        ("/jobs/{job_id}", f"/jobs/{laddered}"),
    ):
        answer = site.ada.get(actual or path)
        assert answer.status_code == 200, actual
        operation = found["paths"][f"/api/v1{path}"]["get"]
        hold(found, operation["responses"]["200"]["content"]["application/json"], answer.json)
        assert answer.json not in ({"points": []}, {"events": []}, {"artifacts": []})
    refused = site.ada.get("/jobs/nothing")
    problem = found["paths"]["/api/v1/jobs"]["get"]["responses"]["default"]["content"]
    hold(found, problem["application/problem+json"], refused.json)


def hold(found: dict[str, Any], content: dict[str, Any], value: Any) -> None:
    """Assert that the value is what the schema says."""
    schema = {**content["schema"], "components": found["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)
