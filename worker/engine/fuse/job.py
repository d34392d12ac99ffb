"""Fusing adapters into their base, or into one adapter, with the proof that nothing was lost.

One model is in memory at a time: what base + adapters say of held-out text is recorded on disk, the
result is written tensor after tensor, read back, and compared with the record.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from espalier.specs import FuseSpec
from espalier.states import ArtifactKind
from worker.engine.adapters import apply_adapter, open_adapter
from worker.engine.fuse import merging, writing
from worker.engine.fuse.merging import Part
from worker.engine.measure import Limits, Measured, measure, seed_everything
from worker.engine.models import Loaded, facts, load_model, versions
from worker.engine.proofs import Comparison, HeldOut, Verdict, held_out
from worker.engine.recording import Recording, against, record
from worker.engine.report import Job

_COLUMNS = ("variant", "test_loss", "perplexity", "tokens")


def run(job: Job) -> None:
    """Fuse, read the result back from disk, and prove it against base + adapters."""
    spec = job.task.spec
    assert isinstance(spec, FuseSpec)
    job.report.phase("loading")
    seed_everything(spec.seed)
    parts = _parts(job, spec)
    planned = writing.plan(job.need("model"), parts)
    job.orders.check()
    rows, text, recording = _record(job, spec, parts)

    directory = job.output(spec.output)
    job.report.phase("fusing")
    lossy = planned.quantization is not None and spec.output == "model" and not spec.dequantize
    meta: dict[str, Any]
    if spec.output == "adapter":
        config = merging.write_adapter(merging.merge(parts), planned, directory, spec.model)
        candidate = load_model(job.need("model"))
        apply_adapter(candidate, open_adapter(directory))
        meta = {"lora_parameters": config["lora_parameters"], "versions": versions()}
    else:
        writing.write(planned, directory, spec.dequantize, job)
        candidate = load_model(directory)
        meta = facts(candidate)

    job.report.phase("proving")
    found = against(job, recording, candidate.model, text)
    _tell(job, parts, rows, found)
    _judge(job, spec, lossy, text, rows["base"], found)
    meta["fused_from"] = _sources(spec)
    job.report.output(spec.output, ArtifactKind(spec.output), directory, meta)


def _record(
    job: Job, spec: FuseSpec, parts: list[Part]
) -> tuple[dict[str, Measured], HeldOut, Recording]:
    """Measure the base, and each of several adapters alone, by their names in the table; keep what
    the base says with all of them on. No model is in memory afterwards.
    """
    loaded = load_model(job.need("model"))
    text = held_out(job, loaded, Limits.of(spec))
    job.report.phase("testing the base")
    rows = {"base": measure(job, loaded.model, text.dataset, text.limits)}
    for part in parts if len(parts) > 1 else ():
        before = merging.stack(loaded, [part])
        name = f"base + {part.name}" + (f" × {part.weight:g}" if part.weight != 1 else "")
        rows[name] = measure(job, loaded.model, text.dataset, text.limits)
        loaded.model.update_modules(tree_unflatten(list(before.items())))
    _tune(loaded, parts)
    recording = record(job, loaded.model, text, Path(job.task.scratch_dir) / "tuned")
    del loaded
    mx.clear_cache()
    return rows, text, recording


def _parts(job: Job, spec: FuseSpec) -> list[Part]:
    """Open the adapters by their roles; raises BadInput for what is none or cannot be added."""
    parts = [
        Part(ref, open_adapter(job.need(role)), weight)
        for role, (ref, weight) in spec.weighted().items()
    ]
    if len(parts) > 1 or parts[0].weight != 1 or spec.output == "adapter":
        merging.check_mergeable(parts)
    return parts


def _tune(loaded: Loaded, parts: list[Part]) -> None:
    """Put the adapters on a loaded base, each computed by itself: what the result must equal."""
    if len(parts) == 1 and parts[0].weight == 1:
        apply_adapter(loaded, parts[0].adapter)
    else:
        merging.stack(loaded, parts)


def _judge(
    job: Job, spec: FuseSpec, lossy: bool, text: HeldOut, base: Measured, found: Comparison
) -> None:
    """Record the proofs; raises ProofFailed when one does not hold."""
    verdict = Verdict(job)
    detail = f"{found.reference.tokens} tokens of {text.source}; mean KL {found.mean_kl:.3g}"
    verdict.at_most("max_kl", found.max_kl, spec.max_kl, detail)
    difference = abs(found.perplexity_increase)
    verdict.at_most("perplexity_difference", difference, spec.max_perplexity_difference, detail)
    if lossy:
        verdict.at_least("adapter_retained", _retained(base, found), None, "share of its gain")
    verdict.close(
        "The base is quantized, and writing the adapter into its few bits lost it: set dequantize,"
        " and quantize the fused model afterwards."
        if lossy
        else "Compare dtypes: a wider base, or a larger max_kl where the difference is harmless."
    )


def _retained(base: Measured, found: Comparison) -> float:
    """How much of the adapter's improvement over the base is left after fusing, as a share."""
    gain = base.loss - found.reference.loss
    return (base.loss - found.candidate.loss) / gain if gain else 1.0


def _sources(spec: FuseSpec) -> dict[str, Any]:
    if spec.adapter is not None:
        return {"model": spec.model, "adapter": spec.adapter}
    named = [{"adapter": ref, "weight": weight} for ref, weight in spec.weighted().values()]
    return {"model": spec.model, "adapters": named}


def _tell(job: Job, parts: list[Part], rows: dict[str, Measured], found: Comparison) -> None:
    tuned = "base + adapter" if len(parts) == 1 else f"base + {len(parts)} adapters"
    told = rows | {tuned: found.reference, "fused": found.candidate}
    job.report.table(
        "fuse", _COLUMNS, [[name, m.loss, m.perplexity, m.tokens] for name, m in told.items()]
    )
    job.report.metrics(
        0,
        test_loss=found.candidate.loss,
        perplexity=found.candidate.perplexity,
        tokens=found.candidate.tokens,
        base_perplexity=rows["base"].perplexity,
    )
