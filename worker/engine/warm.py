"""A process made ready before it has a job: modules imported, kernels compiled and loaded.

Nothing of it can be told in a job's result: generators are set back, memory is given back, and
tests compare what a warm process makes with what a cold one does, bit for bit. Whatever fails
here fails quietly; the job that needs it will say so.
"""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from espalier.states import Kind
from worker.engine.report import log

#: What mlx-lm and transformers import when a model, a tokenizer or a data set is first used.
_LATER = (
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
    "tokenizers",
    "mlx_lm.tuner.trainer",
    "mlx_lm.tuner.datasets",
    "mlx_lm.tuner.lora",
    "mlx_lm.tuner.dora",
    "mlx_lm.models.switch_layers",
    "mlx_lm.models.llama",
    "mlx_lm.models.qwen2",
    "mlx_lm.models.qwen3",
    "mlx_lm.models.mistral3",
    "mlx_lm.models.gemma3_text",
    "mlx_lm.models.phi3",
)
#: By how much a warming process yields to what a person does on the machine.
_NICE = 10


def warm_up(wanted: Callable[[], bool]) -> None:
    """Import, then run a step of a tiny model; stop between two steps when a job is ``wanted``."""
    with _aside():
        for name in (*(f"worker.engine.{kind}.job" for kind in Kind), *_LATER):
            if wanted():
                return
            _import(name)
        for step in (_train, _quantized):
            if wanted():
                return
            with _unseen():
                step()


def _import(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        log.debug("%s is not imported: %s", name, error)


@contextmanager
def _unseen() -> Iterator[None]:
    """Leave generators and memory as they were; what fails is only not warm."""
    import mlx.core as mx

    from worker.engine.kept import generators

    restore = generators()
    try:
        yield
    except Exception as error:
        log.debug("kernels are not warm: %s: %s", type(error).__name__, error)
    finally:
        gc.collect()
        mx.clear_cache()
        mx.reset_peak_memory()
        restore()


def _model() -> Any:
    """A Llama of two small layers with random weights, in the type that this device likes."""
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=64,
            num_hidden_layers=2,
            intermediate_size=128,
            num_attention_heads=2,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            vocab_size=128,
        )
    )
    model.set_dtype(mx.bfloat16 if mx.default_device() == mx.Device(mx.gpu) else mx.float32)
    mx.eval(model.parameters())
    return model


def _train() -> None:
    """A forward pass as eval does it, and a LoRA step with AdamW as train does it."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.optimizers import AdamW
    from mlx_lm.tuner.trainer import default_loss
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model, tokens, spans = _model(), mx.ones((2, 33), mx.int32), mx.array([[1, 32], [1, 20]])
    mx.eval(default_loss(model, tokens, spans))
    model.freeze()
    linear_to_lora_layers(model, 2, {"rank": 8, "dropout": 0.1, "scale": 20.0})
    optimizer = AdamW(learning_rate=1e-5)
    state = [model.state, optimizer.state, mx.random.state]

    @mx.compile(inputs=state, outputs=state)  # type: ignore[untyped-decorator]
    def step(tokens: Any, spans: Any) -> Any:
        value, gradients = nn.value_and_grad(model, default_loss)(model, tokens, spans)
        optimizer.update(model, gradients)
        return value

    model.train()
    for _ in range(2):
        mx.eval(step(tokens, spans), state[:2])


def _quantized() -> None:
    import mlx.core as mx
    import mlx.nn as nn

    model = _model()
    nn.quantize(model, group_size=64, bits=4)
    mx.eval(model(mx.ones((1, 8), mx.int32)))


# --- Politeness ---------------------------------------------------------------------------


@contextmanager
def _aside() -> Iterator[None]:
    """Yield to everybody else meanwhile, where a process may take its place again afterwards."""
    if sys.platform == "darwin":
        _darwin_background(True)
    elif _may_return():
        _nice(_NICE)
    try:
        yield
    finally:
        if sys.platform == "darwin":
            _darwin_background(False)
        elif _may_return():
            _nice(0)


def _may_return() -> bool:
    """Whether this process may lower its nice value again."""
    if os.geteuid() == 0:
        return True
    with suppress(AttributeError, OSError, psutil.Error):
        limit = psutil.Process().rlimit(psutil.RLIMIT_NICE)[0]
        return bool(limit >= 20)
    return False


def _nice(value: int) -> None:
    """Set it for every thread there is: on Linux each has its own, and hands it on."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), value)


def _darwin_background(on: bool) -> None:
    """<sys/resource.h>: PRIO_DARWIN_PROCESS 4, PRIO_DARWIN_BG 0x1000; 0 ends it."""
    with suppress(OSError):
        os.setpriority(4, 0, 0x1000 if on else 0)
