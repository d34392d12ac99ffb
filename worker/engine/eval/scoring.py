"""Has answers judged by a process of its own, which is ended when it is late and begun anew."""

import os
import selectors
import subprocess
import sys
from types import TracebackType

from worker.engine.eval.judge import Case, Judgement

#: Seconds that one judgement may take; a process that has just begun imports its libraries first.
PATIENCE, BEGINNING = 15.0, 60.0
#: Of the job's environment, what a process needs to begin. It has no business with the rest.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LANG", "LC_ALL", "VIRTUAL_ENV")
_ENDED = "judging it ended the process that judges: it takes more memory than it may"


class Judge:
    """Asks the process; a context manager, at whose end the process is gone."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._fresh = False

    def __enter__(self) -> "Judge":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def judge(self, case: Case) -> Judgement:
        """Return the judgement; an answer that takes too long, or ends the process, is worth 0."""
        process = self._process or self._begin()
        assert process.stdin is not None
        try:
            process.stdin.write(case.model_dump_json().encode() + b"\n")
            process.stdin.flush()
            line = self._line(process)
        except (BrokenPipeError, TimeoutError) as error:
            self._end()
            late = isinstance(error, TimeoutError)
            return Judgement(
                score=0, note=f"judging it took more than {self._patience:g} s" if late else _ENDED
            )
        if not line:
            self._end()
            return Judgement(score=0, note=_ENDED)
        self._fresh = False
        return Judgement.model_validate_json(line)

    def _begin(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.engine.eval.box"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        self._fresh = True
        return self._process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """Return its next line, empty when it has ended; raise TimeoutError when it is late."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            if not ready.select(BEGINNING if self._fresh else self._patience):
                raise TimeoutError
        return process.stdout.readline()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
