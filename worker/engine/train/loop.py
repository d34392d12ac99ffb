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
from worker.engine.adapters import save_adapter
from worker.engine.data import Batches, split
from worker.engine.measure import Limits, mean_loss
from worker.engine.report import Cancelled, Fault, Job, log
from worker.engine.train import checkpoints
from worker.engine.train.best import BEST_FILE, write_weights
from worker.engine.train.checkpoints import Progress
from worker.engine.train.guards import PATIENCE, are_finite
from worker.engine.train.step import Step, compile_step, grad_checkpoint, shape_of


class Loop:
    """One run over ``spec.iters`` steps, from wherever ``progress`` is.

    mlx-lm validates before the first step, before every ``steps_per_eval``-th and before the last,
    so that step 200's validation is of the weights of step 199. So does ``order: mlx-lm``; else a
    validation comes after its step, and is its checkpoint's.
    """

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
        self._upstream = spec.order == "mlx-lm"
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
        if valid_set is not None and progress.step == 0 and not self._upstream:
            self._validate(0, valid_set)
        while not self._is_over():
            rows = next(drawn)
            it = progress.step + 1
            if valid_set is not None and self._upstream and (it == 1 or self._is_due(it)):
                self._validate(it - 1, valid_set)
                if self._is_over():
                    break
            began = time.perf_counter()
            loss = self._take(step, state, rows, it % spec.grad_accumulation_steps == 0)
            progress.seconds += time.perf_counter() - began
            progress.step = it
            progress.steps += 1
            self._guard(loss)
            self._after_step(valid_set)
        self._conclude()

    def _is_over(self) -> bool:
        return self.progress.step >= self.spec.iters or self.progress.best.stopped

    def _is_due(self, it: int) -> bool:
        return it % self.spec.steps_per_eval == 0 or it == self.spec.iters

    def _take(self, step: Step, state: list[Any], rows: list[Any], update: bool) -> float:
        """Take one step over a batch, whole or part by part; return its loss.

        A part is evaluated before the next is built, so that only its activations are in memory;
        gradient and loss of the batch are sums over its parts.
        """
        spec, progress = self.spec, self.progress
        shape = self._shape
        parts = split(rows, spec.micro_batch_size)
        total = mx.array(shape.targets(rows, spec.max_seq_length), mx.float32)
        found = 0.0
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
            found += float(loss.item())
        return found

    def _after_step(self, valid_set: Any | None) -> None:
        spec, it = self.spec, self.progress.step
        self.job.report.progress(it, spec.iters, "steps")
        if it % spec.steps_per_report == 0 or it == spec.iters:
            self._report()
        if valid_set is not None and not self._upstream and self._is_due(it):
            self._validate(it, valid_set)
        stopped = self.progress.best.stopped
        cancelled = self.job.orders.cancelled and it < spec.iters and not stopped
        if it % spec.save_every == 0:
            self._check_weights()
            write_weights(self.model, self.adapter, it, self.progress.best)
            # What may be diverging must not take the place of the last good checkpoint.
            if cancelled or stopped or self.progress.course.is_sound(spec.divergence_limit):
                self._checkpoint()
        elif cancelled:
            self._check_weights()
            self._checkpoint()
        if cancelled:
            raise Cancelled

    def _validate(self, step: int, valid_set: Any) -> None:
        """Measure the validation loss of the weights of ``step``; keep them if it is the lowest."""
        self.job.report.phase("validating")
        spec, best = self.spec, self.progress.best

        def alive() -> None:
            """Say that nothing hangs, though no step is done: on a GPU the CPU may rest."""
            self.job.report.progress(step, spec.iters, "steps")

        drawn = self.batches.validating()
        loss, _ = mean_loss(self.model, valid_set, self._validation, drawn, alive)
        self.model.train()
        log.info("step %d: validation loss %.4f", step, loss)
        if not math.isfinite(loss):
            raise self._ended(Reason.NAN_LOSS, f"The validation loss became {loss} by step {step}.")
        found = {"val_loss": loss}
        if best.take(step, loss, spec.early_stopping_patience, spec.early_stopping_min_delta):
            save_adapter(self.model, self.adapter / BEST_FILE)
            found |= {"best_val_loss": loss, "best_step": step}
        self.job.report.metrics(step, **found)
        self.job.report.phase("training")

    def _report(self) -> None:
        """Report the mean loss since the last report."""
        progress = self.progress
        loss = float(progress.losses.item()) / progress.steps
        tokens = int(progress.tokens.item())
        rate = tokens / progress.seconds
        learning_rate = float(self.optimizer.learning_rate.item())
        peak = int(mx.get_peak_memory())
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
        self.progress.saved = step
        self.job.report.checkpoint(step, directory)

    def _conclude(self) -> None:
        """Say why a run is over before its last step, and whether training was worth it."""
        self._check_weights()
        best, step = self.progress.best, self.progress.step
        if best.stopped and step < self.spec.iters:
            delta = self.spec.early_stopping_min_delta
            below = f"more than {delta:g} nats below" if delta else "below"
            self.job.report.notice(
                f"Stopped early after step {step} of {self.spec.iters}: {best.waited} validations"
                f" in a row were not {below} {best.bar:.4f}. The lowest validation loss was"
                f" {best.loss:.4f}, at step {best.step}."
            )
            self.job.report.progress(step, step, "steps")
        if best.start is not None and best.loss is not None and best.loss >= best.start:
            self.job.report.notice(
                f"No validation loss was below that of before training, {best.start:.4f}: the"
                f" lowest was {best.loss:.4f}, at step {best.step}. A lower learning_rate may"
                " help.",
                "warning",
            )

    def _guard(self, loss: float) -> None:
        """Raise Fault before broken weights are saved; mlx-lm saves them without a word."""
        progress, limit = self.progress, self.spec.divergence_limit
        if not math.isfinite(loss):
            raise self._ended(
                Reason.NAN_LOSS, f"The train loss became {loss} in step {progress.step}."
            )
        course = progress.course
        if course.take(loss, limit):
            raise self._ended(
                Reason.DIVERGED,
                f"The run has diverged by step {progress.step}: for {PATIENCE} steps the smoothed"
                f" train loss, now {course.smoothed:.3f}, was more than divergence_limit {limit:g}"
                f" above its lowest, {course.lowest:.3f}.",
            )

    def _check_weights(self) -> None:
        """Raise Fault for NaN or infinity in what is about to be kept.

        A loss is of the weights before its step: broken gradients show in the next one's only. An
        optimizer's broken state breaks the weights in the same update.
        """
        progress = self.progress
        trained = self.model.trainable_parameters()
        if not are_finite(trained, progress.gradients):
            raise self._ended(
                Reason.NAN_LOSS,
                f"Weights or gradients became NaN or infinite in step {progress.step}.",
            )

    def _ended(self, reason: Reason, why: str) -> Fault:
        saved = self.progress.saved
        kept = "no checkpoint was made before" if saved is None else f"that of step {saved}"
        return Fault(
            reason,
            f"{why} The last good checkpoint: {kept}.",
            "Lower learning_rate (a tenth is a good first try) or lora_parameters.scale, or warm up"
            " (lr_schedule.warmup).",
        )
