"""An evaluation's samples: what was asked, what was right, and what each model answered."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import get_args

from flask import render_template, request

from scheduler.queries import jobs as queries
from scheduler.queries import samples
from scheduler.queries.samples import SHOWS, Show, Wanted
from web.auth import actor
from web.pages.blueprint import pages, reading
from web.services import services

#: Samples of a page, and words that are compared: two long texts take seconds.
PAGE, MOST_WORDS = 25, 1500


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer beside its reference: ``kind`` is "", "new" (not there) or "old"

    (there, and missing here).
    """

    kind: str
    text: str


@pages.get("/jobs/<job_id>/samples")
def job_samples(job_id: str) -> str:
    """A page of them, filtered and searched."""
    number = max(1, request.args.get("page", 1, type=int))
    show = request.args.get("show", "all")
    wanted = Wanted(
        show=show if show in get_args(Show) else "all",  # type: ignore[arg-type]
        metric=request.args.get("metric") or None,
        q=request.args.get("q", "")[:200],
        offset=(number - 1) * PAGE,
        limit=PAGE,
    )
    with reading() as db:
        job = queries.find_job(db, actor(), job_id)
        kept = samples.find_kept(db, job)
        name = job.name
    found = samples.samples(services().blobs, kept, wanted)
    return render_template(
        "samples.html", section="Jobs", job_id=job_id, name=name, wanted=wanted, found=found,
        shows=SHOWS, compared=compared, number=number, last=max(1, -(-found["total"] // PAGE)),
    )  # fmt: skip


def compared(reference: str, answer: str) -> list[Piece]:
    """Return the answer's words in order, and between them those that it lacks."""
    one, other = _words(reference), _words(answer)
    if len(one) + len(other) > MOST_WORDS:
        return [Piece("", answer)]
    pieces: list[Piece] = []
    for kind, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(Piece("", "".join(other[c:d])))
            continue
        pieces += [Piece("old", "".join(one[a:b]))] if b > a else []
        pieces += [Piece("new", "".join(other[c:d]))] if d > c else []
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)
