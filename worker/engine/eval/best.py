"""The best checkpoint of a sweep, laid out as the adapter's next version.

All that the adapter has, with the best checkpoint's weights as those it hands out: the same files,
so that the version can be swept again and takes no room beside the one before.
"""

from collections.abc import Mapping
from typing import Any

from espalier.clone import clone
from espalier.states import ArtifactKind
from worker.engine.adapters import Adapter
from worker.engine.eval.sweep import Tested, best_of
from worker.engine.models import read_json
from worker.engine.report import Job, write_json

#: The output's role; scheduler.catalog.crowning publishes it and moves the alias of the same name.
ROLE = "best"
_HANDED_OUT, _CONFIG = "adapters.safetensors", "adapter_config.json"


def hand_out(
    job: Job, adapter: Adapter, swept: Mapping[int, Tested], base: Mapping[str, Any]
) -> None:
    """Announce the adapter with the weights of its best checkpoint. ``base`` are its facts."""
    step = best_of(dict(swept))
    directory = job.output(ROLE)
    weights = adapter.directory / _HANDED_OUT
    if step != adapter.step:
        weights = adapter.checkpoints[step]
    for path in sorted(adapter.directory.rglob("*")):
        target = directory / path.relative_to(adapter.directory)
        if path.is_file() and path.name not in (_HANDED_OUT, _CONFIG):
            target.parent.mkdir(parents=True, exist_ok=True)
            clone(path, target)
    clone(weights, directory / _HANDED_OUT)
    config = read_json(adapter.directory / _CONFIG)
    write_json(directory / _CONFIG, {**config, "step": step})
    measured = swept[step].measured
    job.report.output(
        ROLE,
        ArtifactKind.ADAPTER,
        directory,
        {
            "step": step,
            "best_of": sorted(swept),
            "fine_tune_type": config.get("fine_tune_type", "lora"),
            "iters": config.get("iters"),
            "metrics": measured.metrics(),
            "base": dict(base),
        },
    )
