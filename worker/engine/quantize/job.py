"""Affine quantization at any bits and group size, measured before and after."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path
from mlx_lm.generate import stream_generate
from mlx_lm.utils import compute_bits_per_weight, quantize_model, save

from espalier.specs import QuantizeSpec
from espalier.states import ArtifactKind
from worker.engine.measure import Limits, Measured, measure, seed_everything
from worker.engine.models import Loaded, facts, load_model, weight_bytes
from worker.engine.proofs import HeldOut, Verdict, compare, held_out
from worker.engine.report import BadInput, Job

#: How much perplexity may rise, as a fraction, by bits; at 2 bits it is recorded only.
PERPLEXITY_INCREASE: dict[int, float | None] = {
    8: 0.02,
    6: 0.05,
    5: 0.10,
    4: 0.25,
    3: 1.0,
    2: None,
}
_DTYPES = ("float16", "bfloat16", "float32")
_COLUMNS = (
    "variant",
    "bits_per_weight",
    "size_bytes",
    "perplexity",
    "prompt_tokens_per_second",
    "tokens_per_second",
    "peak_memory_bytes",
)
_SPEED_TOKENS = 32
_SPEED_PROMPT = 64


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table people make by hand."""

    name: str
    bits_per_weight: float
    size: int
    measured: Measured
    prompt_speed: float
    speed: float
    peak: int

    def row(self) -> list[str | float | int]:
        return [
            self.name,
            round(self.bits_per_weight, 3),
            self.size,
            self.measured.perplexity,
            round(self.prompt_speed, 1),
            round(self.speed, 1),
            self.peak,
        ]


def run(job: Job) -> None:
    """Quantize, read the result back from disk, and prove it against the original."""
    spec = job.task.spec
    assert isinstance(spec, QuantizeSpec)
    job.report.phase("loading")
    seed_everything(spec.seed)
    source = job.need("model")
    original = load_model(source)
    _refuse_quantized(original)
    if spec.test_batches == 0:
        raise BadInput("test_batches is 0: nothing would be measured.", "Use −1 for all.")
    limits = Limits.of(spec)
    text = held_out(job, original, limits)

    job.report.phase("measuring the original")
    before = _variant(job, "original", original, text)
    directory = job.output("model")
    job.report.phase("quantizing")
    _write(job, spec, original, directory)
    del original

    job.report.phase("measuring the quantized")
    mx.clear_cache()
    quantized = load_model(directory)
    after = _variant(job, f"{spec.q_bits}-bit, group {spec.q_group_size}", quantized, text)
    job.report.table("quantize", _COLUMNS, [before.row(), after.row()])

    job.report.phase("proving")
    _prove(job, spec, source, quantized, text)
    job.report.metrics(
        0,
        perplexity=after.measured.perplexity,
        test_loss=after.measured.loss,
        tokens=after.measured.tokens,
        base_perplexity=before.measured.perplexity,
        bits_per_weight=after.bits_per_weight,
        tokens_per_second=after.speed,
        peak_memory_bytes=after.peak,
    )
    meta = facts(quantized) | {"bits_per_weight": round(after.bits_per_weight, 3)}
    meta["quantized_from"] = {"model": spec.model, "weight_bytes": before.size}
    job.report.output("model", ArtifactKind.MODEL, directory, meta)


def _refuse_quantized(loaded: Loaded) -> None:
    """mlx-lm keeps the old bits of a quantized model without a word; here it is refused."""
    found = loaded.quantization
    if found:
        raise BadInput(
            f"The model is quantized already ({found.get('bits')} bits, group"
            f" {found.get('group_size')}): its layers would keep those bits.",
            "Quantize the unquantized model, or fuse with dequantize first.",
        )


def _write(job: Job, spec: QuantizeSpec, loaded: Loaded, directory: Path) -> None:
    """Quantize in place and save, as ``mlx_lm.convert -q``. Raises BadInput if nothing fits."""
    model, config = loaded.model, dict(loaded.config)
    cast(model, spec.dtype or config.get("torch_dtype"))
    if spec.dtype:
        config["torch_dtype"] = spec.dtype
    _tell_left_out(job, spec, model)
    model, config = quantize_model(model, config, spec.q_group_size, spec.q_bits, mode=spec.q_mode)
    save(directory, loaded.directory, model, loaded.tokenizer, config, donate_model=True)


def cast(model: Any, dtype: Any) -> None:
    """Convert floating parameters as ``mlx_lm.convert`` does: to the dtype asked for or stored."""
    if dtype not in _DTYPES:
        return
    wanted = getattr(mx, dtype)
    castable = getattr(model, "cast_predicate", lambda _: True)

    def convert(name: str, value: Any) -> Any:
        floating = mx.issubdtype(value.dtype, mx.floating)
        return value.astype(wanted) if floating and castable(name) else value

    model.update(tree_map_with_path(convert, model.parameters()))


def _tell_left_out(job: Job, spec: QuantizeSpec, model: Any) -> None:
    """Name the layers whose width no group divides; mlx-lm leaves them as they are, silently."""
    layers = [(n, m) for n, m in model.named_modules() if hasattr(m, "to_quantized")]
    left = [n for n, m in layers if m.weight.shape[-1] % spec.q_group_size]
    if len(left) == len(layers):
        raise BadInput(
            f"No layer's width divides by q_group_size {spec.q_group_size}: nothing would be"
            " quantized.",
            "Use q_group_size 32." if spec.q_group_size > 32 else "The model is too narrow.",
        )
    if left:
        job.report.notice(
            f"{len(left)} of {len(layers)} layers keep their precision, because their width does"
            f" not divide by q_group_size {spec.q_group_size}: {', '.join(left[:5])}"
            f"{'…' if len(left) > 5 else ''}",
            "warning",
        )


def _variant(job: Job, name: str, loaded: Loaded, text: HeldOut) -> Variant:
    """Measure a model alone in memory: perplexity, speed, and the peak of both, in bytes."""
    mx.reset_peak_memory()
    measured = measure(job, loaded.model, text.dataset, text.limits)
    prompt = text.dataset[0][0][:_SPEED_PROMPT]
    began = time.perf_counter()
    told = list(stream_generate(loaded.model, loaded.tokenizer, prompt, max_tokens=_SPEED_TOKENS))
    seconds = time.perf_counter() - began
    last = told[-1]
    # A text that ends at its first token leaves mlx-lm's rate without a time to divide by.
    speed = min(last.generation_tps, 1e6) or last.generation_tokens / seconds
    return Variant(
        name,
        float(compute_bits_per_weight(loaded.model)),
        weight_bytes(loaded.model),
        measured,
        min(last.prompt_tps, 1e6),
        speed,
        int(mx.get_peak_memory()),
    )


def _prove(job: Job, spec: QuantizeSpec, source: Path, quantized: Loaded, text: HeldOut) -> None:
    limit = spec.max_perplexity_increase
    if limit is None:
        limit = PERPLEXITY_INCREASE[spec.q_bits]
    found = compare(job, load_model(source).model, quantized.model, text)
    detail = f"{found.reference.tokens} tokens of {text.source}"
    verdict = Verdict(job)
    verdict.at_most("perplexity_increase", found.perplexity_increase, limit, detail)
    verdict.at_most("mean_kl", found.mean_kl, None, f"{detail}; worst token {found.max_kl:.3g}")
    verdict.close("Use more bits or a smaller q_group_size, or allow more by its own limit.")
