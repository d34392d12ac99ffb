"""Quantization in one or several variants, each measured against the original.

No two models are in memory together: the original is measured alone and what it says is recorded on
disk; a variant is written layer by layer, read back from disk, and compared with the record.
"""

import math
import shutil
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from espalier.specs import QuantizeSpec
from espalier.specs.recipes import LEARNED, Recipe
from espalier.states import ArtifactKind
from worker.engine import measure, shards
from worker.engine.models import Loaded, facts, load_model, vet
from worker.engine.proofs import HeldOut, Verdict, held_out
from worker.engine.quantize import plain
from worker.engine.quantize.calibration import Calibration, open_calibration
from worker.engine.quantize.choice import COLUMNS, Choice, Limits, Trial, Variant, choose, table
from worker.engine.quantize.learned import check_type, learn
from worker.engine.quantize.trial import attempt
from worker.engine.recording import Recording, against, record
from worker.engine.report import BadInput, Job, ProofFailed

#: How much perplexity may rise, as a fraction, by bits; at 2 bits it is recorded only.
PERPLEXITY_INCREASE: dict[int, float | None] = {
    8: 0.02,
    6: 0.05,
    5: 0.10,
    4: 0.25,
    3: 1.0,
    2: None,
}
#: The same for a change of dtype alone.
_CAST_INCREASE = 0.02
_HINT = "Use more bits or a smaller q_group_size, or allow more by its own limit."


@dataclass(slots=True)
class _Run:
    """One quantize job: what is compared, and what has been made so far."""

    job: Job
    spec: QuantizeSpec
    source: Path
    text: HeldOut
    original: Trial
    recording: Recording
    calibration: Calibration | None
    variants: list[Variant] = field(default_factory=list)
    made: dict[str, tuple[Path, dict[str, Any]]] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        return bool(self.spec.variants)


def run(job: Job) -> None:
    """Make the variants, read each back from disk, and prove it against the original."""
    spec = job.task.spec
    assert isinstance(spec, QuantizeSpec)
    source = job.need("model")
    calibration = _check(job, spec, source)
    work = _measure_original(job, spec, source, calibration)
    faults: list[BadInput] = []
    for name, recipe in spec.recipes:
        try:
            _make(work, name, recipe)
        except BadInput as error:
            if not work.several:
                raise
            faults.append(error)
            job.report.notice(f"{name} is left out: {error.message}", "warning")
        mx.clear_cache()
    if not work.variants:
        raise faults[0]
    limits = Limits(spec.size_limit, spec.max_perplexity_increase)
    choice = choose(work.variants, limits)
    _tell(work, choice)
    if choice.variant is None:
        raise ProofFailed(f"{choice.sentence} Nothing is published.", _HINT)
    _publish(work, choice, choice.variant)


# --- Before -------------------------------------------------------------------------------


def _check(job: Job, spec: QuantizeSpec, source: Path) -> Calibration | None:
    """Refuse what cannot end well before anything is loaded; return the text to learn from.

    Raises BadInput.
    """
    config = vet(source)
    for _, recipe in spec.recipes:
        check_type(config, recipe)
    # The loader knows of quantizations that other tools wrote; it reads headers only.
    opened = shards.open_model(source)
    found = opened.quantization
    if found and not spec.requantize:
        raise BadInput(
            f"The model is quantized already ({_bits(found)}): its layers would keep those bits.",
            "Quantize the unquantized model; or set requantize, to unpack this one and quantize it"
            " again.",
        )
    if found:
        job.report.notice(
            f"The model is quantized already ({_bits(found)}): it is unpacked and quantized again."
            " What it lost then is not in its weights any more; perplexity and KL are told against"
            " it as it is."
        )
    if not any(recipe.method in LEARNED for _, recipe in spec.recipes):
        return None
    calibration = open_calibration(job, opened.tokenizer, spec.seed)
    job.report.notice(f"Calibrated on {calibration.source}.")
    return calibration


def _bits(quantization: dict[str, Any]) -> str:
    mode = quantization.get("mode", "affine")
    named = "" if mode == "affine" else f", {mode}"
    return f"{quantization.get('bits')} bits, group {quantization.get('group_size')}{named}"


def _measure_original(
    job: Job, spec: QuantizeSpec, source: Path, calibration: Calibration | None
) -> _Run:
    job.report.phase("loading")
    measure.seed_everything(spec.seed)
    original = load_model(source)
    text = held_out(job, original, measure.Limits.of(spec))
    job.report.phase("measuring the original")
    mx.reset_peak_memory()
    recording = record(job, original.model, text, Path(job.task.scratch_dir) / "original")
    trial = attempt("original", original, text, recording.measured)
    return _Run(job, spec, source, text, trial, recording, calibration)


# --- A variant ----------------------------------------------------------------------------


def _make(run: _Run, name: str, recipe: Recipe) -> None:
    """Write, measure and prove one variant. Raises BadInput when the model cannot have it."""
    job = run.job
    role = name if run.several else "model"
    behind = f" {name}" if run.several else ""
    measure.seed_everything(run.spec.seed)
    job.report.phase(f"quantizing{behind}")
    directory = job.output(role)
    _write(run, recipe, directory)
    mx.clear_cache()

    job.report.phase(f"measuring{behind}" if run.several else "measuring the quantized")
    loaded = load_model(directory)
    mx.reset_peak_memory()
    found = against(job, run.recording, loaded.model, run.text)
    trial = attempt(name, loaded, run.text, found.candidate)
    variant = _judge(run, Variant(trial, found), recipe)
    run.variants.append(variant)
    if variant.failures and run.several:
        job.report.notice(f"{name} is not published: {variant.failures}.", "warning")
        shutil.rmtree(directory)
        return
    meta = facts(loaded) | _facts_of(run, variant, recipe)
    run.made[name] = (directory, meta)


def _write(run: _Run, recipe: Recipe, directory: Path) -> None:
    """Write the variant's folder; in memory is a layer, or what a learned method holds."""
    job = run.job

    def source() -> Loaded:
        loaded = shards.open_model(run.source)
        if loaded.quantization:
            plain.unpack(loaded)
            # mlx-lm unpacks floating-point formats to bfloat16, whatever the model's type is.
            plain.cast_to(loaded, None)
        return loaded

    if recipe.method in LEARNED:
        assert run.calibration
        scratch = Path(job.task.scratch_dir) / "learning"
        loaded = learn(job, source, recipe, run.calibration, scratch)
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        loaded = source()
        plain.convert(loaded, recipe, partial(job.report.notice, level="warning"))
    shards.save_model(directory, loaded, loaded.config, partial(_advance, job))


def _advance(job: Job, done: int, total: int) -> None:
    job.advance(done, total, "bytes")


def _judge(run: _Run, variant: Variant, recipe: Recipe) -> Variant:
    """Prove the variant; one of several that is no good is noted, a single one fails the job."""
    found, spec = variant.found, run.spec
    limit = spec.max_perplexity_increase
    if limit is None:
        limit = _CAST_INCREASE if recipe.method == "none" else PERPLEXITY_INCREASE[_lowest(recipe)]
    if limit is None and not math.isfinite(found.perplexity_increase):
        limit = sys.float_info.max
    detail = f"{found.reference.tokens} tokens of {run.text.source}"
    kept = run.recording
    only = f" on {kept.kept} of them" if kept.kept < found.reference.tokens else ""
    likeliest = f"; of the {kept.top} likeliest tokens ({kept.weight:.1%} of the weight)"
    top = "" if kept.whole else f"{likeliest}, the others as one"
    worst = f"{detail}{only}{top}; worst token {found.max_kl:.3g}"
    prefix = f"{variant.name}: " if run.several else ""
    verdict = Verdict(run.job, prefix, optional=run.several)
    verdict.at_most("perplexity_increase", found.perplexity_increase, limit, detail)
    verdict.at_most("mean_kl", found.mean_kl, None, worst)
    if spec.size_limit:
        verdict.at_most("size_bytes", variant.trial.size, spec.size_limit, spec.max_size or "")
    return Variant(variant.trial, found, verdict.failures)


def _lowest(recipe: Recipe) -> int:
    """The bits most of the layers have: a mixed recipe's name has them first."""
    return int(recipe.quant_predicate.split("_")[1]) if recipe.quant_predicate else recipe.q_bits


def _facts_of(run: _Run, variant: Variant, recipe: Recipe) -> dict[str, Any]:
    return {
        "bits_per_weight": round(variant.trial.bits_per_weight, 3),
        "quantized_from": {"model": run.spec.model, "weight_bytes": run.original.size},
        "recipe": recipe.told(),
        "price": {
            "perplexity": variant.trial.measured.perplexity,
            "perplexity_increase": variant.increase,
            "mean_kl": variant.found.mean_kl,
            "tokens": variant.found.reference.tokens,
        },
    }


# --- The end ------------------------------------------------------------------------------


def _tell(run: _Run, choice: Choice) -> None:
    rows = table(run.original, run.variants, choice.variant)
    run.job.report.table("variants", COLUMNS, rows)
    if run.several:
        run.job.report.notice(choice.sentence, "info" if choice.variant else "warning")
    told = choice.variant or run.variants[0]
    run.job.report.metrics(
        0,
        perplexity=told.trial.measured.perplexity,
        test_loss=told.trial.measured.loss,
        tokens=told.trial.measured.tokens,
        base_perplexity=run.original.measured.perplexity,
        bits_per_weight=told.trial.bits_per_weight,
        tokens_per_second=told.trial.speed,
        peak_memory_bytes=told.trial.peak,
    )


def _publish(run: _Run, choice: Choice, chosen: Variant) -> None:
    """Announce the folders that hold their limits; or the recommended one, as the job's own."""
    alone = not run.several or run.spec.publish == "recommended"
    for name, (directory, meta) in run.made.items():
        if alone and name != chosen.name:
            shutil.rmtree(directory)
            continue
        if run.several:
            recommended = name == chosen.name
            meta |= {"recommended": recommended}
            if recommended:
                meta["recommendation"] = choice.sentence
        role = "model" if alone else name
        run.job.report.output(role, ArtifactKind.MODEL, directory, meta)
