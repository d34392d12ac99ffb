"""Weights & Biases and SwanLab: mlx-lm's two, by their own libraries, as mlx-lm calls them."""

from pathlib import Path
from typing import Any

from worker.integrations.run import Point, Run


class WandB:
    """A run whose id is the job's: a further attempt goes on in it.

    Steps that are taken again are dropped there: an exact resume gives the same values.
    """

    def __init__(self, run: Run) -> None:
        import wandb

        Path(run.directory).mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            id=run.job,
            resume="allow",
            dir=run.directory,
            config=run.config | {"espalier_job": run.url},
            notes=run.url,
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )

    def log(self, point: Point) -> None:
        self._run.log(point.values, step=point.step)

    def finish(self, state: str) -> None:
        self._run.finish(exit_code=0 if state == "finished" else 1)


class SwanLab:
    """An experiment whose id is the job's: a further attempt goes on in it."""

    def __init__(self, run: Run) -> None:
        import swanlab

        self._swanlab: Any = swanlab
        swanlab.init(
            project=run.project,
            name=run.name,
            id=run.job,
            resume="allow",
            description=run.url,
            log_dir=str(Path(run.directory) / "swanlog"),
            config=run.config | {"espalier_job": run.url},
        )

    def log(self, point: Point) -> None:
        self._swanlab.log(point.values, step=point.step)

    def finish(self, state: str) -> None:
        self._swanlab.finish()
