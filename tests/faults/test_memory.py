"""Memory: a job that does not fit is made to fit by the ladder, and its result stays the same.

The limit lies between what the child holds with the whole batch and with a quarter of it, both
measured on this machine first; the worker enforces it from outside, as on a Mac.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from espalier.textsql import texts
from tests.acceptance.stacks import PATIENCE, Up, up

BATCH = 8
TOKENS = 1024
SETTINGS = {"ESPALIER_REPORT_SECONDS": "1", "ESPALIER_DISK_RESERVE_BYTES": "0"}
#: One try, so that what the ladder does not carry ends at once.
FLAGS = (
    f"--model team/tiny --num-layers -1 --batch-size {BATCH} --max-seq-length {TOKENS}"
    " --learning-rate 1e-3 --rank 4 --scale 10 --steps-per-report 1 --max-attempts 1 --seed 3"
)
#: Every batch is too long: memory ends before the first step.
FROM_THE_START = "--data team/long --iters 2 --val-batches 1 --save-every 2"
#: One batch in four is: memory ends when it comes, after a checkpoint or more.
LATER = "--data team/mixed --iters 4 --val-batches 0 --save-every 1"


def rows(count: int, sentences: int) -> str:
    """``count`` rows of ``sentences`` questions with their queries; 30 are more than TOKENS."""
    drawn = texts(11 + sentences)
    lines = ({"text": " ".join(islice(drawn, sentences))} for _ in range(count))
    return "".join(json.dumps(line) + "\n" for line in lines)


@dataclass(frozen=True)
class Stacks:
    """The same models and data twice: with all the machine's memory, and with the limit."""

    free: Up
    limited: Up
    limit: int


def push(stack: Up, tiny_model: Path, data: Path) -> None:
    stack.run("model", "push", str(tiny_model), "team/tiny")
    for name in ("long", "mixed"):
        stack.run("dataset", "push", str(data / name), f"team/{name}")


def train(stack: Up, flags: str, *, code: int = 0) -> Any:
    """Submit, wait until it ended with that exit status, and return the job."""
    job_id = str(stack.json("train", *FLAGS.split(), *flags.split())["id"])
    stack.run("wait", job_id, code=code)
    return stack.job(job_id)


def held(job: Any) -> int:
    """The most bytes that the job's child held, as its worker saw it from outside."""
    return max(int(attempt["peak_memory_bytes"]) for attempt in job["attempts"])


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stacks]:
    home = tmp_path_factory.mktemp("memory")
    data = home / "data"
    for name, train_rows in (
        ("long", rows(2 * BATCH, 30)),
        ("mixed", rows(2 * BATCH, 1) + rows(BATCH, 30) + rows(BATCH, 1)),
    ):
        (data / name).mkdir(parents=True)
        (data / name / "train.jsonl").write_text(train_rows)
        (data / name / "valid.jsonl").write_text(rows(BATCH, 30))
    with up(home / "free", settings=SETTINGS) as free:
        push(free, tiny_model, data)
        whole = held(train(free, FROM_THE_START))
        quarter = held(train(free, f"{FROM_THE_START} --micro-batch-size {BATCH // 4}"))
        limit = quarter + (whole - quarter) // 4
        assert limit > 1.15 * quarter, f"{whole:,} bytes whole, {quarter:,} in quarters"
        settings = SETTINGS | {"ESPALIER_MEMORY_LIMIT_BYTES": str(limit)}
        with up(home / "limited", settings=settings) as limited:
            push(limited, tiny_model, data)
            yield Stacks(free, limited, limit)


def curves(stack: Up, job: Any) -> dict[str, dict[int, float]]:
    """The losses of a job by step."""
    answer = httpx.get(
        f"{stack.url}/api/v1/jobs/{job['id']}/metrics",
        headers={"Authorization": f"Bearer {stack.token}"},
        timeout=PATIENCE,
    )
    points = answer.raise_for_status().json()["points"]
    names = ("train_loss", "val_loss")
    return {n: {p["step"]: p[n] for p in points if p.get(n) is not None} for n in names}


def adapter(job: Any) -> str:
    """The sha256 of the weights that a job made."""
    files = {f["path"]: f["sha256"] for f in job["outputs"][0]["files"]}
    return str(files["adapters.safetensors"])


def page(stack: Up, path: str) -> str:
    """The text of a page as a signed-in browser gets it."""
    with httpx.Client(base_url=stack.url, follow_redirects=True, timeout=PATIENCE) as browser:
        form = browser.get(stack.login_link()).raise_for_status().text
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))
        browser.post("/login", data=hidden).raise_for_status()
        return " ".join(unescape(browser.get(path).raise_for_status().text).split())


def same_settings(stacks: Stacks, flags: str, job: Any) -> Any:
    """The job that was asked for with what the ladder came to, on the machine without a limit."""
    found = job["effective_spec"]
    more = f" --micro-batch-size {found['micro_batch_size']}"
    more += " --grad-checkpoint" if found["grad_checkpoint"] else ""
    reference = train(stacks.free, flags + more)
    assert reference["ladder"] == []
    return reference


def climbed(stacks: Stacks, job: Any) -> None:
    """It ran out of memory, held less, fitted; and every step is told."""
    assert job["state"] == "succeeded"
    reasons = [attempt["reason"] for attempt in job["attempts"]]
    assert reasons == ["out_of_memory"] * len(job["ladder"]) + ["ok"]
    assert job["ladder"], f"nothing was over the limit of {stacks.limit:,} bytes"
    first = job["ladder"][0]
    assert (first["rung"], first["from"], first["to"]) == ("micro_batch_size", BATCH, BATCH // 2)
    assert first["memory_limit"] == stacks.limit
    assert job["spec"]["batch_size"] == job["effective_spec"]["batch_size"] == BATCH
    assert held({"attempts": job["attempts"][-1:]}) <= stacks.limit
    shown = page(stacks.limited, f"/jobs/{job['id']}")
    events = stacks.limited.json("events", job["id"])["events"]
    told = [event["message"] for event in events if event["type"] == "ladder"]
    assert told == [rung["message"] for rung in job["ladder"]]
    for message in told:
        assert message in shown


def test_what_does_not_fit_is_made_to_fit_with_the_same_result(stacks: Stacks) -> None:
    job = train(stacks.limited, FROM_THE_START)
    climbed(stacks, job)
    reference = same_settings(stacks, FROM_THE_START, job)
    assert curves(stacks.limited, job) == curves(stacks.free, reference)
    assert adapter(job) == adapter(reference), "memory ended before the first checkpoint"


def test_memory_that_ends_later_costs_the_steps_since_the_checkpoint(stacks: Stacks) -> None:
    job = train(stacks.limited, LATER)
    climbed(stacks, job)
    assert job["attempts"][-1]["resumed_from_step"] >= 1
    reference = same_settings(stacks, LATER, job)
    ours, theirs = curves(stacks.limited, job), curves(stacks.free, reference)
    assert set(ours["train_loss"]) == {1, 2, 3, 4}
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)


def test_on_oom_fail_says_what_would_have_helped(stacks: Stacks) -> None:
    job = train(stacks.limited, f"{FROM_THE_START} --on-oom fail", code=1)
    assert (job["state"], job["reason"]) == ("failed", "out_of_memory")
    assert job["ladder"] == []
    assert [attempt["reason"] for attempt in job["attempts"]] == ["out_of_memory"]
    assert f"{stacks.limit:,}" in job["error"]["message"]
    assert "With on_oom adapt, 4 rows are computed at once instead of 8" in job["error"]["hint"]
