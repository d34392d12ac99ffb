"""The engine as a worker's child, for benchmarks: one task, its events, the time of each."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from espalier.messages import EVENT, EngineTask, Event
from espalier.specs import SPECS, parse
from espalier.states import Kind
from espalier.textsql import write_dataset


def run(directory: Path, kind: Kind, spec: dict[str, Any], inputs: dict[str, Path]) -> list[Event]:
    """Run one task below ``directory``; return its events. Raises RuntimeError when it fails."""
    for name in ("output", "scratch"):
        (directory / name).mkdir(parents=True)
    refs = {role: f"team/{role}" for role in inputs}
    task = EngineTask(
        attempt_id="benchmark",
        kind=kind,
        spec=parse(SPECS[kind], refs | spec),
        inputs={role: str(path) for role, path in inputs.items()},
        output_dir=str(directory / "output"),
        scratch_dir=str(directory / "scratch"),
    )
    reader, writer = os.pipe()
    with (
        (directory / "log.txt").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "worker.engine"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            env=os.environ | {"ESPALIER_EVENTS_FD": str(writer)},
        ) as process,
    ):
        os.close(writer)
        assert process.stdin
        process.stdin.write(task.model_dump_json().encode() + b"\n")
        process.stdin.flush()
        with os.fdopen(reader, encoding="utf-8") as lines:
            events = [EVENT.validate_json(line) for line in lines]
    if process.returncode:
        raise RuntimeError((directory / "log.txt").read_text()[-2000:])
    return events


def tiny_model(directory: Path, **sizes: int) -> Path:
    """Make a tiny model; ``sizes`` are flags of worker.engine.tiny."""
    flags = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "worker.engine.tiny", str(directory), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return directory


def text_to_sql(directory: Path, rows: int) -> Path:
    """Write WikiSQL-like data: ``rows`` to train on, and a tenth each to validate and test."""
    directory.mkdir(parents=True, exist_ok=True)
    write_dataset(directory, rows=rows)
    return directory
