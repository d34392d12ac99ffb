"""Two versions side by side: real safetensors in the store, both databases, over the API."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from sqlalchemy import select

from espalier.states import JobState
from scheduler.db import now
from scheduler.models import Job, JobInput, Project, User, Version
from tests.integration.web.site import MODEL, Site


def weights(path: Path, tensors: dict[str, mx.array]) -> bytes:
    """Return the tensors as mlx itself writes them."""
    mx.save_safetensors(str(path), tensors)
    return path.read_bytes()


@pytest.fixture
def pair(site: Site, tmp_path: Path) -> tuple[Site, dict[str, np.ndarray[Any, Any]]]:
    """``team/base`` in two versions, which differ in everything that can differ."""
    drawn = np.random.default_rng(7)
    shared = mx.array(drawn.normal(size=(8, 4)).astype("f4"))
    old = drawn.normal(size=(300, 1000)).astype("f4")  # more than one piece
    new = old.copy()
    new[10, 10] += 0.5
    new[299, 999] -= 1.0
    first = {
        "same": shared,
        "moved": shared,
        "w": mx.array(old),
        "half": mx.array(old[:4]).astype(mx.bfloat16),
        "wide": mx.array(old[:4]),
        "packed": mx.array(np.arange(64, dtype="u4").reshape(8, 8)),
        "grown": mx.zeros((2, 2)),
        "gone": mx.zeros((3,)),
    }
    second = {
        **first,
        "w": mx.array(new),
        "half": mx.array(old[:4] * 2).astype(mx.bfloat16),
        "wide": mx.array(old[:4]).astype(mx.float16),
        "packed": mx.array(np.arange(64, dtype="u4").reshape(8, 8) * 2),
        "grown": mx.zeros((2, 3)),
        "new": mx.zeros((1,)),
    }
    del second["gone"]
    config = {"model_type": "llama", "rope": {"type": "a", "f": [1, 2]}, "gone": None}
    changed = {"model_type": "llama", "rope": {"type": "b", "f": [1, 3]}, "more": True}
    one = {
        **MODEL,
        "config.json": json.dumps(config).encode(),
        "model.safetensors": weights(tmp_path / "a.safetensors", first),
        "README.md": b"# Base\n\nOld.\n",
        "old.txt": b"x",
    }
    two = {
        **MODEL,
        "config.json": json.dumps(changed).encode(),
        "model.safetensors": weights(tmp_path / "b.safetensors", second),
        "README.md": b"# Base\n\nNew.\n",
        "new.txt": b"xy",
    }
    for files in (one, two):
        made = site.ada.publish(tmp_path / "m", "team/base", "model", files)
        assert made.status_code == 201, made.json
    return site, {"old": old, "new": new}


def compared(site: Site, before: str, after: str) -> dict[str, Any]:
    answer = site.ada.get("/compare", query_string={"from": before, "to": after})
    assert answer.status_code == 200, answer.json
    found: dict[str, Any] = answer.json
    return found


def test_files_config_and_card(pair: tuple[Site, Any]) -> None:
    site, _ = pair
    found = compared(site, "team/base@v1", "team/base")
    assert (found["before"], found["after"]) == ("team/base@v1", "team/base@v2")
    assert {(f["path"], f["change"]) for f in found["files"]} == {
        ("README.md", "changed"),
        ("config.json", "changed"),
        ("model.safetensors", "changed"),
        ("new.txt", "added"),
        ("old.txt", "removed"),
    }
    assert found["files_same"] == 1
    assert {(k["key"], k["before"], k["after"]) for k in found["config"]} == {
        ("rope.type", '"a"', '"b"'),
        ("rope.f[1]", "2", "3"),
        ("gone", "null", None),
        ("more", None, "true"),
    }
    assert found["card"].splitlines()[-2:] == ["-Old.", "+New."]
    assert found["remarks"] == [
        "Packed tensors (quantized weights) were not compared by value: what they mean depends on"
        " their scales."
    ]


def test_tensors_by_name_shape_and_norm_of_the_difference(
    pair: tuple[Site, dict[str, np.ndarray[Any, Any]]],
) -> None:
    site, values = pair
    found = compared(site, "team/base@v1", "team/base@v2")
    tensors = {t["name"]: t for t in found["tensors"]}
    assert {name: t["change"] for name, t in tensors.items()} == {
        "gone": "removed",
        "new": "added",
        "grown": "shape",
        "w": "values",
        "half": "values",
        "wide": "dtype",
        "packed": "packed",
    }
    assert found["tensors_same"] == 2
    assert (tensors["grown"]["before"], tensors["grown"]["after"]) == ("F32 [2, 2]", "F32 [2, 3]")
    w = tensors["w"]
    norm = float(np.linalg.norm(values["old"].astype("f8")))
    assert w["l2"] == pytest.approx(1.25**0.5, rel=1e-6)
    assert w["relative"] == pytest.approx(1.25**0.5 / norm, rel=1e-6)
    assert w["max_abs"] == pytest.approx(1.0, rel=1e-6)
    assert w["differing"] == pytest.approx(2 / 300_000)
    half = tensors["half"]
    assert half["relative"] == pytest.approx(1.0, rel=1e-2)
    assert half["differing"] == 1.0
    wide = tensors["wide"]
    rounded = values["old"][:4] - values["old"][:4].astype("f2").astype("f4")
    assert wide["l2"] == pytest.approx(float(np.linalg.norm(rounded.astype("f8"))), rel=1e-5)
    packed = tensors["packed"]
    assert (packed["l2"], packed["differing"]) == (None, 63 / 64)
    order = [t["name"] for t in found["tensors"]]
    assert order == ["gone", "grown", "new", "half", "w", "wide", "packed"]


def test_a_version_and_itself(pair: tuple[Site, Any]) -> None:
    found = compared(pair[0], "team/base@v2", "team/base@v2")
    empty = {"files": [], "config": [], "tensors": [], "metrics": [], "card": None, "remarks": []}
    assert {key: found[key] for key in empty} == empty
    assert (found["files_same"], found["tensors_same"]) == (5, 8)


def test_what_evaluations_measured(pair: tuple[Site, Any], tmp_path: Path) -> None:
    site, _ = pair
    site.with_inputs()
    for number, loss in ((1, 2.5), (2, 1.5)):
        _evaluated(site, number, {"test_loss": loss, "note": "text", "bad": None})
    metrics = compared(site, "team/base@v1", "team/base@v2")["metrics"]
    assert metrics == [{"name": "test_loss on team/sql@v1", "before": 2.5, "after": 1.5}]


def _evaluated(site: Site, number: int, metrics: dict[str, Any]) -> None:
    """Put an evaluation of ``team/base`` on ``team/sql`` into the registry, as done."""
    with site.database.transaction() as session:
        named = {
            (version.artifact.name, version.number): version
            for version in session.scalars(select(Version))
        }
        moment = now(session)
        job = Job(
            project=session.scalars(select(Project).where(Project.name == "team")).one(),
            user=session.scalars(select(User).where(User.name == "ada")).one(),
            kind="eval",
            name="",
            state=JobState.SUCCEEDED.value,
            spec={"kind": "eval"},
            metrics=metrics,
            created_at=moment,
            finished_at=moment,
        )
        session.add(job)
        session.flush()
        for role, version in (("model", named["base", number]), ("data", named["sql", 1])):
            session.add(JobInput(job_id=job.id, role=role, ref="x", version_id=version.id))


def test_strangers_and_what_is_not_there(pair: tuple[Site, Any]) -> None:
    site, _ = pair
    query = {"from": "team/base@v1", "to": "team/base@v2"}
    assert site.eve.get("/compare", query_string=query).status_code == 404
    absent = site.ada.get("/compare", query_string={**query, "to": "team/base@v9"})
    assert absent.status_code == 404
    assert site.ada.get("/compare", query_string={"from": "team/base"}).status_code == 422
    wrong = site.ada.get("/compare", query_string={**query, "from": "hf:org/name"})
    assert wrong.status_code == 422
