"""The reporter's order and patience, on answers a transport hands it."""

import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from espalier.client import Client
from espalier.errors import EspalierError, InvalidInput, LeaseLost, Unauthorized, Unavailable
from espalier.messages import MetricsEvent, Orders, PhaseEvent, Report
from worker import reporter
from worker.control import Control
from worker.reporter import Handlers, Reporter
from worker.spool import Spool

ORDERS = httpx.Response(200, json=Orders(report_seconds=30.0).model_dump(mode="json"))


class Plane:
    """A control plane that remembers reports and answers as ``judge`` says."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.lost: list[str] = []
        self.orders: list[Orders] = []
        self.judge: Callable[[Report], EspalierError | None] = lambda report: None
        self.asked = 0
        self.arrived = threading.Condition()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        report = Report.model_validate(json.loads(request.read()))
        error = self.judge(report)
        with self.arrived:
            self.asked += 1
            if error is None:
                self.reports.append(report)
            self.arrived.notify_all()
        return httpx.Response(error.status, json=error.problem()) if error else ORDERS

    def on_lost(self, error: EspalierError) -> None:
        with self.arrived:
            self.lost.append(error.detail)
            self.arrived.notify_all()

    def on_orders(self, orders: Orders) -> None:
        with self.arrived:
            self.orders.append(orders)
            self.arrived.notify_all()

    def until(self, happened: Callable[[], object]) -> None:
        with self.arrived:
            assert self.arrived.wait_for(happened, 10)


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Plane:
    monkeypatch.setattr(reporter, "BACKOFF", (0.01,))
    return Plane()


@pytest.fixture
def reports(plane: Plane, tmp_path: Path) -> Reporter:
    client = Client("http://plane.test", transport=httpx.MockTransport(plane), backoff=())
    handlers = Handlers(orders=plane.on_orders, lost=plane.on_lost)
    made = Reporter(Control(client, "boot"), "a1", Spool(tmp_path / "spool"), handlers, 30.0)
    made.start()
    return made


def phase(name: str) -> PhaseEvent:
    return PhaseEvent(name=name, time=0.0)


def metrics(step: int) -> MetricsEvent:
    return MetricsEvent(step=step, values={"train_loss": 1.0}, time=0.0)


def pause(seconds: float) -> None:
    time.sleep(seconds)


def test_news_and_the_first_metrics_go_out_at_once_the_rest_with_the_next(
    plane: Plane, reports: Reporter
) -> None:
    reports.event(phase("training"))
    plane.until(lambda: len(plane.reports) == 1)
    reports.event(metrics(1))
    plane.until(lambda: len(plane.reports) == 2)
    reports.event(metrics(2))
    reports.log(b"step 2\n")
    reports.event(phase("saving"))
    plane.until(lambda: len(plane.reports) == 3)
    assert [len(report.events) for report in plane.reports] == [1, 1, 2]
    assert plane.reports[2].log[0].text == "step 2\n"
    reports.flush(pause)
    reports.close()


def test_closing_sends_what_is_left(plane: Plane, reports: Reporter) -> None:
    reports.event(metrics(1))
    reports.log(b"no line end")
    reports.flush(pause)
    reports.close()
    assert [e for r in plane.reports for e in r.events] == [metrics(1)]
    assert "".join(c.text for r in plane.reports for c in r.log) == "no line end"
    assert [report.seq for report in plane.reports] == list(range(1, len(plane.reports) + 1))


def test_after_an_outage_everything_comes_in_order(plane: Plane, reports: Reporter) -> None:
    away = threading.Event()
    away.set()
    plane.judge = lambda report: Unavailable("away") if away.is_set() else None
    for step in range(1, 2001):
        reports.event(metrics(step))
        if step % 500 == 0:
            time.sleep(0.03)
    away.clear()
    reports.flush(pause)
    reports.close()
    assert [e.step for r in plane.reports for e in r.events if e.type == "metrics"] == list(
        range(1, 2001)
    )
    assert [report.seq for report in plane.reports] == list(range(1, len(plane.reports) + 1))


@pytest.mark.parametrize("error", [InvalidInput("NUL"), EspalierError("a bug")])
def test_a_report_that_will_never_be_taken_holds_up_no_other(
    plane: Plane, reports: Reporter, error: EspalierError
) -> None:
    plane.judge = lambda report: error if report.seq == 1 else None
    reports.event(phase("poison"))
    plane.until(lambda: plane.asked)
    reports.event(phase("training"))
    reports.flush(pause)
    reports.close()
    assert [e.name for r in plane.reports for e in r.events if e.type == "phase"] == ["training"]
    assert plane.lost == []


@pytest.mark.parametrize("error", [LeaseLost("it is another's"), Unauthorized("revoked")])
def test_a_lost_lease_is_told_once_and_ends_it(
    plane: Plane, reports: Reporter, error: EspalierError
) -> None:
    plane.judge = lambda report: error
    reports.event(phase("training"))
    plane.until(lambda: plane.lost)
    reports.event(phase("saving"))
    reports.flush(pause)
    reports.close()
    assert plane.lost == [error.detail]
    assert plane.reports == []


def test_an_idle_attempt_renews_its_lease(plane: Plane, reports: Reporter) -> None:
    reports.hurry()
    plane.until(lambda: plane.orders)
    assert plane.reports[0].events == ()
    assert plane.orders[0].report_seconds == 30.0
    reports.flush(pause)
    reports.close()


def test_giving_up_leaves_the_rest_unsent(plane: Plane, reports: Reporter) -> None:
    plane.judge = lambda report: Unavailable("away")
    reports.event(phase("training"))

    def give_up(seconds: float) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        reports.flush(give_up)
    reports.close()
    assert plane.reports == []


def test_what_is_settled_is_on_the_disk_before_anybody_hears_of_it(
    plane: Plane, reports: Reporter, tmp_path: Path
) -> None:
    plane.judge = lambda report: Unavailable("away")
    for step in range(1, 1201):
        reports.event(metrics(step))
    reports.log(b"step 1\n")
    reports.settle()
    found = []
    left = Spool(tmp_path / "spool")  # as the worker's next start opens it
    while report := left.head():
        found += [event.step for event in report.events if event.type == "metrics"]
        left.pop()
    assert found == list(range(1, 1201))
    reports.close()


def test_the_next_process_sends_what_was_left_under_its_own_name(
    plane: Plane, reports: Reporter, tmp_path: Path
) -> None:
    plane.judge = lambda report: Unavailable("away")
    reports.event(metrics(1))
    reports.settle()
    reports.close()
    plane.judge = lambda report: None
    client = Client("http://plane.test", transport=httpx.MockTransport(plane), backoff=())
    handlers = Handlers(orders=plane.on_orders, lost=plane.on_lost)
    spool = Spool(tmp_path / "spool")
    successor = Reporter(Control(client, "boot-2"), "a1", spool, handlers, 30.0)
    successor.start()
    successor.event(phase("salvaging"))
    successor.flush(pause)
    successor.close()
    assert {report.boot_id for report in plane.reports} == {"boot-2"}
    assert [report.seq for report in plane.reports] == sorted({r.seq for r in plane.reports})
    assert [e.type for r in plane.reports for e in r.events] == ["metrics", "phase"]


def test_log_text_without_room_is_dropped_and_the_log_says_so(plane: Plane, tmp_path: Path) -> None:
    away = threading.Event()
    away.set()
    plane.judge = lambda report: Unavailable("away") if away.is_set() else None
    client = Client("http://plane.test", transport=httpx.MockTransport(plane), backoff=())
    handlers = Handlers(orders=plane.on_orders, lost=plane.on_lost)
    spool = Spool(tmp_path / "spool", max_bytes=8000)
    made = Reporter(Control(client, "boot"), "a1", spool, handlers, 30.0)
    for line in range(50):
        made.log(b"%03d " % line + b"x" * 95 + b"\n")
        made.event(metrics(line + 1))
        made.settle()
    away.clear()
    made.start()
    made.flush(pause)
    made.close()
    text = "".join(c.text for r in plane.reports for c in r.log)
    assert [e.step for r in plane.reports for e in r.events if e.type == "metrics"] == list(
        range(1, 51)
    )
    assert text.startswith("000 xxx")
    kept = text.count("x\n")
    assert f"[{(50 - kept) * 100} bytes of output were dropped here]" in text
    offsets = [(c.offset, len(c.text)) for r in plane.reports for c in r.log]
    assert all(a + size == b for (a, size), (b, _) in pairwise(offsets))
