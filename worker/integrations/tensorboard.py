"""TensorBoard: event files in a folder of the job."""

from pathlib import Path

from tensorboardX import SummaryWriter

from worker.integrations.run import Point, Run


class TensorBoard:
    """Writes ``<directory>/tensorboard/<project>/<job>/events.out.tfevents.*``.

    Each attempt writes a file of its own. Steps that it takes again hide those of the last one:
    TensorBoard reads ``purge_step`` that way.
    """

    def __init__(self, run: Run) -> None:
        self._directory = Path(run.directory) / run.project / run.job
        self._again = run.attempt > 1
        self._writer: SummaryWriter | None = None
        self._config = "\n".join(f"    {key}: {value}" for key, value in run.config.items())
        self._url = run.url

    def _open(self, first_step: int) -> SummaryWriter:
        purge = first_step if self._again else None
        writer = SummaryWriter(str(self._directory), purge_step=purge, flush_secs=5)
        writer.add_text("job", f"[{self._url}]({self._url})\n\n{self._config}", first_step)
        return writer

    def log(self, point: Point) -> None:
        if self._writer is None:
            self._writer = self._open(point.step)
        for name, value in point.values.items():
            self._writer.add_scalar(name, value, point.step, walltime=point.time)

    def finish(self, state: str) -> None:
        if self._writer is not None:
            self._writer.close()
