"""Fusing an adapter into its base, as ``mlx_lm.fuse``, with the proof that nothing was lost."""

from pathlib import Path

from mlx.utils import tree_unflatten
from mlx_lm.utils import dequantize_model, save

from espalier.specs import FuseSpec
from espalier.states import ArtifactKind
from worker.engine.adapters import Adapter, apply_adapter, open_adapter
from worker.engine.measure import Limits, Measured, measure, seed_everything
from worker.engine.models import Loaded, facts, load_model
from worker.engine.proofs import Comparison, Verdict, compare, held_out
from worker.engine.report import Job

_COLUMNS = ("variant", "test_loss", "perplexity", "tokens")


def run(job: Job) -> None:
    """Fuse, read the result back from disk, and prove it against base + adapter."""
    spec = job.task.spec
    assert isinstance(spec, FuseSpec)
    job.report.phase("loading")
    seed_everything(spec.seed)
    adapter = open_adapter(job.need("adapter"))
    tuned = load_model(job.need("model"))
    limits = Limits.of(spec)
    text = held_out(job, tuned, limits)
    job.report.phase("testing the base")
    base = measure(job, tuned.model, text.dataset, text.limits)
    apply_adapter(tuned, adapter)

    directory = job.output("model")
    job.report.phase("fusing")
    quantized = tuned.quantization is not None
    fuse(job.need("model"), adapter, directory, dequantize=spec.dequantize)
    job.orders.check()

    job.report.phase("proving")
    fused = load_model(directory)
    found = compare(job, tuned.model, fused.model, text)
    _tell(job, base, found)
    verdict = Verdict(job)
    detail = f"{found.reference.tokens} tokens of {text.source}; mean KL {found.mean_kl:.3g}"
    verdict.at_most("max_kl", found.max_kl, spec.max_kl, detail)
    difference = abs(found.perplexity_increase)
    verdict.at_most("perplexity_difference", difference, spec.max_perplexity_difference, detail)
    if quantized and not spec.dequantize:
        verdict.at_least("adapter_retained", _retained(base, found), None, "share of its gain")
    verdict.close(
        "The base is quantized, and writing the adapter into its few bits lost it: set dequantize,"
        " and quantize the fused model afterwards."
        if quantized and not spec.dequantize
        else "Compare dtypes: a wider base, or a larger max_kl where the difference is harmless."
    )
    meta = facts(fused) | {"fused_from": {"model": spec.model, "adapter": spec.adapter}}
    job.report.output("model", ArtifactKind.MODEL, directory, meta)


def fuse(base: Path, adapter: Adapter, directory: Path, dequantize: bool) -> None:
    """Write base + adapter as one model. A quantized base is quantized again, its way.

    mlx-lm dequantizes a layer, adds the update and quantizes at the layer's own bits and group.
    """
    loaded: Loaded = load_model(base)
    apply_adapter(loaded, adapter)
    model, config = loaded.model, dict(loaded.config)
    fused = [
        (name, module.fuse(dequantize=dequantize))
        for name, module in model.named_modules()
        if hasattr(module, "fuse")
    ]
    if fused:
        model.update_modules(tree_unflatten(fused))
    if dequantize:
        model = dequantize_model(model)
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    save(directory, base, model, loaded.tokenizer, config, donate_model=True)


def _retained(base: Measured, found: Comparison) -> float:
    """How much of the adapter's improvement over the base is left after fusing, as a share."""
    gain = base.loss - found.reference.loss
    return (base.loss - found.candidate.loss) / gain if gain else 1.0


def _tell(job: Job, base: Measured, found: Comparison) -> None:
    rows = {"base": base, "base + adapter": found.reference, "fused": found.candidate}
    job.report.table(
        "fuse", _COLUMNS, [[name, m.loss, m.perplexity, m.tokens] for name, m in rows.items()]
    )
    job.report.metrics(
        0,
        test_loss=found.candidate.loss,
        perplexity=found.candidate.perplexity,
        tokens=found.candidate.tokens,
        base_perplexity=base.perplexity,
    )
