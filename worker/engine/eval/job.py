"""Evaluation: test loss as ``mlx_lm.lora --test``, a sweep over checkpoints, answers judged.

Everything is refused that cannot work before anything is measured; then the base and what was made
of it are measured on the same rows, and answer the same prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier.specs import EvalSpec
from worker.engine import data
from worker.engine.adapters import Adapter, open_adapter
from worker.engine.eval import answers, best, report, sweep
from worker.engine.eval.answers import Answer
from worker.engine.eval.prompts import Question, questions
from worker.engine.eval.report import Found
from worker.engine.eval.samples import Samples
from worker.engine.eval.scoring import Judge
from worker.engine.eval.swap import Swap
from worker.engine.kept import base
from worker.engine.measure import Limits, prepare
from worker.engine.models import Loaded, facts
from worker.engine.report import BadInput, Job


def run(job: Job) -> None:
    """Measure; report metrics, tables, a proof against the base, and a report."""
    spec = job.task.spec
    assert isinstance(spec, EvalSpec)
    job.report.phase("loading")
    adapter = open_adapter(job.need("adapter")) if spec.adapter else None
    paths = sweep.checkpoints_of(adapter) if adapter and spec.sweep else {}
    loaded = base(job)
    swap = Swap(loaded, adapter) if adapter else None
    dataset = _open(job, spec, loaded.tokenizer)
    asked = questions(spec, dataset) if spec.metrics else []
    meta = facts(loaded)
    with Judge() as judge:
        if asked:
            job.report.phase("reading the references")
            answers.check_references(job, spec, judge, asked)
        ruler = sweep.Ruler.of(job, spec, prepare(dataset, Limits.of(spec)))
        evaluation = _Evaluation(job, spec, loaded, ruler, asked)
        if adapter is None or swap is None:
            evaluation.model()
        else:
            if spec.compare_base:
                evaluation.base()
            evaluation.adapter(adapter, swap, paths)
        evaluation.judge(judge)
    report.conclude(job, spec, adapter, evaluation.found, meta)
    if adapter and spec.move_best:
        best.hand_out(job, adapter, evaluation.found.swept, meta)


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


@dataclass(slots=True)
class _Evaluation:
    """One model in memory, measured and asked as the base, then as what was made of it."""

    job: Job
    spec: EvalSpec
    loaded: Loaded
    ruler: sweep.Ruler
    asked: Sequence[Question]
    found: Found = field(default_factory=Found)
    base_answers: Sequence[Answer] = ()
    answers: Sequence[Answer] = ()

    def model(self) -> None:
        """Measure the model as it is: there is no adapter."""
        self.found.tuned = self._test("testing")
        self.answers = self._ask("answering")

    def base(self) -> None:
        """Measure the model before its adapter is put on."""
        self.found.base = self._test("testing the base")
        self.base_answers = self._ask("answering as the base")

    def adapter(self, adapter: Adapter, swap: Swap, paths: dict[int, Path]) -> None:
        """Measure the adapter, and before it every checkpoint where that is wanted."""
        found = self.found
        swap.tune()
        if paths:
            self.job.report.phase("testing checkpoints")
            found.swept = sweep.sweep(self.ruler, swap, self.loaded.model, paths)
            swap.load(adapter.directory / "adapters.safetensors")
        found.tuned = found.swept.get(adapter.step) or self._test("testing")
        if found.base:
            found.difference = self.ruler.difference(found.tuned.measured, found.base.measured)
        self.answers = self._ask("answering")

    def judge(self, judge: Judge) -> None:
        """Judge what was answered."""
        if not self.asked:
            return
        self.job.report.phase("judging")
        for said in filter(None, (self.base_answers, self.answers)):
            answers.judge(self.job, self.spec, judge, self.asked, said)
        self.found.samples = Samples(self.asked, self.answers, self.base_answers)

    def _test(self, phase: str) -> sweep.Tested:
        self.job.report.phase(phase)
        measured = self.ruler.measure(self.loaded.model)
        return sweep.Tested(measured, self.ruler.interval(measured))

    def _ask(self, phase: str) -> Sequence[Answer]:
        if not self.asked:
            return ()
        self.job.report.phase(phase)
        return answers.ask(self.job, self.spec, self.loaded, self.asked)
