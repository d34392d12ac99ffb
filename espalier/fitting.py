"""The one change that makes a job fit: what the predictor says of each, tried in this order.

What changes nothing in the result comes first (grad_checkpoint, rows computed at once), then what
costs a little of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.memory import Estimate, estimate
from espalier.specs import Spec, TrainSpec

#: The shortest rows, in tokens, that are proposed.
SHORTEST = 128


@dataclass(frozen=True, slots=True)
class Change:
    """One setting: its values, the bytes the job then needs, and a sentence for people."""

    setting: str
    before: int | bool
    after: int | bool
    needs: int
    message: str


def first_fit(
    config: Mapping[str, Any] | None,
    spec: Spec,
    weights: int | None,
    limit: int,
    longest: int | None = None,
    adapter: int = 0,
) -> Change | None:
    """Return the first single change with which the job needs at most ``limit`` bytes."""
    for setting, before, after, message in _changes(spec, longest):
        smaller = spec.model_copy(update={setting: after})
        found = estimate(config, smaller, weights, longest, adapter)
        if found.known and found.total <= limit:
            return Change(setting, before, after, found.total, message)
    packed = _quantized(config, spec, longest)
    if packed is not None and packed.known and packed.total <= limit:
        said = "a base quantized to 4 bits makes it fit (espalier quantize, then train on that)"
        return Change("q_bits", 0, 4, packed.total, said)
    return None


def _changes(spec: Spec, longest: int | None) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield (setting, before, after, sentence)."""
    if isinstance(spec, TrainSpec) and not spec.grad_checkpoint:
        said = "grad_checkpoint makes it fit; the result is the same, a step takes longer"
        yield "grad_checkpoint", False, True, said
    batch = getattr(spec, "batch_size", None)
    if batch is not None:
        now = rows = min(getattr(spec, "micro_batch_size", None) or batch, batch)
        while rows > 1:
            rows //= 2
            said = f"micro_batch_size {rows} makes it fit; the result is the same"
            yield "micro_batch_size", now, rows, said
    length = getattr(spec, "max_seq_length", None)
    if length is not None:
        shorter = min(length, longest or length)
        while shorter > SHORTEST:
            shorter = max(shorter // 2, SHORTEST)
            said = f"max_seq_length {shorter} makes it fit; longer rows are cut"
            yield "max_seq_length", length, shorter, said
    if isinstance(spec, TrainSpec):
        for layers in (16, 8, 4, 2, 1):
            if spec.num_layers == -1 or layers < spec.num_layers:
                said = f"num_layers {layers} makes it fit; fewer layers learn"
                yield "num_layers", spec.num_layers, layers, said


def _quantized(
    config: Mapping[str, Any] | None, spec: Spec, longest: int | None
) -> Estimate | None:
    """Return what adapters on a base of 4 bits would need; None where there is no such job."""
    adapters = isinstance(spec, TrainSpec) and spec.fine_tune_type != "full"
    if config is None or config.get("quantization") or not adapters:
        return None
    return estimate({**config, "quantization": {"bits": 4, "group_size": 64}}, spec, None, longest)
