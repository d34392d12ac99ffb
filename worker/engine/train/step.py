"""One training step: a batch at once as mlx-lm takes it, or in parts with the same result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.trainer import grad_checkpoint as _mlx_lm_checkpoint

from espalier.specs import TrainSpec
from worker.engine.data import padded, target_tokens
from worker.engine.train import packing

Step = Callable[[Any, Any, bool], tuple[Any, Any, Any]]


def part_loss(model: Any, tokens: Any, spans: Any, total: Any) -> tuple[Any, Any]:
    """Return a part's share of its batch's mean loss, and the part's target tokens.

    ``tokens`` is [rows, T], ``spans`` [rows, 2] as mlx-lm has them, ``total`` the target tokens
    of the whole batch. mlx-lm's ``default_loss`` divides by the tokens it was given; divided by
    the batch's, losses and gradients of the parts add up to those of the batch.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits = model(inputs)
    at = mx.arange(1, targets.shape[1] + 1)
    mask = mx.logical_and(at >= spans[:, 0:1], at <= spans[:, 1:])
    losses = nn.losses.cross_entropy(logits, targets) * mask
    return losses.astype(mx.float32).sum() / total, mask.sum()


@dataclass(frozen=True, slots=True)
class Shape:
    """How a step computes a batch: its loss, and the arrays that the loss takes.

    ``collate`` makes them of rows (or packs) and max_seq_length; ``targets`` counts the tokens of
    a whole batch, which the loss takes as well where ``shared``: it is a part's share then.
    """

    loss: Callable[..., tuple[Any, Any]]
    collate: Callable[[list[Any], int], tuple[Any, ...]]
    targets: Callable[[list[Any], int], int]
    shared: bool


#: mlx-lm's own; a batch in parts; several rows a sequence.
WHOLE = Shape(default_loss, padded, target_tokens, shared=False)
IN_PARTS = Shape(part_loss, padded, target_tokens, shared=True)
PACKED = Shape(packing.packed_loss, packing.collate, packing.targets, shared=True)


def shape_of(spec: TrainSpec) -> Shape:
    """Return how this spec's batches are computed."""
    if spec.packing:
        return PACKED
    return IN_PARTS if (spec.micro_batch_size or spec.batch_size) < spec.batch_size else WHOLE


def compile_step(
    model: Any, optimizer: Any, accumulation: int, shape: Shape = WHOLE
) -> tuple[Step, list[Any]]:
    """Return mlx-lm's compiled training step, and the state that it changes.

    ``step(arrays of the shape's loss, gradient or None, update)`` returns the batch's mean loss
    (a part's share of it), its target tokens and the gradient accumulated so far (None after an
    update).
    """
    value_and_grad = nn.value_and_grad(model, shape.loss)
    state = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(batch: Any, previous: Any, update: bool) -> tuple[Any, Any, Any]:
        (loss, tokens), gradient = value_and_grad(model, *batch)
        if previous is not None:
            gradient = tree_map(lambda x, y: x + y, gradient, previous)
        if update:
            gradient = average_gradients(gradient)
            if accumulation > 1:
                gradient = tree_map(lambda x: x / accumulation, gradient)
            optimizer.update(model, gradient)
            gradient = None
        return loss, tokens, gradient

    return step, state


def grad_checkpoint(layer: Any, dropout: bool) -> None:
    """Have every layer of this type compute its activations again instead of keeping them.

    Without ``dropout`` it is mlx-lm's own. That one draws new dropout masks for the second
    forward pass, so that gradients belong to other masks than the loss; here both passes draw
    from one key. It patches the layer's class for good: once a process.
    """
    if not dropout:
        _mlx_lm_checkpoint(layer)
        return
    forward = type(layer).__call__

    def checkpointed(module: Any, *args: Any, **kwargs: Any) -> Any:
        if not module.training:
            return forward(module, *args, **kwargs)

        # Drawn from the process's generator, so that a resumed run draws it again.
        key = mx.random.randint(0, 1 << 31, (2,)).astype(mx.uint32)

        def inner(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            module.update(parameters)
            with _dropping_by(key):
                return forward(module, *args, **kwargs)

        return mx.checkpoint(inner)(module.trainable_parameters(), *args, **kwargs)

    type(layer).__call__ = checkpointed


@contextmanager
def _dropping_by(key: Any) -> Iterator[None]:
    """Draw the masks of ``nn.Dropout`` from ``key``, one after the other."""
    plain = mx.random.bernoulli

    def bernoulli(*args: Any, **kwargs: Any) -> Any:
        nonlocal key
        key, own = mx.random.split(key)
        return plain(*args, key=own, **kwargs)

    mx.random.bernoulli = bernoulli
    try:
        yield
    finally:
        mx.random.bernoulli = plain
