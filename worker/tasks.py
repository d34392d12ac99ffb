"""The five Celery tasks, one per kind of job. A task only supervises a child."""

from celery import Celery

from espalier.queue import task_name
from espalier.states import Kind
from worker.runner import Runner


def register(app: Celery, runner: Runner) -> None:
    """Make ``app`` answer tickets of every kind with ``runner``."""

    def run(attempt_id: str) -> None:
        runner.run(attempt_id)

    for kind in Kind:
        app.task(run, name=task_name(kind), shared=False)
