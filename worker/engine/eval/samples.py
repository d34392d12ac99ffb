"""The base's answers beside the adapter's: rates with intervals, and every sample kept.

``samples.jsonl`` in the report has one line a question, in the order of the split's file:
``{"line", "prompt", "reference", "answers": {"base": …, "tuned": …}}`` where an answer is
``{"text", "tokens", "ended", "scores": {metric: 0…1 | null}, "notes": {metric: text}}``. Without a
base to compare with there is ``tuned`` alone: the model itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from espalier.specs import EvalSpec
from worker.engine.eval.answers import Answer
from worker.engine.eval.bootstrap import Bootstrap, Interval
from worker.engine.eval.prompts import Question

#: Its name in the report, and the key of the report's meta that says how many lines it has.
FILE, META = "samples.jsonl", "samples"


@dataclass(frozen=True, slots=True)
class Rate:
    """The mean score of a metric, 0 to 1, over ``rows`` samples that could be judged.

    ``difference`` is the tuned model's less the base's, over the samples that both were judged on.
    """

    metric: str
    rows: int
    tuned: float | None
    interval: Interval | None
    base: float | None = None
    difference: float | None = None
    apart: Interval | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """Questions with both models' answers, in the same order; ``base`` empty: there is none."""

    questions: Sequence[Question]
    tuned: Sequence[Answer]
    base: Sequence[Answer] = ()

    def rates(self, spec: EvalSpec) -> list[Rate]:
        """Return the rate of each metric."""
        return [self._rate(spec, metric) for metric in spec.metrics]

    def _rate(self, spec: EvalSpec, metric: str) -> Rate:
        tuned = _scores(self.tuned, metric)
        judged = ~np.isnan(tuned)
        rows = int(judged.sum())
        draws = _draws(spec, rows)
        found = Rate(
            metric,
            rows,
            float(tuned[judged].mean()) if rows else None,
            draws.interval(tuned[judged]) if draws else None,
        )
        if not self.base:
            return found
        base = _scores(self.base, metric)
        known = ~np.isnan(base)
        both = judged & known
        apart = _draws(spec, int(both.sum()))
        return replace(
            found,
            base=float(base[known].mean()) if known.any() else None,
            difference=float((tuned[both] - base[both]).mean()) if both.any() else None,
            apart=apart.difference(tuned[both], base[both]) if apart else None,
        )

    def write(self, path: Path) -> None:
        """Write every sample, a line each."""
        with path.open("w", encoding="utf-8") as file:
            for document in self._documents():
                file.write(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")

    def _documents(self) -> Iterator[Mapping[str, Any]]:
        for index, question in enumerate(self.questions):
            answers = {"base": _document(self.base[index])} if self.base else {}
            yield {
                "line": question.line,
                "prompt": question.prompt,
                "reference": question.reference,
                "answers": {**answers, "tuned": _document(self.tuned[index])},
            }


def _scores(answers: Sequence[Answer], metric: str) -> Any:
    """Return the scores by sample, [samples] float64, NaN where nothing could be said."""
    scores = (answer.judged[metric].score for answer in answers)
    return np.array([np.nan if score is None else score for score in scores], np.float64)


def _draws(spec: EvalSpec, rows: int) -> Bootstrap | None:
    return Bootstrap(rows, spec.bootstrap, spec.seed) if spec.bootstrap and rows > 1 else None


def _document(answer: Answer) -> Mapping[str, Any]:
    judged = answer.judged.items()
    return {
        "text": answer.text,
        "tokens": answer.tokens,
        "ended": answer.ended,
        "scores": {metric: found.score for metric, found in judged},
        "notes": {metric: found.note for metric, found in judged if found.note},
    }
