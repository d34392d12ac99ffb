"""Evaluation: test loss as ``mlx_lm.lora --test``, a sweep over checkpoints, answers judged.

Everything is refused that cannot work before anything is measured; then the base and what was made
of it are measured on the same rows, and answer the same prompts.
"""

from pathlib import Path
from typing import Any

from espalier.specs import EvalSpec
from worker.engine import data
from worker.engine.adapters import Adapter, open_adapter
from worker.engine.eval import report, sweep
from worker.engine.eval.report import Found
from worker.engine.eval.swap import Swap
from worker.engine.measure import Limits, prepare, seed_everything
from worker.engine.models import Loaded, facts, load_model
from worker.engine.report import BadInput, Job


def run(job: Job) -> None:
    """Measure; report metrics, tables, a proof against the base, and a report."""
    spec = job.task.spec
    assert isinstance(spec, EvalSpec)
    job.report.phase("loading")
    seed_everything(spec.seed)
    adapter = open_adapter(job.need("adapter")) if spec.adapter else None
    paths = sweep.checkpoints_of(adapter) if adapter and spec.sweep else {}
    loaded = load_model(job.need("model"))
    swap = Swap(loaded, adapter) if adapter else None
    dataset = _open(job, spec, loaded.tokenizer)
    meta = facts(loaded)
    ruler = sweep.Ruler.of(job, spec, prepare(dataset, Limits.of(spec)))

    found = Found()
    if swap is None or spec.compare_base:
        job.report.phase("testing the base" if swap else "testing")
        found.base = _tested(ruler, loaded)
    if adapter and swap:
        _tune(ruler, loaded, adapter, swap, paths, found)
    else:
        found.tuned = found.base
    report.conclude(job, spec, adapter, found, meta)


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


def _tested(ruler: sweep.Ruler, loaded: Loaded) -> sweep.Tested:
    measured = ruler.measure(loaded.model)
    return sweep.Tested(measured, ruler.interval(measured))


def _tune(
    ruler: sweep.Ruler,
    loaded: Loaded,
    adapter: Adapter,
    swap: Swap,
    paths: dict[int, Path],
    found: Found,
) -> None:
    """Measure the adapter, and before it every checkpoint where that is wanted."""
    job = ruler.job
    swap.tune()
    if paths:
        job.report.phase("testing checkpoints")
        found.swept = sweep.sweep(ruler, swap, loaded.model, paths)
        swap.load(adapter.directory / "adapters.safetensors")
    found.tuned = found.swept.get(adapter.step)
    if found.tuned is None:
        job.report.phase("testing")
        found.tuned = _tested(ruler, loaded)
    if found.base:
        found.difference = ruler.difference(found.tuned.measured, found.base.measured)
