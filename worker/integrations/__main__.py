"""Sends one run's metrics: the run on the first line of stdin, a point on each further one.

What a service cannot do is said once, as a line of text on stdout, and that service is left out
from then on; the others go on. It ends when stdin does, within ``END_SECONDS``.
"""

import importlib
import os
import sys
import threading
from typing import Protocol, TextIO

from espalier.specs.services import SERVICES
from worker.integrations.run import End, Point, Run

#: Seconds that services get for their last words.
END_SECONDS = 60.0

_CLASSES = {
    "wandb": ("clouds", "WandB"),
    "swanlab": ("clouds", "SwanLab"),
    "mlflow": ("mlflow", "MLflow"),
    "tensorboard": ("tensorboard", "TensorBoard"),
}


class Service(Protocol):
    """Where metrics go; any call may raise."""

    def log(self, point: Point) -> None: ...

    def finish(self, state: str) -> None: ...


class Sender:
    """The services that work, and where it is told what does not."""

    def __init__(self, run: Run, told: TextIO) -> None:
        self._told = told
        self._services: dict[str, Service] = {}
        for name in run.services:
            try:
                module, cls = _CLASSES[name]
                loaded = importlib.import_module(f"worker.integrations.{module}")
                self._services[name] = getattr(loaded, cls)(run)
            except (Exception, SystemExit) as error:  # libraries of others: anything
                self._give_up(name, error)

    def log(self, point: Point) -> None:
        for name, service in list(self._services.items()):
            try:
                service.log(point)
            except (Exception, SystemExit) as error:
                self._give_up(name, error)

    def finish(self, state: str) -> None:
        for name, service in list(self._services.items()):
            try:
                service.finish(state)
            except (Exception, SystemExit) as error:
                self._give_up(name, error)

    def _give_up(self, name: str, error: BaseException) -> None:
        self._services.pop(name, None)
        why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ImportError):
            why = f"{why}; `pip install espalier[integrations]` on the worker brings it"
        print(
            f"{SERVICES[name]} gets no more metrics of this run: {why:.300}.",
            file=self._told,
            flush=True,
        )


def main() -> None:
    # Libraries print what they like: only warnings may reach the worker.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sender = Sender(Run.model_validate_json(sys.stdin.readline()), told)
    state = "killed"
    for line in sys.stdin:
        if '"state"' in line:
            state = End.model_validate_json(line).state
            break
        sender.log(Point.model_validate_json(line))
    patience = threading.Timer(END_SECONDS, os._exit, (1,))
    patience.daemon = True
    patience.start()
    sender.finish(state)


if __name__ == "__main__":
    main()
