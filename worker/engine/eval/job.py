"""Evaluation: test loss and perplexity, as ``mlx_lm.lora --test``, over one adapter or all of them.

A sweep measures every checkpoint of a run on the same rows and marks the best one, and the step
after which the loss only rises: where the run began to overfit.
"""

import math
from typing import Any

from espalier.specs import EvalSpec
from espalier.states import ArtifactKind
from worker.engine import data
from worker.engine.adapters import Adapter, apply_adapter, load_adapter, open_adapter
from worker.engine.measure import Limits, Measured, measure, seed_everything
from worker.engine.models import facts, load_model
from worker.engine.report import BadInput, Job, write_json


def overfit_step(losses: dict[int, float]) -> int | None:
    """The step after which the loss only rises, or None when it still falls at the end.

    ``losses`` maps step to test loss.
    """
    steps = sorted(losses)
    turn = len(steps) - 1
    while turn > 0 and losses[steps[turn]] > losses[steps[turn - 1]]:
        turn -= 1
    return steps[turn] if steps and turn < len(steps) - 1 else None


def run(job: Job) -> None:
    """Measure; report metrics, the sweep's table, a proof against the base, and a report."""
    spec = job.task.spec
    assert isinstance(spec, EvalSpec)
    job.report.phase("loading")
    seed_everything(spec.seed)
    loaded = load_model(job.need("model"))
    dataset = _open(job, spec, loaded.tokenizer)
    limits = Limits.of(spec)
    adapter = open_adapter(job.need("adapter")) if spec.adapter else None
    meta = facts(loaded)

    base = None
    if adapter is None or spec.compare_base:
        job.report.phase("testing the base")
        base = measure(job, loaded.model, dataset, limits)
    swept: dict[int, Measured] = {}
    tuned = base
    if adapter:
        apply_adapter(loaded, adapter)
        if spec.sweep:
            swept = _sweep(job, loaded.model, adapter, dataset, limits)
        tuned = swept.get(adapter.step)
        if tuned is None:
            job.report.phase("testing")
            load_adapter(loaded.model, adapter.directory / "adapters.safetensors")
            tuned = measure(job, loaded.model, dataset, limits)
    assert tuned is not None
    _conclude(job, spec, adapter, base, tuned, swept, meta)


def _open(job: Job, spec: EvalSpec, tokenizer: Any) -> Any:
    dataset = data.open_split(job.need("data"), spec.split, tokenizer, spec)
    if dataset is None:
        raise BadInput(
            f"The data set has no {spec.split}.jsonl.", "Choose another split, or push one."
        )
    data.check_size(spec.split, dataset, spec.batch_size)
    if spec.test_batches == 0:
        raise BadInput("test_batches is 0: nothing would be measured.", "Use −1 for all.")
    if spec.mask_prompt:
        data.check_targets(spec.split, dataset, spec.max_seq_length)
    return dataset


def _sweep(
    job: Job, model: Any, adapter: Adapter, dataset: Any, limits: Limits
) -> dict[int, Measured]:
    """Measure every checkpoint on the same rows; the base's weights stay in memory."""
    job.report.phase("testing checkpoints")
    paths = dict(adapter.checkpoints)
    # The last weights are the last checkpoint's, unless the run ended between two of them.
    paths[adapter.step] = adapter.directory / "adapters.safetensors"
    found: dict[int, Measured] = {}
    for step, path in sorted(paths.items()):
        load_adapter(model, path)
        found[step] = measure(job, model, dataset, limits)
        job.report.metrics(step, test_loss=found[step].loss, perplexity=found[step].perplexity)
    return found


def _conclude(
    job: Job,
    spec: EvalSpec,
    adapter: Adapter | None,
    base: Measured | None,
    tuned: Measured,
    swept: dict[int, Measured],
    meta: dict[str, Any],
) -> None:
    values = tuned.metrics()
    if adapter and base:
        values |= {"base_test_loss": base.loss, "base_perplexity": base.perplexity}
        job.report.proof(
            "perplexity_below_base",
            tuned.perplexity,
            limit=base.perplexity,
            ok=tuned.perplexity < base.perplexity,
            detail=f"{tuned.tokens} tokens of the {spec.split} split",
        )
    rows = []
    if swept:
        best = min(swept, key=lambda step: swept[step].loss)
        values["best_step"] = best
        rows = [[s, m.loss, m.perplexity, s == best] for s, m in sorted(swept.items())]
        job.report.table("checkpoints", ("step", "test_loss", "perplexity", "best"), rows)
        _tell_overfitting(job, {step: m.loss for step, m in swept.items()}, best)
    job.report.metrics(adapter.step if adapter else 0, **values)
    _write_report(job, spec, values, rows, meta)


def _tell_overfitting(job: Job, losses: dict[int, float], best: int) -> None:
    turn = overfit_step(losses)
    if turn is None:
        job.report.notice(
            f"No overfitting seen: the test loss still falls at step {max(losses)}"
            f" (best step {best})."
        )
        return
    job.report.notice(
        f"Overfitting after step {turn}: from there the test loss only rises, from"
        f" {losses[turn]:.4f} to {losses[max(losses)]:.4f} (best step {best}).",
        "warning",
    )


def _write_report(
    job: Job,
    spec: EvalSpec,
    values: dict[str, float],
    rows: list[list[Any]],
    meta: dict[str, Any],
) -> None:
    directory = job.output("report")
    finite = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
    write_json(
        directory / "report.json",
        {
            "model": spec.model,
            "adapter": spec.adapter,
            "data": spec.data,
            "split": spec.split,
            "seed": spec.seed,
            "metrics": finite,
            "checkpoints": [
                {"step": s, "test_loss": loss, "perplexity": ppl, "best": best}
                for s, loss, ppl, best in rows
            ],
            "base": meta,
        },
    )
    lines = [
        f"# {spec.adapter or spec.model} on {spec.data} ({spec.split})",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {value:.6g} |" for name, value in values.items()),
    ]
    if rows:
        lines += ["", "| step | test loss | perplexity | |", "|---|---|---|---|"]
        lines += [f"| {s} | {x:.4f} | {p:.4f} | {'best' if b else ''} |" for s, x, p, b in rows]
    (directory / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    job.report.output("report", ArtifactKind.REPORT, directory, {"metrics": finite})
