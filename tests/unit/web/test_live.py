"""Streams: the first ones are held open, those beyond the limit are answered and let go."""

from pathlib import Path

import pytest
from flask import Flask, Response

from scheduler.db import Database, migrate
from web import live


@pytest.fixture
def hub(tmp_path: Path) -> live.Hub:
    url = f"sqlite:///{tmp_path / 'espalier.db'}"
    migrate(url)
    return live.Hub(Database(url))


def _stream(hub: live.Hub) -> Response:
    with Flask(__name__).test_request_context():
        return live.stream(hub, lambda _pulse: [live.Message("now")])


def test_a_viewer_too_many_is_told_once_and_comes_back_later(
    hub: live.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "STREAMS", 0)
    text = "".join(map(str, _stream(hub).response))
    assert text.startswith("retry: 10000\n")
    assert text.endswith("data: now\n\n"), "it ends by itself"


def test_a_viewer_stays_until_the_stream_ends(
    hub: live.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LIFETIME", 1.0)
    monkeypatch.setattr(live, "BREATH", 0.2)
    text = "".join(map(str, _stream(hub).response))
    assert text.startswith("retry: 1000\n")
    assert text.endswith(": here\n\n"), "it breathes after it was told"
