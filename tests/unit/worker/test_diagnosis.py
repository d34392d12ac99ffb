import pytest

from espalier.messages import Failure
from espalier.states import Reason
from worker.diagnosis import Death, diagnose, hung, recognise, too_much
from worker.watchdog import Hang

#: As MLX, Metal, Python and Rust print them.
ABORT = "libc++abi: terminating due to uncaught exception of type std::runtime_error: "
FAILED = "[METAL] Command buffer execution failed: "
METAL_OOM = (
    ABORT + FAILED + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
)
METAL_WATCHDOG = (
    FAILED + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)"
)
METAL_DISPLAY = (
    FAILED
    + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)"
)
METAL_HANG = FAILED + "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)"
METAL_FAULT = (
    FAILED + "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)"
)
METAL_VICTIM = FAILED + "Innocent Victim (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)"
METAL_INTERNAL = FAILED + "Internal Error (0000000e:Internal Error)"
COMMAND_BUFFER = (
    "Execution of the command buffer was aborted due to an error during execution. Ignored (for"
    " causing prior/excessive GPU errors)"
    " (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)"
)
COMMAND_BUFFER_OOM = (
    "Execution of the command buffer was aborted due to an error during execution. Insufficient"
    " Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"
)
RESOURCE_LIMIT = "RuntimeError: [metal::malloc] Resource limit (499000) exceeded."
TOO_LARGE = (
    "RuntimeError: [metal::malloc] Attempting to allocate 19327352832 bytes which is greater than"
    " the maximum allowed buffer size of 17179869184 bytes."
)
CPU_OOM = "RuntimeError: [malloc] Unable to allocate 137438953472 bytes."
BAD_ALLOC = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  bad_alloc"
DISK = "OSError: [Errno 28] No space left on device: '/data/output/adapters.safetensors'"
RUST_DISK = (
    "safetensors_rust.SafetensorError: Error while serializing: I/O error: No space left on device"
    " (os error 28)"
)
MLX_DISK = "RuntimeError: [write] Unable to write 33554432 bytes to file."
QUOTA = "OSError: [Errno 122] Disk quota exceeded"
STALE = "OSError: [Errno 116] Stale file handle: '/data/inputs/model/model.safetensors'"


@pytest.mark.parametrize(
    ("status", "tail", "reason", "says"),
    [
        (-6, METAL_OOM, Reason.OUT_OF_MEMORY, "SIGABRT"),
        (-6, COMMAND_BUFFER_OOM, Reason.OUT_OF_MEMORY, "memory"),
        (1, RESOURCE_LIMIT, Reason.OUT_OF_MEMORY, "memory"),
        (1, TOO_LARGE, Reason.OUT_OF_MEMORY, "memory"),
        (1, CPU_OOM, Reason.OUT_OF_MEMORY, "memory"),
        (-6, BAD_ALLOC, Reason.OUT_OF_MEMORY, "memory"),
        (-6, METAL_WATCHDOG, Reason.METAL_ABORT, "display"),
        (-6, METAL_DISPLAY, Reason.METAL_ABORT, "display"),
        (-6, METAL_HANG, Reason.METAL_ABORT, "GPU hung"),
        (-6, METAL_FAULT, Reason.METAL_ABORT, "GPU hung"),
        (-6, METAL_VICTIM, Reason.METAL_ABORT, "another program"),
        (-6, METAL_INTERNAL, Reason.METAL_ABORT, "Metal aborted"),
        (-6, COMMAND_BUFFER, Reason.METAL_ABORT, "Metal dropped"),
        (1, DISK, Reason.DISK_FULL, "disk is full"),
        (1, RUST_DISK, Reason.DISK_FULL, "disk is full"),
        (1, MLX_DISK, Reason.DISK_FULL, "disk is full"),
        (1, QUOTA, Reason.DISK_FULL, "quota"),
        (1, STALE, Reason.INPUT_LOST, "disk of the worker"),
        (-11, "", Reason.KILLED, "SIGSEGV"),
        (-9, "", Reason.KILLED, "SIGKILL"),
        (-200, "", Reason.KILLED, "signal 200"),
        (7, "boom\n\nValueError: rank\n", Reason.CODE_ERROR, "ValueError: rank"),
        (0, "", Reason.CODE_ERROR, "exit status 0"),
        (None, "", Reason.KILLED, "does not end"),
    ],
)
def test_why_a_child_died(status: int | None, tail: str, reason: Reason, says: str) -> None:
    failure = diagnose(Death(status, tail))
    assert failure.code is reason
    assert says in failure.message
    assert failure.hint


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: Expected shape (4, 128) but received (4, 64) for parameter lora_a",
        "step 1000: train loss 2.1234, 900 tokens/s, peak memory 12.345 GB",
        "KeyError: 'model.layers.28.mlp'",
        "The internal error rate of the data set is 28",
    ],
)
def test_what_is_no_sign_is_recognised_as_none(text: str) -> None:
    assert recognise(text, "exit status 1") is None


def test_what_a_child_says_itself_counts() -> None:
    said = Failure(code=Reason.NAN_LOSS, message="The loss became nan.", hint="Lower it.")
    assert diagnose(Death(1, METAL_OOM), said) == said


def test_a_child_killed_near_its_limit_ran_out_of_memory() -> None:
    def killed(status: int, peak: int) -> Failure:
        return diagnose(Death(status, "", peak_memory=peak, memory_limit=100))

    failure = killed(-9, 95)
    assert failure.code is Reason.OUT_OF_MEMORY
    assert "95 of the 100" in failure.message
    assert killed(-9, 50).code is Reason.KILLED
    assert killed(-11, 95).code is Reason.KILLED


def test_what_the_system_says_of_a_kill_counts() -> None:
    jettisoned = diagnose(Death(-9, "", 50, 100, jettisoned="vm-pageshortage, at 70 bytes"))
    assert jettisoned.code is Reason.OUT_OF_MEMORY
    assert "vm-pageshortage" in jettisoned.message
    assert diagnose(Death(-9, "", 50, 100, oom_kills=1)).code is Reason.OUT_OF_MEMORY
    assert diagnose(Death(-11, "", 50, 100, oom_kills=1)).code is Reason.KILLED


def test_a_helper_that_the_system_ended_explains_a_child_that_could_not_go_on() -> None:
    said = Failure(code=Reason.PROOF_FAILED, message="llama.cpp could not read it (-9).")
    failure = diagnose(Death(1, "", 50, 100, oom_kills=1), said)
    assert failure.code is Reason.OUT_OF_MEMORY
    assert "llama.cpp could not read it" in failure.message
    assert diagnose(Death(1, "", 50, 100), said) == said
    bad = Failure(code=Reason.BAD_INPUT, message="no rows")
    assert diagnose(Death(1, "", 50, 100, oom_kills=1), bad) == bad


def test_pythons_last_words_are_their_first_line() -> None:
    tail = (
        "step 3\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call"
        ' first):\n  File "loop.py", line 1 in run\n\nExtension modules: numpy (total: 1)\n'
    )
    assert diagnose(Death(-11, tail)).message.endswith("Fatal Python error: Segmentation fault")


def test_a_hang_is_told_with_what_was_seen() -> None:
    hang = Hang("training", 130.0, 0.5, busy=False)
    failure = hung(hang, stopped=False)
    assert failure.code is Reason.HUNG
    assert "130 s" in failure.message
    assert "ESPALIER_HANG_FLOOR_SECONDS" in (failure.hint or "")
    assert "stopped by a signal" in hung(hang, stopped=True).message


def test_the_figures_of_too_much_memory() -> None:
    failure = too_much(1_500, 1_000)
    assert failure.code is Reason.OUT_OF_MEMORY
    assert "1,500 bytes of memory, 500 more than the 1,000" in failure.message
