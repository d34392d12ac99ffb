"""A child that follows the engine's protocol and does what its task's prompt feature says.

Real pipes, real signals, no MLX: what the runner does to a child is tested in milliseconds. The
script is the spec's ``text_feature``: words run from left to right. It waits for its task, and for
another one after an eval, as the engine does (worker.serving).
"""

import faulthandler
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.serving import READY, SERVE, WARM

events = os.fdopen(int(os.environ["ESPALIER_EVENTS_FD"]), "w", encoding="utf-8")
cancelled = threading.Event()


def tell(kind: str, /, **values: Any) -> None:
    events.write(json.dumps({"type": kind, "time": time.time(), **values}) + "\n")
    events.flush()


tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()


def listen() -> None:
    for line in sys.stdin:
        if not line.strip():
            tell("phase", name=READY)
        elif "order" not in (message := json.loads(line)):
            tasks.put(message)
        elif message["order"] == "cancel":
            cancelled.set()
    os._exit(3)


def write(directory: Path, content: bytes) -> str:
    directory.mkdir(parents=True)
    (directory / "adapters.safetensors").write_bytes(content)
    return str(directory)


def checkpoint(task: dict[str, Any], step: int) -> None:
    directory = Path(task["output_dir"]) / f"checkpoint-{step}"
    tell("checkpoint", step=step, directory=write(directory, b"c%d" % step * 1000))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def train(task: dict[str, Any], steps: str, seconds: str = "0") -> None:
    for step in range(task["resume_step"] + 1, int(steps) + 1):
        say(f"step {step}")
        tell("metrics", step=step, values={"train_loss": 1.0 / step})
        if step % 5 == 0:
            checkpoint(task, step)
        if cancelled.wait(float(seconds)):
            checkpoint(task, step)
            tell("done", state="cancelled")
            os._exit(0)


def output(task: dict[str, Any], size: str) -> None:
    directory = Path(task["output_dir"]) / "adapter"
    content = bytes(range(256)) * (int(size) // 256)
    tell("output", role="adapter", kind="adapter", directory=write(directory, content))


def inputs(task: dict[str, Any]) -> None:
    for role, directory in sorted(task["inputs"].items()):
        for path in sorted(Path(directory).rglob("*.*")):
            say(f"{role} {path.relative_to(directory)}")


def env(task: dict[str, Any]) -> None:
    del task
    say(json.dumps(dict(os.environ)))


def helper(task: dict[str, Any]) -> None:
    del task
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    say(f"helper {started.pid}")


def stubborn(task: dict[str, Any]) -> None:
    del task
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell("notice", message="stubborn")
    threading.Event().wait(600)


def hang(task: dict[str, Any]) -> None:
    """Wait for what never comes, as a deadlock does."""
    del task
    threading.Event().wait(600)


def burn(task: dict[str, Any], seconds: str) -> None:
    """One step that takes long because it computes."""
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        sum(range(10_000))
    tell("metrics", step=task["resume_step"] + 1000, values={"train_loss": 0.5})


def hold(task: dict[str, Any], size: str) -> None:
    """Hold so many bytes, and go on."""
    del task
    held = bytearray(int(size))
    tell("notice", message=f"holding {len(held)}")
    threading.Event().wait(600)


def fail(task: dict[str, Any], code: str) -> None:
    del task
    tell("error", code=code, message="as asked", hint="ask otherwise")
    os._exit(1)


WORDS: dict[str, Callable[..., None]] = {
    "train": train,
    "output": output,
    "inputs": inputs,
    "env": env,
    "helper": helper,
    "stubborn": stubborn,
    "hang": hang,
    "burn": burn,
    "hold": hold,
    "fail": fail,
    "say": lambda task, text: say(text),
    "done": lambda task: tell("done", state="succeeded"),
    "die": lambda task, number: os.kill(os.getpid(), int(number)),
    "exit": lambda task, status: os._exit(int(status)),
}


def work(task: dict[str, Any]) -> None:
    if task["spec"]["text_feature"] == "load":
        threading.Event().wait(600)
    tell("phase", name="training")
    for sentence in task["spec"]["text_feature"].split():
        word, *arguments = sentence.split(":")
        WORDS[word](task, *arguments)
    tell("done", state="succeeded")


def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    threading.Thread(target=listen, daemon=True).start()
    if WARM in sys.argv:
        say("warm")
        tell("phase", name=READY)
    done = 0
    while True:
        task = tasks.get()
        if SERVE in sys.argv:
            os.chdir(task["scratch_dir"])
            say(f"job {done} of process {os.getpid()}")
        work(task)
        done += 1
        if SERVE not in sys.argv or task["kind"] != "eval":
            os._exit(0)
        tell("phase", name=READY)


main()
