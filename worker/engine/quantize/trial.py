"""One model alone in memory: how well it speaks, how fast, and with how much memory."""

import time
from itertools import chain, islice
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import compute_bits_per_weight

from worker.engine.measure import Measured
from worker.engine.models import Loaded, weight_bytes
from worker.engine.proofs import HeldOut
from worker.engine.quantize.choice import Trial

#: Tokens that are read, and tokens that are then generated, to tell the speeds of both.
_PROMPT = 256
_GENERATED = 32
#: Speeds are taken twice, the first time to have everything compiled and in the caches.
_ROUNDS = 2


def attempt(name: str, loaded: Loaded, text: HeldOut, measured: Measured) -> Trial:
    """Generate with a model that was just measured; the peak (bytes) is that of both.

    The caller has reset MLX's peak before it measured.
    """
    prompt = mx.array(_prompt(text))
    for _ in range(_ROUNDS):
        prompt_speed, speed = _speeds(loaded.model, prompt)
    return Trial(
        name,
        float(compute_bits_per_weight(loaded.model)),
        weight_bytes(loaded.model),
        measured,
        prompt_speed,
        speed,
        int(mx.get_peak_memory()),
    )


def _prompt(text: HeldOut) -> list[int]:
    """The first rows of held-out text one after another, at most ``_PROMPT`` tokens."""
    rows = (text.dataset[i][0] for i in range(len(text.dataset)))
    return list(islice(chain.from_iterable(rows), _PROMPT))


def _speeds(model: Any, prompt: Any) -> tuple[float, float]:
    """Return tokens a second, read and generated. An end token ends nothing: all generate alike."""
    began = time.perf_counter()
    steps = generate_step(prompt, model, max_tokens=_GENERATED)
    next(steps)
    read = time.perf_counter()
    count = sum(1 for _ in steps)
    done = time.perf_counter()
    return prompt.size / (read - began), count / (done - read)
