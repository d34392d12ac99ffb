"""``/api/v1/jobs/<id>/samples``: what models answered, with what it is worth."""

from typing import Literal

from pydantic import Field

from espalier.specs import Frozen
from scheduler.queries import Document, samples
from scheduler.queries import jobs as queries
from scheduler.queries.samples import Show, Wanted
from web.api.asked import Search
from web.api.models import Answer
from web.auth import actor
from web.routes import Routes
from web.services import services


class SamplesQuery(Frozen):
    show: Show = Field(
        "all", description="wrong, lost (the base was right), gained, changed, unjudged"
    )
    metric: Search | None = Field(None, description="right and wrong go by it; default: the first")
    q: Search = Field("", description="found in prompts, references and answers")
    offset: int = Field(0, ge=0, description="samples of what is shown")
    limit: int = Field(25, ge=1, le=500)


class SampleAnswer(Answer):
    """``ended`` is length for an answer that was cut off at max_tokens."""

    text: str
    tokens: int
    ended: Literal["stop", "length"]
    scores: dict[str, float | None]
    notes: dict[str, str]


class AnswersAnswer(Answer):
    """``tuned`` is the model itself where it has no adapter."""

    base: SampleAnswer | None = None
    tuned: SampleAnswer


class SampleRow(Answer):
    """``line`` is the row's in the split's file."""

    line: int
    prompt: str
    reference: str
    answers: AnswersAnswer


class SamplesAnswer(Answer):
    """``total`` is how many there are of what is shown, ``counts`` how many of each kind."""

    report: str
    metrics: list[str]
    metric: str | None
    show: Show
    counts: dict[Show, int]
    total: int
    offset: int
    samples: list[SampleRow]


def add(routes: Routes) -> None:
    @routes.route("GET", "/jobs/<job_id>/samples", answer=SamplesAnswer)
    def list_samples(job_id: str, query: SamplesQuery) -> Document:
        """Return a page of an evaluation's samples: prompt, reference, answers and scores."""
        with services().database.reading() as session:
            kept = samples.find_kept(session, queries.find_job(session, actor(), job_id))
        wanted = Wanted(query.show, query.metric, query.q, query.offset, query.limit)
        return samples.samples(services().blobs, kept, wanted)
