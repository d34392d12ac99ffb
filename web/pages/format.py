"""How values are written for people: the filters that templates use."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from flask import Flask, request, url_for
from markupsafe import Markup

from espalier.errors import InvalidInput
from espalier.figures import cell, duration, heading, number, size, title
from espalier.refs import ArtifactRef, JobRef, parse_ref

STATIC = Path(__file__).parents[1] / "static"
_STEPS = ((60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h"), (float("inf"), 86_400, "d"))


def moment(value: str | datetime | None) -> datetime | None:
    """Return an aware datetime from the ISO text of a document."""
    if value is None or isinstance(value, datetime):
        return value
    return datetime.fromisoformat(value.replace("Z", "+00:00"))


def ago(value: str | datetime | None) -> Markup:
    """Return a ``<time>`` that says how long ago, with the exact moment as its title."""
    at = moment(value)
    if at is None:
        return Markup('<span class="muted">–</span>')
    exact = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        exact.isoformat(timespec="seconds").replace("+00:00", "Z"),
        exact.strftime("%Y-%m-%d %H:%M:%S UTC"),
        relative((datetime.now(UTC) - exact).total_seconds()),
    )


def relative(seconds: float) -> str:
    """Return "now", "40 s ago", "3 min ago", "2 h ago", "5 d ago"."""
    if seconds < 5:
        return "now"
    for limit, unit, name in _STEPS:
        if seconds < limit:
            return f"{int(seconds // unit)} {name} ago"
    raise AssertionError("the last step has no limit")


def between(start: str | datetime | None, end: str | datetime | None) -> float | None:
    """Return the seconds from start to end; to now while there is no end."""
    first = moment(start)
    if first is None:
        return None
    return ((moment(end) or datetime.now(UTC)) - first).total_seconds()


def ref_url(text: str) -> str | None:
    """Return the page of a reference, if this server has one for it."""
    try:
        ref = parse_ref(text)
    except InvalidInput:
        return None
    if isinstance(ref, JobRef):
        return url_for("pages.job", job_id=ref.job)
    if not isinstance(ref, ArtifactRef):
        return None
    if ref.selector is None:
        return url_for("pages.artifact", project=ref.project, name=ref.name)
    chosen = ref.version or ref.selector
    return url_for("pages.version", project=ref.project, name=ref.name, selector=chosen)


def shown(job: Mapping[str, Any]) -> str:
    """Return the one word for where a job is: its state, or that it is held back."""
    return "paused" if job["paused"] else str(job["state"])


def clock(value: str | datetime | None) -> str:
    """Return "12:40:05 UTC", with the date when it is another day's."""
    at = moment(value)
    if at is None:
        return "–"
    exact = at.astimezone(UTC)
    today = exact.date() == datetime.now(UTC).date()
    return exact.strftime("%H:%M:%S UTC" if today else "%Y-%m-%d %H:%M UTC")


def without(value: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return a mapping without some of its keys."""
    return {k: v for k, v in value.items() if k not in keys}


def turned(page: int) -> str:
    """Return the address of another page of what is shown, with the same filters."""
    asked = {key: value for key, value in request.args.items(multi=True) if key != "page"}
    return f"{request.path}?{urlencode({**asked, 'page': page})}"


def as_yaml(value: Any) -> str:
    """Return a document as YAML, in the order it has."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=88)
    return text


@cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:10]


def asset(name: str) -> str:
    """Return a static file's address, which changes with its content."""
    return url_for("static", filename=name, v=_digest(name))


def register_filters(app: Flask) -> None:
    """Give the templates these functions."""
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(
        ago=ago,
        cell=cell,
        clock=clock,
        duration=duration,
        heading=heading,
        number=number,
        ref_url=ref_url,
        shown=shown,
        size=size,
        table_title=title,
        without=without,
        yaml=as_yaml,
    )
    app.jinja_env.globals.update(asset=asset, between=between, turned=turned)
