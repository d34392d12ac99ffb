"""Redirect targets, who is watched, and how often somebody may try."""

import pytest
from flask import Flask

from espalier.errors import TooMany
from web.auth import _local
from web.services import SIGN_INS, Throttle, Watched


@pytest.mark.parametrize("target", ["/", "/jobs", "/jobs?state=a&q=b%20c", "/a//b"])
def test_paths_of_this_server_are_kept(target: str) -> None:
    assert _local(target) == target


@pytest.mark.parametrize(
    "target",
    ["", "jobs", "//evil", "///evil", "/\\evil", "https://evil", "javascript:1", "/a\r\nSet: x"],
)
def test_other_targets_lead_to_the_first_page(target: str) -> None:
    assert _local(target) == "/"


def test_a_job_is_watched_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("web.services.time.monotonic", lambda: clock[0])
    watched = Watched()
    watched.look("a")
    assert watched.watched("a")
    assert not watched.watched("b")
    clock[0] += 16
    assert not watched.watched("a")
    watched.look("b")
    assert watched._until.keys() == {"b"}


def test_each_address_has_its_own_limit() -> None:
    app, throttle = Flask(__name__), Throttle()
    with app.test_request_context(environ_base={"REMOTE_ADDR": "10.0.0.1"}):
        for _ in range(SIGN_INS.amount):
            throttle.count("sign-in", SIGN_INS)
        with pytest.raises(TooMany) as refused:
            throttle.count("sign-in", SIGN_INS)
        assert refused.value.retry_after == 60
        throttle.count("token", SIGN_INS)
    with app.test_request_context(environ_base={"REMOTE_ADDR": "10.0.0.2"}):
        throttle.count("sign-in", SIGN_INS)
