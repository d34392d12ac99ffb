"""The training loop: mlx-lm's ``tuner.trainer.train``, resumable at any step.

mlx-lm's own loop keeps its step number, running loss, accumulated gradient and first validation
in local variables, so a restarted one reports other steps, validates once more and accumulates
from another boundary. The loop is therefore written here, of mlx-lm's parts and in its order;
tests hold its losses to those of ``mlx_lm.lora``.
"""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit

from espalier.specs import TrainSpec
from espalier.states import Reason
from worker.engine.adapters import adapter_name, save_adapter
from worker.engine.data import Batches, split
from worker.engine.measure import Limits, mean_loss
from worker.engine.report import Cancelled, Fault, Job, log
from worker.engine.train import checkpoints
from worker.engine.train.checkpoints import Progress
from worker.engine.train.step import Step, compile_step, grad_checkpoint, shape_of


class Loop:
    """One run over ``spec.iters`` steps, from wherever ``progress`` is."""

    def __init__(
        self,
        job: Job,
        spec: TrainSpec,
        model: Any,
        optimizer: Any,
        batches: Batches,
        progress: Progress,
        adapter: Path,
    ) -> None:
        self.job = job
        self.spec = spec
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.progress = progress
        self.adapter = adapter
        self._told_truncated = batches.truncated
        self._shape = shape_of(spec)
        self._validation = replace(Limits.of(spec), batches=spec.val_batches)

    def run(self, train_set: Any, valid_set: Any | None) -> None:
        """Train to the end; raises Cancelled after a cancel order, once its checkpoint stands."""
        spec, progress = self.spec, self.progress
        maybe_set_recommended_wired_limit()
        if spec.grad_checkpoint:
            grad_checkpoint(self.model.layers[0], spec.lora_parameters.dropout > 0)
        step, state = compile_step(
            self.model, self.optimizer, spec.grad_accumulation_steps, self._shape
        )
        self.model.train()
        drawn = self.batches.rows(train_set, spec.batch_size, spec.max_seq_length, loop=True)
        self.job.report.phase("training")
        while progress.step < spec.iters:
            rows = next(drawn)
            it = progress.step + 1
            if valid_set is not None and (
                it == 1 or it % spec.steps_per_eval == 0 or it == spec.iters
            ):
                self._validate(it, valid_set)
            began = time.perf_counter()
            self._take(step, state, rows, it % spec.grad_accumulation_steps == 0)
            progress.seconds += time.perf_counter() - began
            progress.step = it
            progress.steps += 1
            self._after_step()

    def _take(self, step: Step, state: list[Any], rows: list[Any], update: bool) -> None:
        """Take one step over a batch, whole or part by part.

        A part is evaluated before the next is built, so that only its activations are in memory;
        gradient and loss of the batch are sums over its parts.
        """
        spec, progress = self.spec, self.progress
        shape = self._shape
        parts = split(rows, spec.micro_batch_size)
        total = mx.array(shape.targets(rows, spec.max_seq_length), mx.float32)
        for number, part in enumerate(parts, 1):
            batch = tuple(shape.collate(part, spec.max_seq_length))
            batch = (*batch, total) if shape.shared else batch
            loss, tokens, progress.gradients = step(
                batch, progress.gradients, update and number == len(parts)
            )
            progress.losses += loss
            progress.tokens += tokens
            mx.eval(state, progress.losses, progress.tokens, progress.gradients)
            if mx.get_cache_memory() > spec.clear_cache_threshold:
                mx.clear_cache()

    def _after_step(self) -> None:
        spec, it = self.spec, self.progress.step
        self.job.report.progress(it, spec.iters, "steps")
        if it % spec.steps_per_report == 0 or it == spec.iters:
            self._report()
        if self.batches.truncated > self._told_truncated:
            self._tell_truncated()
        cancelled = self.job.orders.cancelled and it < spec.iters
        if it % spec.save_every == 0:
            self._guard(float(self.progress.losses.item()))
            save_adapter(self.model, self.adapter / adapter_name(it))
            self._checkpoint()
        elif cancelled:
            self._guard(float(self.progress.losses.item()))
            self._checkpoint()
        if cancelled:
            raise Cancelled

    def _validate(self, it: int, valid_set: Any) -> None:
        """Measure validation loss before step ``it``; it belongs to the step before."""
        self.job.report.phase("validating")

        def alive() -> None:
            """Say that nothing hangs, though no step is done: on a GPU the CPU may rest."""
            self.job.report.progress(it - 1, self.spec.iters, "steps")

        drawn = self.batches.validating()
        loss, _ = mean_loss(self.model, valid_set, self._validation, drawn, alive)
        self.model.train()
        log.info("step %d: validation loss %.4f", it - 1, loss)
        self._guard(loss, "validation ")
        self.job.report.metrics(it - 1, val_loss=loss)
        self.job.report.phase("training")

    def _report(self) -> None:
        """Report the mean loss since the last report; the only place that waits for a value."""
        progress = self.progress
        loss = float(progress.losses.item()) / progress.steps
        tokens = int(progress.tokens.item())
        rate = tokens / progress.seconds
        learning_rate = float(self.optimizer.learning_rate.item())
        peak = int(mx.get_peak_memory())
        self._guard(loss)
        progress.trained_tokens += tokens
        log.info(
            "step %d: train loss %.4f, %.0f tokens/s, learning rate %.3g, peak memory %.3f GB",
            progress.step, loss, rate, learning_rate, peak / 1e9,
        )  # fmt: skip
        self.job.report.metrics(
            progress.step,
            train_loss=loss,
            tokens_per_second=rate,
            learning_rate=learning_rate,
            peak_memory_bytes=peak,
            trained_tokens=progress.trained_tokens,
        )
        progress.losses, progress.tokens = mx.array(0.0), mx.array(0)
        progress.steps, progress.seconds = 0, 0.0

    def _checkpoint(self) -> None:
        step = self.progress.step
        directory = Path(self.job.task.scratch_dir) / "checkpoints" / f"{step:07d}"
        checkpoints.save(
            directory, self.adapter, self.model, self.optimizer, self.progress, self.batches
        )
        self.job.report.checkpoint(step, directory)

    def _guard(self, loss: float, what: str = "") -> None:
        """Raise NAN_LOSS before broken weights are saved; mlx-lm saves them without a word."""
        if math.isfinite(loss):
            return
        raise Fault(
            Reason.NAN_LOSS,
            f"The {what}loss became {loss} by step {self.progress.step + (what != '')}.",
            "Lower learning_rate (a tenth is a good first try) or lora_parameters.scale; the last"
            " checkpoint is sound.",
        )

    def _tell_truncated(self) -> None:
        self.job.report.notice(
            f"A row of {self.batches.truncated} tokens is longer than max_seq_length"
            f" {self.spec.max_seq_length} and was cut: the model does not learn its end.",
            "warning",
        )
        self._told_truncated = self.batches.truncated
