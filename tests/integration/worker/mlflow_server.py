"""The five calls of MLflow's tracking server that a run needs, as strict as the real one.

Shapes and limits are those of its REST API (mlflow/protos/service.proto): an unknown field, a
value that is too long or a run that does not exist is an error there, and so here.
"""

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PREFIX = "/api/2.0/mlflow"
_STATUS = {"RUNNING", "FINISHED", "FAILED", "KILLED"}


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status


@dataclass
class KeptRun:
    info: dict[str, Any]
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)


class MLflowServer:
    """Listens on a port of its own; ``token`` is what callers must bring."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, KeptRun] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                split = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(split.query).items()}
                self._answer(split.path, query)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(self.path, json.loads(body))

            def _answer(self, path: str, asked: dict[str, Any]) -> None:
                try:
                    if self.headers["Authorization"] != f"Bearer {outer.token}":
                        raise Refused(401, "PERMISSION_DENIED")
                    found, status = outer.call(path.removeprefix(PREFIX), asked), 200
                except Refused as error:
                    found, status = {"error_code": str(error)}, error.status
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def call(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        calls = {
            "/experiments/get-by-name": self._experiment,
            "/experiments/create": self._new_experiment,
            "/runs/search": self._search,
            "/runs/create": self._new_run,
            "/runs/update": self._update,
            "/runs/log-batch": self._log,
        }
        return calls[path](**asked)

    def _experiment(self, experiment_name: str) -> dict[str, Any]:
        if experiment_name not in self.experiments:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST")
        return {"experiment": {"experiment_id": self.experiments[experiment_name]}}

    def _new_experiment(self, name: str) -> dict[str, Any]:
        if name in self.experiments:
            raise Refused(400, "RESOURCE_ALREADY_EXISTS")
        self.experiments[name] = str(len(self.experiments) + 1)
        return {"experiment_id": self.experiments[name]}

    def _search(self, **asked: Any) -> dict[str, Any]:
        assert asked.keys() == {"experiment_ids", "filter", "max_results"}
        experiment_ids, max_results = asked["experiment_ids"], asked["max_results"]
        match = re.fullmatch(r"tags\.`([^`]+)` = '([^']+)'", asked["filter"])
        if not match or not 1 <= max_results <= 50_000:
            raise Refused(400, "INVALID_PARAMETER_VALUE")
        name, value = match.groups()
        found = [
            {"info": run.info}
            for run in self.runs.values()
            if run.info["experiment_id"] in experiment_ids and run.tags.get(name) == value
        ]
        return {"runs": found[:max_results]} if found else {}

    def _new_run(
        self, experiment_id: str, run_name: str, start_time: int, tags: list[dict[str, str]]
    ) -> dict[str, Any]:
        run_id = f"run{len(self.runs)}"
        info = {"run_id": run_id, "experiment_id": experiment_id, "run_name": run_name,
                "start_time": start_time, "status": "RUNNING"}  # fmt: skip
        self.runs[run_id] = KeptRun(info, {tag["key"]: tag["value"] for tag in tags})
        return {"run": {"info": info}}

    def _run(self, run_id: str) -> KeptRun:
        if run_id not in self.runs:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST")
        return self.runs[run_id]

    def _update(self, run_id: str, status: str, end_time: int | None = None) -> dict[str, Any]:
        if status not in _STATUS:
            raise Refused(400, "INVALID_PARAMETER_VALUE")
        self._run(run_id).info |= {"status": status, "end_time": end_time}
        return {}

    def _log(
        self,
        run_id: str,
        metrics: list[dict[str, Any]] | None = None,
        params: list[dict[str, str]] | None = None,
    ) -> dict[str, Any]:
        run = self._run(run_id)
        if len(metrics or ()) > 1000 or len(params or ()) > 100:
            raise Refused(400, "INVALID_PARAMETER_VALUE")
        for metric in metrics or ():
            assert metric.keys() == {"key", "value", "timestamp", "step"}
            assert isinstance(metric["timestamp"], int)
            run.metrics.append(metric)
        for param in params or ():
            if (
                len(param["value"]) > 6000
                or run.params.get(param["key"], param["value"]) != (param["value"])
            ):
                raise Refused(400, "INVALID_PARAMETER_VALUE")
            run.params[param["key"]] = param["value"]
        return {}
