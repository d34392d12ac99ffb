"""What every attempt of a worker uses, and how an attempt fails."""

from dataclasses import dataclass

from espalier.errors import EspalierError
from espalier.messages import Failure
from espalier.settings import Settings
from espalier.states import Reason
from espalier.transfer import Transfer
from worker.control import Control
from worker.idle import Idle
from worker.inputs import Inputs


@dataclass(frozen=True, slots=True)
class Tools:
    """One worker's connections, and what its children may take."""

    control: Control
    transfer: Transfer
    inputs: Inputs
    memory_limit: int
    cancel_grace_seconds: float  # from order to kill
    engine: str = "worker.engine"  # the module that the child runs
    hang_first_seconds: float = Settings.model_fields["hang_first_seconds"].default
    hang_floor_seconds: float = Settings.model_fields["hang_floor_seconds"].default
    spool_bytes: int = Settings.model_fields["spool_bytes"].default
    idle: Idle | None = None  # without, each job's child is started when the job comes


class Failed(Exception):
    """The attempt failed; says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def failed(code: Reason, error: EspalierError | OSError) -> Failed:
    """Return a failure of the given kind with the error's own words."""
    hint = error.hint if isinstance(error, EspalierError) else None
    return Failed(Failure(code=code, message=str(error), hint=hint))
