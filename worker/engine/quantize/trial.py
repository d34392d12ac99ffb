"""One model alone in memory: how well it speaks, how fast, and with how much memory."""

import time
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.generate import stream_generate
from mlx_lm.utils import compute_bits_per_weight

from worker.engine.measure import Measured
from worker.engine.models import Loaded, weight_bytes
from worker.engine.proofs import HeldOut
from worker.engine.quantize.choice import Trial

_SPEED_TOKENS = 32
_SPEED_PROMPT = 64
#: A text that ends at its first token leaves mlx-lm's rate without a time to divide by.
_FASTEST = 1e6


def attempt(name: str, loaded: Loaded, text: HeldOut, measure: Callable[[], Measured]) -> Trial:
    """Measure a model, generate with it, and note the peak of both (bytes)."""
    mx.reset_peak_memory()
    measured = measure()
    prompt = text.dataset[0][0][:_SPEED_PROMPT]
    began = time.perf_counter()
    told = list(stream_generate(loaded.model, loaded.tokenizer, prompt, max_tokens=_SPEED_TOKENS))
    seconds = time.perf_counter() - began
    last = told[-1]
    return Trial(
        name,
        float(compute_bits_per_weight(loaded.model)),
        weight_bytes(loaded.model),
        measured,
        min(last.prompt_tps, _FASTEST),
        min(last.generation_tps, _FASTEST) or last.generation_tokens / seconds,
        int(mx.get_peak_memory()),
    )
