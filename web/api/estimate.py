"""``/api/v1/estimate``: the memory a job needs, before it is submitted."""

import json
from dataclasses import asdict
from typing import Any

from pydantic import Field

from espalier.errors import InvalidInput
from espalier.specs import Frozen, JobRequest, parse
from scheduler.placing.explain import Explanation, explain_job, explain_request
from scheduler.queries import Document
from web.api.models import Answer
from web.auth import actor
from web.routes import Routes, refuse_unstorable
from web.services import services

Tokens = Field(None, ge=1, le=1_048_576, description="the longest row, if known")


class EstimateRequest(JobRequest):
    """A job as it would be submitted, and what is known of its data."""

    longest: int | None = Tokens


class EstimateQuery(Frozen):
    """Either a job that was submitted, or a spec as JSON."""

    job: str | None = Field(None, max_length=16, description="a job's id")
    spec: str | None = Field(None, max_length=20_000, description="a spec as JSON")
    longest: int | None = Tokens


class PartAnswer(Answer):
    name: str
    bytes: int


class CorrectionAnswer(Answer):
    """Measured ÷ predicted: the median of so many jobs; ``chip`` null counts every chip."""

    ratio: float
    attempts: int
    chip: str | None


class RoomAnswer(Answer):
    """A worker; ``needs`` is corrected by what its chip has shown."""

    name: str
    chip: str
    gives: int
    needs: int | None
    fits: bool | None
    correction: CorrectionAnswer | None


class ChangeAnswer(Answer):
    """The one setting with which it fits the worker that has most to give."""

    setting: str
    before: int | bool
    after: int | bool
    needs: int
    message: str


class EstimateAnswer(Answer):
    """Bytes. ``parts`` add up to the uncorrected total; ``needs`` is that, corrected.

    Not ``known``: ``why`` says what is missing, and nothing is guessed.
    """

    kind: str
    known: bool
    why: str
    needs: int | None
    parts: list[PartAnswer]
    correction: CorrectionAnswer | None
    workers: list[RoomAnswer]
    change: ChangeAnswer | None
    summary: str


def add(routes: Routes) -> None:
    """Add the routes of estimates."""

    @routes.route("POST", "/estimate", answer=EstimateAnswer)
    def estimate_request(body: EstimateRequest) -> Document:
        """Say what a job would need and on which workers it fits; nothing is submitted."""
        return _explained(body, body.longest)

    @routes.route("GET", "/estimate", answer=EstimateAnswer)
    def estimate(query: EstimateQuery) -> Document:
        """Say what a submitted job's next attempt needs, or a job of this spec."""
        if (query.job is None) == (query.spec is None):
            raise InvalidInput(
                "Give either job, the id of a job, or spec, a spec as JSON.",
                errors=[{"loc": ["job"], "msg": "one of job and spec"}],
            )
        if query.job is not None:
            found = explain_job(
                services().database, services().blobs, actor(), query.job, query.longest
            )
            return document(found)
        return _explained(parse(JobRequest, {"spec": _spec(query.spec or "")}), query.longest)


def _explained(request: JobRequest, longest: int | None) -> Document:
    site = services()
    return document(explain_request(site.database, site.blobs, actor(), request, longest))


def document(found: Explanation) -> Document:
    """Return an explanation as JSON."""
    parts = [{"name": name, "bytes": size} for name, size in found.parts.items()]
    return {**asdict(found), "parts": parts}


def _spec(text: str) -> Any:
    try:
        return refuse_unstorable(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"spec is not JSON: {error}.", errors=[{"loc": ["spec"], "msg": "not JSON"}]
        ) from error
