import pytest

from espalier.states import Reason
from worker.diagnosis import diagnose

#: As MLX and macOS print them.
METAL_OOM = (
    "libc++abi: terminating due to uncaught exception of type std::runtime_error: [METAL] Command"
    " buffer execution failed: Insufficient Memory"
    " (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
)
METAL_WATCHDOG = (
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error"
    " (00000002:kIOGPUCommandBufferCallbackErrorTimeout)"
)
METAL_VICTIM = (
    "[METAL] Command buffer execution failed: Innocent Victim"
    " (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)"
)
RESOURCE_LIMIT = "RuntimeError: [metal::malloc] Resource limit (499000) exceeded."
DISK = "OSError: [Errno 28] No space left on device"


@pytest.mark.parametrize(
    ("status", "tail", "reason", "says"),
    [
        (-6, METAL_OOM, Reason.OUT_OF_MEMORY, "SIGABRT"),
        (-6, METAL_WATCHDOG, Reason.KILLED, "display"),
        (-6, METAL_VICTIM, Reason.KILLED, "Metal"),
        (1, RESOURCE_LIMIT, Reason.OUT_OF_MEMORY, "memory"),
        (1, DISK, Reason.CODE_ERROR, "disk is full"),
        (-11, "", Reason.KILLED, "SIGSEGV"),
        (-9, "", Reason.KILLED, "SIGKILL"),
        (-200, "", Reason.KILLED, "signal 200"),
        (7, "boom\n\nValueError: rank\n", Reason.CODE_ERROR, "ValueError: rank"),
        (0, "", Reason.CODE_ERROR, "exit status 0"),
    ],
)
def test_why_a_child_died(status: int, tail: str, reason: Reason, says: str) -> None:
    failure = diagnose(status, tail)
    assert failure.code is reason
    assert says in failure.message
    assert failure.hint


def test_a_child_killed_near_its_limit_ran_out_of_memory() -> None:
    failure = diagnose(-9, "", peak_memory=95, memory_limit=100)
    assert failure.code is Reason.OUT_OF_MEMORY
    assert "95 of the 100" in failure.message
    assert diagnose(-9, "", peak_memory=50, memory_limit=100).code is Reason.KILLED
    assert diagnose(-11, "", peak_memory=95, memory_limit=100).code is Reason.KILLED
