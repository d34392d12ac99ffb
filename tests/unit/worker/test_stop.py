import threading
import time

import pytest

from worker.stop import Stop, Stopped, Why


def test_reasons_only_rise() -> None:
    stop = Stop()
    stop.check()
    stop.request(Why.CANCELLED)
    stop.request(Why.WORKER_STOPPED)
    assert stop.why is Why.CANCELLED
    with pytest.raises(Stopped):
        stop.check()
    stop.check(tolerated=Why.CANCELLED)
    stop.request(Why.LEASE_LOST)
    with pytest.raises(Stopped):
        stop.check(tolerated=Why.CANCELLED)


def test_a_pause_is_more_than_a_stop_of_the_worker_and_less_than_a_cancel() -> None:
    assert Why.WORKER_STOPPED < Why.PAUSED < Why.CANCELLED < Why.KILLED < Why.LEASE_LOST


def test_a_request_wakes_who_waits() -> None:
    stop = Stop()
    threading.Timer(0.05, stop.request, args=(Why.CANCELLED,)).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        stop.wait(30)
    assert time.monotonic() - began < 25


def test_a_deadline_ends_what_tolerates_the_reason() -> None:
    stop = Stop()
    stop.request(Why.WORKER_STOPPED, within=0.05)
    began = time.monotonic()
    with pytest.raises(Stopped):
        stop.wait(30, tolerated=Why.CANCELLED)
    assert time.monotonic() - began < 25
    with pytest.raises(Stopped):
        stop.check(tolerated=Why.LEASE_LOST)


def test_waiting_without_a_reason_just_ends() -> None:
    stop = Stop()
    stop.wait(0.01)
    stop.request(Why.CANCELLED)
    stop.wait(0.01, tolerated=Why.CANCELLED)
