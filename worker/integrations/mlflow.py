"""MLflow's tracking server over its REST API (``/api/2.0/mlflow``), which has no client of ours.

The client library brings a web server, telemetry and forty packages; five calls are needed. The
server is ``MLFLOW_TRACKING_URI``; ``MLFLOW_TRACKING_TOKEN``, or ``MLFLOW_TRACKING_USERNAME`` and
``…_PASSWORD``, let one in. https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

import os
import time
from itertools import islice
from typing import Any

import httpx

from worker.integrations.run import Point, Run

#: The server's limits: characters of a parameter's value, parameters and metrics of one call.
_CHARACTERS, _PARAMETERS, _METRICS = 6000, 100, 1000
_STATES = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_TAG = "espalier.job"


class MLflow:
    """One run of the job, found again by its tag when a further attempt goes on."""

    def __init__(self, run: Run) -> None:
        address = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not address.startswith(("http://", "https://")):
            raise ValueError(
                f"MLFLOW_TRACKING_URI is {address!r} in the worker's environment: set it to the"
                " http address of a tracking server"
            )
        self._client = httpx.Client(
            base_url=f"{address.rstrip('/')}/api/2.0/mlflow", timeout=20, **_door()
        )
        experiment = self._experiment(run.project)
        self._run_id = self._found(experiment, run.job) or self._created(experiment, run)
        self._call("POST", "/runs/update", run_id=self._run_id, status="RUNNING")

    def log(self, point: Point) -> None:
        moment = round(point.time * 1000)
        metrics = [
            {"key": name, "value": value, "timestamp": moment, "step": point.step}
            for name, value in point.values.items()
        ]
        for begin in range(0, len(metrics), _METRICS):
            piece = metrics[begin : begin + _METRICS]
            self._call("POST", "/runs/log-batch", run_id=self._run_id, metrics=piece)

    def finish(self, state: str) -> None:
        ended = {"status": _STATES[state], "end_time": round(time.time() * 1000)}
        self._call("POST", "/runs/update", run_id=self._run_id, **ended)

    # --- Calls ------------------------------------------------------------------------

    def _call(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        if method == "GET":
            answer = self._client.get(path, params=body)
        else:
            answer = self._client.post(path, json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def _experiment(self, name: str) -> str:
        try:
            found = self._call("GET", "/experiments/get-by-name", experiment_name=name)
            return str(found["experiment"]["experiment_id"])
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.NOT_FOUND:
                raise
        return str(self._call("POST", "/experiments/create", name=name)["experiment_id"])

    def _found(self, experiment: str, job: str) -> str | None:
        answer = self._call(
            "POST",
            "/runs/search",
            experiment_ids=[experiment],
            filter=f"tags.`{_TAG}` = '{job}'",
            max_results=1,
        )
        runs = answer.get("runs") or []
        return str(runs[0]["info"]["run_id"]) if runs else None

    def _created(self, experiment: str, run: Run) -> str:
        tags = {_TAG: run.job, "mlflow.runName": run.name, "mlflow.note.content": run.url}
        made = self._call(
            "POST",
            "/runs/create",
            experiment_id=experiment,
            run_name=run.name,
            start_time=round(time.time() * 1000),
            tags=[{"key": key, "value": value} for key, value in tags.items()],
        )
        run_id = str(made["run"]["info"]["run_id"])
        given = iter(run.config.items())
        while piece := list(islice(given, _PARAMETERS)):
            params = [{"key": key, "value": str(value)[:_CHARACTERS]} for key, value in piece]
            self._call("POST", "/runs/log-batch", run_id=run_id, params=params)
        return run_id


def _door() -> dict[str, Any]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"headers": {"Authorization": f"Bearer {token}"}}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return {"auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))}
    return {}
