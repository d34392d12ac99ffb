"""The best weights of a run by validation loss, and when it is no use to go on.

A validation measures the weights of a step. Those of the lowest loss are kept in the run's adapter
folder from the moment they are measured, travel in every checkpoint, and are handed out at the
end. What is measured before the first step is what training has to beat, never what it hands out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.engine.adapters import adapter_name, save_adapter
from worker.engine.train.files import link

#: The best weights so far, in the adapter folder and in checkpoints.
BEST_FILE = "best_adapters.safetensors"


@dataclass(slots=True)
class Best:
    """What validations have found. Losses in nats; all of it is one checkpoint's worth of state.

    ``bar`` is the loss that the next validation has to beat by the minimum delta, ``waited`` how
    many have not.
    """

    step: int | None = None
    loss: float | None = None
    start: float | None = None  # before the first step
    bar: float | None = None
    waited: int = 0
    stopped: bool = False

    def take(self, step: int, loss: float, patience: int | None, min_delta: float) -> bool:
        """Take a validation's loss; return whether these weights are the best so far.

        ``stopped`` is true from the ``patience``-th validation in a row that did not fall below
        the bar by more than ``min_delta``. Small gains add up: the bar stays where it was.
        """
        if step == 0:
            self.start = loss
            return False
        if self.bar is None or loss < self.bar - min_delta:
            self.bar, self.waited = loss, 0
        else:
            self.waited += 1
        self.stopped = patience is not None and self.waited >= patience
        if self.loss is not None and loss >= self.loss:
            return False
        self.step, self.loss = step, loss
        return True


def write_weights(model: Any, adapter: Path, step: int, best: Best) -> None:
    """Keep the weights of ``step`` under mlx-lm's name; as a second name where they are the best.

    Weights that have their file already are not written again.
    """
    path = adapter / adapter_name(step)
    if path.is_file():
        return
    if best.step == step and (adapter / BEST_FILE).is_file():
        link(adapter / BEST_FILE, path)
    else:
        save_adapter(model, path)


def hand_out(model: Any, adapter: Path, step: int, best: Best, keep: str) -> int:
    """Leave ``adapters.safetensors`` as what others load, and return the step of its weights.

    The best and the last weights of the run both stay: what is not handed out has its step's name.
    """
    kept, target = adapter / BEST_FILE, adapter / "adapters.safetensors"
    if best.step is not None and keep == "best":
        write_weights(model, adapter, step, best)
        kept.replace(target)
        return best.step
    last = adapter / adapter_name(step)
    if last.is_file():
        link(last, target)
    else:
        save_adapter(model, target)
    if best.step is not None:
        kept.replace(adapter / adapter_name(best.step))
    return step
