"""The child process: one EngineTask on stdin, events out, one job done.

With ``--warm`` it makes itself ready before its task comes (worker.engine.warm). With ``--serve``
it may be given an eval after an eval, if its base is still loaded (worker.engine.kept); every
other job ends its process.

Exit status: 0 succeeded or cancelled, 1 failed (an ErrorEvent says why), 3 the runner went away.
"""

import ctypes
import faulthandler
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import psutil

from espalier.errors import InvalidInput
from espalier.messages import EngineTask
from espalier.states import Kind, Reason
from worker.diagnosis import recognise
from worker.engine.report import Cancelled, Fault, Job, Orders, Reporter
from worker.serving import SERVE, WARM

log = logging.getLogger("engine")

#: Read by the libraries when they are imported. Inputs are local directories, so a library that
#: reaches for the network is wrong; progress bars and colours make a log unreadable.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "NO_COLOR": "1",
    "TQDM_DISABLE": "1",
}

#: Of what the job may use, for MLX: the rest is Python's, the libraries' and the tokenizer's.
_MLX_SHARE = 0.95
#: Of that, what MLX may keep of freed buffers: they fit later requests less and less, and nothing
#: but this limit gives them back.
_CACHE_SHARE = 0.5
#: Limits that this process has set: a base that is kept must not count as Python's.
_limits: set[int] = set()
_PR_SET_PDEATHSIG = 1


class _Engine(Protocol):
    def run(self, job: Job) -> None: ...


def _fault(error: BaseException, inputs: Mapping[str, str]) -> Fault:
    """Return why the job failed, as the runner and a person need it; ``inputs``: role → folder."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, InvalidInput):
        return Fault(Reason.BAD_INPUT, error.detail, error.hint)
    text = f"{type(error).__name__}: {error}"
    if known := recognise(text, text[:300]):
        return Fault(known.code, known.message, known.hint)
    gone = [role for role, directory in inputs.items() if not Path(directory).is_dir()]
    if gone:
        return Fault(
            Reason.INPUT_LOST,
            f"The job's {', '.join(gone)} vanished from the worker's disk meanwhile ({text:.300}).",
            "It is tried again and fetches them anew. Something else cleans up in the worker's data"
            " directory.",
        )
    return Fault(Reason.CODE_ERROR, text[:2000], "The end of the log has the traceback.")


def _limit_memory(limit: int | None) -> None:
    """Have MLX give its cache back, and wait, rather than hold more than ``limit`` bytes in all.

    Whoever holds more is ended from outside; what MLX only keeps for later must not be the cause.
    """
    if limit and limit not in _limits:
        import mlx.core as mx

        held = psutil.Process().memory_info()
        share = max(int(_MLX_SHARE * limit) - (held.rss - getattr(held, "shared", 0)), limit // 2)
        mx.set_memory_limit(share)
        mx.set_cache_limit(int(_CACHE_SHARE * share))
        _limits.add(limit)


def _answer_to_the_worker() -> None:
    """Let the worker ask for all stacks, and let nothing live on without it.

    End of file on stdin tells a child that its worker is gone (worker.engine.report). A library
    that holds Python's lock, or a signal that stopped the child, would keep it from hearing that;
    on Linux the kernel ends it then.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def execute(job: Job) -> int:
    """Run the job's kind and tell how it ended; return the exit status."""
    fault: Fault | None = None
    cancelled = False
    try:
        engine = cast(_Engine, importlib.import_module(f"worker.engine.{Kind(job.task.kind)}.job"))
        _limit_memory(job.task.memory_limit)
        engine.run(job)
    except Cancelled:
        cancelled = True
    except Exception as error:
        fault = _fault(error, job.task.inputs)
        if fault is not error or error.__cause__:
            traceback.print_exc()
    # Before the last event: the runner may hang up as soon as it has read it.
    job.orders.finish()
    if fault:
        job.report.error(fault.code, fault.message, fault.hint)
        return 1
    job.report.done("cancelled" if cancelled else "succeeded")
    return 0


def _serve(report: Reporter, orders: Orders, serving: bool) -> int:
    """Run the task that comes; where ``serving``, and after an eval, those that come then."""
    while True:
        line = orders.task()
        try:
            task = EngineTask.model_validate_json(line)
        except ValueError as error:
            report.error(Reason.CODE_ERROR, f"The worker sent no valid task: {error}")
            return 1
        before = None
        if serving:
            from worker.engine.kept import Surroundings

            before = Surroundings()
            os.chdir(task.scratch_dir)
        status = execute(Job(task, report.anew(), orders, serving))
        sys.stdout.flush()
        sys.stderr.flush()
        if status or orders.cancelled or before is None or task.kind != Kind.EVAL:
            return status
        if not before.restore():
            return status
        report.ready()


def main() -> int:
    _answer_to_the_worker()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("httpx", "filelock", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.update(_ENVIRONMENT)
    report = Reporter.from_environment()
    orders = Orders(sys.stdin, answer=report.ready)
    orders.listen()
    arguments = sys.argv[1:]
    if WARM in arguments:
        from worker.engine.warm import warm_up

        warm_up(lambda: orders.waiting)
        report.ready()
    return _serve(report, orders, serving=SERVE in arguments)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The order reader blocks on stdin for ever; leaving by the front door would wait for its lock.
    os._exit(status)
