"""A job's report, or its pipeline's: as a page, and as Markdown to paste elsewhere."""

from flask import Response, render_template

from espalier.reports.markdown import markdown
from scheduler.queries.reports import report_of
from web.auth import actor
from web.pages.blueprint import pages, reading


@pages.get("/jobs/<job_id>/report")
def job_report(job_id: str) -> str:
    with reading() as db:
        found = report_of(db, actor(), job_id)
    return render_template("report.html", section="Jobs", job_id=job_id, report=found)


@pages.get("/jobs/<job_id>/report.md")
def job_report_markdown(job_id: str) -> Response:
    with reading() as db:
        text = markdown(report_of(db, actor(), job_id))
    return Response(text, content_type="text/markdown; charset=utf-8")
