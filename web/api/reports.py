"""``/api/v1/jobs/<id>/report``: what a job, or its whole pipeline, did and found."""

from typing import Any

from pydantic import TypeAdapter

from espalier.reports.compose import Report
from espalier.reports.markdown import markdown
from espalier.states import JobState, Kind
from scheduler.queries.reports import report_of
from web.api.models import Answer
from web.auth import actor
from web.routes import Routes
from web.services import services

_REPORT = TypeAdapter(Report)


class PairAnswer(Answer):
    name: str
    value: str


class TableAnswer(Answer):
    """Cells are text, as a person reads them."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class SectionAnswer(Answer):
    """One job; ``spec`` is YAML."""

    id: str
    kind: Kind
    state: JobState
    name: str
    pairs: list[PairAnswer]
    tables: list[TableAnswer]
    spec: str


class ReportAnswer(Answer):
    """``tables`` are about all jobs; ``markdown`` is the whole report."""

    title: str
    pairs: list[PairAnswer]
    tables: list[TableAnswer]
    sections: list[SectionAnswer]
    markdown: str


def add(routes: Routes) -> None:
    @routes.route("GET", "/jobs/<job_id>/report", answer=ReportAnswer)
    def get_report(job_id: str) -> dict[str, Any]:
        """Return the report of a job, or of the pipeline it is in, as parts and as Markdown."""
        with services().database.reading() as session:
            found = report_of(session, actor(), job_id)
        return {**_REPORT.dump_python(found, mode="json"), "markdown": markdown(found)}
