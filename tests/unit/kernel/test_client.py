"""The client's judgement, on answers a transport hands it."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from espalier.client import Client
from espalier.errors import (
    Conflict,
    EspalierError,
    InvalidInput,
    LeaseLost,
    NotFound,
    StorageFull,
    Unauthorized,
    Unavailable,
)

Answer = httpx.Response | Exception


class Answers:
    """Gives one answer after the other, and remembers what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def client(answers: Answers) -> Client:
    return Client(
        "http://espalier.test",
        "a-token",
        backoff=(0.0, 0.0),
        transport=httpx.MockTransport(answers),
    )


def problem(error: EspalierError) -> httpx.Response:
    return httpx.Response(error.status, json=error.problem())


def test_it_sends_the_token_and_leaves_out_what_is_none() -> None:
    answers = Answers(httpx.Response(200, json={"jobs": []}))
    assert client(answers).get("/api/v1/jobs", {"state": None, "kind": "train"}) == {"jobs": []}
    (request,) = answers.requests
    assert request.headers["authorization"] == "Bearer a-token"
    assert str(request.url) == "http://espalier.test/api/v1/jobs?kind=train"


def test_an_answer_without_a_body_is_none() -> None:
    assert client(Answers(httpx.Response(204))).post("/x", {}) is None


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("rank is 0", hint="at least 1", errors=[{"loc": ["rank"], "msg": "0"}]),
        NotFound("no such job"),
        LeaseLost("it is another's"),
        Unauthorized("unknown token"),
    ],
)
def test_a_problem_comes_back_as_the_error_it_was(error: EspalierError) -> None:
    with pytest.raises(type(error)) as raised:
        client(Answers(problem(error))).post("/x")
    got = raised.value
    assert (got.detail, got.hint, got.errors) == (error.detail, error.hint, error.errors)


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, InvalidInput),
        (404, NotFound),
        (409, Conflict),
        (500, EspalierError),
        (502, Unavailable),
    ],
)
def test_a_refusal_without_a_problem_is_known_by_its_status(
    status: int, cls: type[EspalierError]
) -> None:
    with pytest.raises(cls, match=str(status)) as raised:
        client(Answers(httpx.Response(status, text="<html>"))).post("/x")
    assert type(raised.value) is cls


def test_json_of_the_wrong_shape_is_no_problem_document() -> None:
    with pytest.raises(NotFound, match="404"):
        client(Answers(httpx.Response(404, json=["no", "object"]))).post("/x")


def test_a_page_where_json_was_expected_names_the_setting() -> None:
    with pytest.raises(EspalierError, match="ESPALIER_URL"):
        client(Answers(httpx.Response(200, text="<html>"))).get("/x")


def test_a_redirect_is_not_followed_with_a_token() -> None:
    answers = Answers(httpx.Response(302, headers={"location": "http://evil.test/"}))
    with pytest.raises(InvalidInput, match=r"evil\.test"):
        client(answers).get("/x")
    assert len(answers.requests) == 1


OUTAGES = [
    lambda: httpx.ConnectError("refused"),
    lambda: httpx.ReadTimeout("slow"),
    lambda: httpx.RemoteProtocolError("cut"),
    lambda: httpx.Response(503, headers={"retry-after": "0"}),
    lambda: problem(Unavailable("the database is away")),
    lambda: problem(StorageFull("the disk is full")),
    lambda: httpx.Response(507),
]


@pytest.mark.parametrize("outage", OUTAGES)
def test_what_may_be_sent_twice_is_sent_again(outage: Callable[[], Answer]) -> None:
    sends: tuple[Callable[[Client], Any], ...] = (
        lambda c: c.get("/x"),
        lambda c: c.post("/x", {"a": 1}, idempotent=True),
        lambda c: c.patch("/x", {"a": 1}),
        lambda c: c.delete("/x"),
    )
    for send in sends:
        answers = Answers(outage(), outage(), httpx.Response(200, json="there"))
        assert send(client(answers)) == "there"
        assert len({request.content for request in answers.requests}) == 1


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_plain_post_is_sent_once(outage: Callable[[], Answer]) -> None:
    answers = Answers(outage())
    with pytest.raises(Unavailable):
        client(answers).post("/x", {})
    assert len(answers.requests) == 1


def test_the_last_try_tells_where_it_failed() -> None:
    answers = Answers(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(Unavailable, match=r"espalier\.test.*refused") as raised:
        client(answers).get("/x")
    assert "ESPALIER_URL" in (raised.value.hint or "")
    assert len(answers.requests) == 3


def test_a_refusal_is_not_sent_again() -> None:
    answers = Answers(problem(NotFound("gone")))
    with pytest.raises(NotFound):
        client(answers).get("/x")
    assert len(answers.requests) == 1


def test_a_body_begins_afresh_at_each_try() -> None:
    answers = Answers(httpx.ReadTimeout("slow"), httpx.Response(204))

    def body() -> Iterator[bytes]:
        yield b"part "
        yield b"one"

    client(answers).send("PUT", "/x", content=body)
    assert [request.content for request in answers.requests] == [b"part one", b"part one"]


def test_a_stream_that_breaks_is_unavailable() -> None:
    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"half"
            raise httpx.ReadError("cut")

    answers = Answers(httpx.Response(200, stream=Broken()))
    with pytest.raises(Unavailable), client(answers).stream("/x") as response:
        response.read()


def test_a_refused_stream_raises_the_servers_error() -> None:
    answers = Answers(problem(NotFound("no blob")))
    with pytest.raises(NotFound, match="no blob"), client(answers).stream("/x"):
        pass


@pytest.mark.parametrize(
    "url", ["", "espalier:8000", "ftp://host", "http://", "http://[", "http://x:y", "nothing"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="http://"):
        Client(url)
