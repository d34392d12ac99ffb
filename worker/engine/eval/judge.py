"""What an answer is worth by one metric: a score from 0 to 1, or that nothing can be said.

Runs in a process of its own (worker.engine.eval.box): a pattern that backtracks, a schema that
recurses and a query that multiplies tables cost that process, not the job.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache

import jsonschema
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from pydantic import BaseModel
from rapidfuzz.distance import LCSseq
from referencing import Registry
from referencing.exceptions import Unresolvable

from espalier.specs.eval import Metric
from worker.engine.eval import execution, sql


class Case(BaseModel):
    """One answer and all that its metric needs to judge it."""

    metric: Metric
    answer: str
    reference: str
    prompt: str = ""
    schema_text: str | None = None  # SQL's or JSON's, as the metric needs it
    pattern: str | None = None
    normalize_whitespace: bool = True
    ignore_case: bool = False


class Judgement(BaseModel):
    """``score`` None: the reference itself cannot be judged by. ``note`` says why, to a person."""

    score: float | None
    note: str = ""


def judge(case: Case) -> Judgement:
    """Return what the answer is worth."""
    return _JUDGES[case.metric](case)


def _exact(case: Case) -> Judgement:
    answer, reference = (_plain(text, case) for text in (case.answer, case.reference))
    return Judgement(score=float(answer == reference))


def _plain(text: str, case: Case) -> str:
    text = " ".join(text.split()) if case.normalize_whitespace else text
    return text.casefold() if case.ignore_case else text


def _regex(case: Case) -> Judgement:
    flags = re.IGNORECASE if case.ignore_case else 0
    return Judgement(score=float(re.search(case.pattern or "", case.answer, flags) is not None))


def _rouge(case: Case) -> Judgement:
    """ROUGE-L F1 (Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004), over words

    of any script in lower case, without stemming.
    """
    answer, reference = (re.findall(r"\w+", t.lower()) for t in (case.answer, case.reference))
    if not reference:
        return Judgement(score=None, note="the reference has no words")
    common = LCSseq.similarity(answer, reference)
    return Judgement(score=2 * common / (len(answer) + len(reference)))


def _json(case: Case) -> Judgement:
    try:
        validator = _validator(case.schema_text or "")
    except (ValueError, jsonschema.SchemaError) as error:
        return Judgement(score=None, note=f"the schema is none: {_first_line(error)}")
    try:
        found = json.loads(case.answer)
    except (ValueError, RecursionError) as error:
        return Judgement(score=0, note=f"not JSON: {_first_line(error)}")
    try:
        fault = next(iter(validator.iter_errors(found)), None)
    except Unresolvable as error:
        return Judgement(score=None, note=f"the schema refers to what it lacks: {error.ref}")
    if fault is None:
        return Judgement(score=1)
    return Judgement(score=0, note=f"{fault.json_path}: {fault.message}"[:200])


@lru_cache(maxsize=64)
def _validator(text: str) -> Validator:
    schema = json.loads(text)
    kind = validator_for(schema)
    kind.check_schema(schema)
    # An empty registry: what a schema refers to is in it, and is never fetched.
    return kind(schema, registry=Registry())


def _sql(case: Case) -> Judgement:
    schema = _schema(case)
    reference, answer = sql.read(case.reference, schema), sql.read(case.answer, schema)
    if reference is None:
        return Judgement(score=None, note="the reference is no query")
    if answer is None:
        return Judgement(score=0, note="no query")
    return Judgement(score=float(sql.normal(reference) == sql.normal(answer)))


def _execution(case: Case) -> Judgement:
    schema = _schema(case)
    reference = sql.read(case.reference, schema)
    if reference is None:
        return Judgement(score=None, note="the reference is no query")
    try:
        same, note = execution.same_result(reference, sql.read(case.answer, schema), schema)
    except execution.Undecidable as why:
        return Judgement(score=None, note=str(why))
    return Judgement(score=float(same), note=note)


def _schema(case: Case) -> sql.Schema:
    if case.schema_text is None:
        return sql.schema_of(case.prompt)
    named = sql.schema_of(case.schema_text)
    return named if named.table else sql.Schema(script=case.schema_text)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__


_JUDGES: dict[str, Callable[[Case], Judgement]] = {
    "exact_match": _exact,
    "sql_match": _sql,
    "execution_match": _execution,
    "regex": _regex,
    "json_schema": _json,
    "rouge_l": _rouge,
}
