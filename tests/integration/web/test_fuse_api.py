"""Several adapters into one, through the API: roles, steps, and what comes out of it."""

from typing import Any

from tests.integration.web.site import Site

TRAIN = {"kind": "train", "model": "team/base", "data": "team/sql"}


def test_adapters_of_a_pipeline_become_one_that_the_next_step_uses(site: Site) -> None:
    site.with_inputs()
    both = {"adapters": "step:first=0.7, step:second=0.3", "output": "adapter"}
    steps = [
        {"step": "first", "spec": TRAIN},
        {"step": "second", "spec": {**TRAIN, "seed": 1}},
        {"step": "merge", "spec": {"kind": "fuse", "model": "team/base", **both}},
        {
            "step": "eval",
            "spec": {
                "kind": "eval",
                "model": "team/base",
                "adapter": "step:merge",
                "data": "team/sql",
            },
        },
    ]
    made: Any = site.ada.post("/pipelines", {"steps": steps})
    assert made.status_code == 201, made.json
    first, second, merge, measured = made.json["jobs"]
    assert set(merge["needs"]) == {first["id"], second["id"]}
    assert merge["spec"]["adapters"] == [f"job:{first['id']}=0.7", f"job:{second['id']}=0.3"]
    assert {i["role"]: i["ref"] for i in merge["inputs"]} == {
        "model": "team/base",
        "adapter": f"job:{first['id']}",
        "adapter_2": f"job:{second['id']}",
        "data": "team/sql@v1",  # what they were trained on: the proof's held-out text
    }
    assert measured["needs"] == [merge["id"]]


def test_a_model_cannot_stand_for_an_adapter_among_others(site: Site) -> None:
    site.with_inputs()
    spec = {"kind": "fuse", "model": "team/base", "adapters": ["team/base=0.5"]}
    refused: Any = site.ada.post("/jobs", {"spec": spec})
    assert refused.status_code == 422
    assert "team/base is a model" in refused.json["detail"]
