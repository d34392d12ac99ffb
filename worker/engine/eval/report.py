"""What an evaluation tells: metrics, the table of them, the proof, report.json and report.md."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier.specs import EvalSpec
from espalier.states import ArtifactKind
from worker.engine.adapters import Adapter
from worker.engine.eval import sweep
from worker.engine.eval.bootstrap import Interval
from worker.engine.eval.samples import FILE, META, Rate, Samples
from worker.engine.measure import perplexity
from worker.engine.report import Cell, Job, write_json

#: Columns of the table "metrics" of a model alone, and beside its base. Differences are tuned
#: less base, over the same rows.
ALONE = ("metric", "value", "low", "high")
BESIDE = (
    "metric",
    "base",
    "tuned",
    "tuned_low",
    "tuned_high",
    "difference",
    "difference_low",
    "difference_high",
)


@dataclass(slots=True)
class Found:
    """What an evaluation has found. Where there is no adapter, ``tuned`` is the model itself."""

    base: sweep.Tested | None = None
    tuned: sweep.Tested | None = None
    difference: Interval | None = None
    swept: dict[int, sweep.Tested] = field(default_factory=dict)
    samples: Samples | None = None


def conclude(
    job: Job, spec: EvalSpec, adapter: Adapter | None, found: Found, meta: Mapping[str, Any]
) -> None:
    """Tell what was found, and write the report."""
    assert found.tuned is not None
    beside = bool(adapter and found.base)
    values: dict[str, float] = {
        **found.tuned.measured.metrics(),
        **sweep.bounds("test_loss", found.tuned.interval),
    }
    if adapter and found.base:
        base = found.base.measured
        values |= {"base_test_loss": base.loss, "base_perplexity": base.perplexity}
        _prove(job, spec, found)
    if found.swept:
        values["best_step"] = sweep.best_of(found.swept)
        sweep.tell_overfitting(job, found.swept)
    rates = found.samples.rates(spec) if found.samples else []
    for rate in rates:
        values |= _values(rate)
    rows = _losses(found, beside) + [_row(rate, beside) for rate in rates]
    job.report.table("metrics", BESIDE if beside else ALONE, rows)
    job.report.metrics(adapter.step if adapter else 0, **values)
    _write(job, spec, values, rows, found, meta)


def _prove(job: Job, spec: EvalSpec, found: Found) -> None:
    assert found.tuned is not None
    assert found.base is not None
    tuned, base = found.tuned.measured, found.base.measured
    detail = f"{tuned.tokens} tokens of the {spec.split} split"
    if found.difference:
        detail += (
            f"; loss changed by {tuned.loss - base.loss:+.4f} nats, 95 % between"
            f" {found.difference.low:+.4f} and {found.difference.high:+.4f}"
        )
    job.report.proof(
        "perplexity_below_base",
        tuned.perplexity,
        limit=base.perplexity,
        ok=tuned.perplexity < base.perplexity,
        detail=detail,
    )


def _losses(found: Found, beside: bool) -> list[list[Cell]]:
    """Return the table's rows of loss and perplexity."""
    assert found.tuned is not None
    tuned, interval = found.tuned.measured, found.tuned.interval
    edges = (interval.low, interval.high) if interval else (None, None)
    spread = tuple(None if edge is None else sweep.finite(perplexity(edge)) for edge in edges)
    if not beside:
        return [
            ["test_loss", tuned.loss, *edges],
            ["perplexity", sweep.finite(tuned.perplexity), *spread],
            ["tokens", tuned.tokens, None, None],
        ]
    assert found.base is not None
    base, change = found.base.measured, found.difference
    bounds = (change.low, change.high) if change else (None, None)
    apart = sweep.finite(tuned.perplexity - base.perplexity)
    return [
        ["test_loss", base.loss, tuned.loss, *edges, tuned.loss - base.loss, *bounds],
        [
            "perplexity",
            sweep.finite(base.perplexity),
            sweep.finite(tuned.perplexity),
            *spread,
            apart,
            None,
            None,
        ],
        ["tokens", base.tokens, tuned.tokens, None, None, tuned.tokens - base.tokens, None, None],
    ]


def _values(rate: Rate) -> dict[str, float]:
    """Return a rate as metrics."""
    found = {rate.metric: rate.tuned, f"base_{rate.metric}": rate.base}
    known = {name: value for name, value in found.items() if value is not None}
    return known | sweep.bounds(rate.metric, rate.interval)


def _row(rate: Rate, beside: bool) -> list[Cell]:
    interval, apart = (
        (found.low, found.high) if found else (None, None) for found in (rate.interval, rate.apart)
    )
    if not beside:
        return [rate.metric, rate.tuned, *interval]
    return [rate.metric, rate.base, rate.tuned, *interval, rate.difference, *apart]


def _write(
    job: Job,
    spec: EvalSpec,
    values: Mapping[str, float],
    rows: Sequence[Sequence[Cell]],
    found: Found,
    meta: Mapping[str, Any],
) -> None:
    directory = job.output("report")
    finite = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
    swept = sweep.rows_of(found.swept) if found.swept else []
    columns = BESIDE if len(rows[0]) == len(BESIDE) else ALONE
    write_json(
        directory / "report.json",
        {
            "model": spec.model,
            "adapter": spec.adapter,
            "data": spec.data,
            "split": spec.split,
            "seed": spec.seed,
            "metrics": finite,
            "table": [dict(zip(columns, row, strict=True)) for row in rows],
            "checkpoints": [dict(zip(sweep.COLUMNS, row, strict=True)) for row in swept],
            "base": meta,
        },
    )
    _write_markdown(directory, spec, (columns, rows), swept)
    told: dict[str, Any] = {"metrics": finite}
    if found.samples:
        found.samples.write(directory / FILE)
        told[META] = {"file": FILE, "rows": len(found.samples.questions)}
    job.report.output("report", ArtifactKind.REPORT, directory, told)


def _write_markdown(
    directory: Path,
    spec: EvalSpec,
    table: tuple[Sequence[str], Sequence[Sequence[Cell]]],
    swept: Sequence[Sequence[Cell]],
) -> None:
    lines = [f"# {spec.adapter or spec.model} on {spec.data} ({spec.split})", ""]
    lines += _markdown(*table)
    if swept:
        lines += ["", *_markdown(sweep.COLUMNS, swept)]
    (directory / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    head = [name.replace("_", " ") for name in columns]
    body = [[_cell(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def _cell(cell: Cell) -> str:
    if isinstance(cell, bool) or cell is None:
        return "yes" if cell else ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)
