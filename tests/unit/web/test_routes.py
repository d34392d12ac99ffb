"""What happens to a request before a view sees it."""

import pytest
from flask import Blueprint, Flask

from espalier.errors import InvalidInput
from espalier.specs import Frozen
from web import problems
from web.routes import Routes, refuse_unstorable, replace_nul


class Query(Frozen):
    tags: tuple[str, ...] = ()
    limit: int = 5


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    routes = Routes(Blueprint("t", __name__, url_prefix="/api/t"), refuse_unstorable)

    @routes.route("GET", "/items/<name>")
    def items(name: str, query: Query) -> dict[str, object]:
        """List.

        More about it.
        """
        return {"name": name, "tags": query.tags, "limit": query.limit}

    @routes.route("POST", "/nothing", status=204)
    def nothing(body: Query) -> None:
        """Do nothing."""

    @routes.route("GET", "/broken")
    def broken() -> None:
        """Break."""
        raise ZeroDivisionError("a secret")

    app.register_blueprint(routes.blueprint)
    problems.register(app)
    return app


def test_variables_and_queries_reach_the_view(app: Flask) -> None:
    answer = app.test_client().get("/api/t/items/x?tags=a&tags=b&limit=7")
    assert answer.json == {"name": "x", "tags": ["a", "b"], "limit": 7}


def test_an_empty_body_is_an_empty_object(app: Flask) -> None:
    assert app.test_client().post("/api/t/nothing").status_code == 204


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"{", 400),
        (b'{"limit": Infinity}', 400),
        (b"\xff", 400),
        (b"[]", 422),
        (b'{"limit": "x"}', 422),
        (b'{"unknown": 1}', 422),
        (b'{"tags": ["\\u0000"]}', 422),
        (b'{"tags": ["\\ud800"]}', 422),
        (b'{"\\u0000": 1}', 422),
    ],
)
def test_bodies_that_are_refused(app: Flask, data: bytes, status: int) -> None:
    refused = app.test_client().post("/api/t/nothing", data=data)
    assert refused.status_code == status
    assert refused.mimetype == "application/problem+json"
    assert refused.json["detail"]


def test_a_failure_tells_nothing_of_its_inside(app: Flask) -> None:
    refused = app.test_client().get("/api/t/broken")
    assert refused.status_code == 500
    assert "secret" not in refused.get_data(as_text=True)
    assert refused.json["code"] == "internal"


def test_what_databases_cannot_hold_is_named() -> None:
    fine = {"a": ["ü", {"b": "\U0001f600"}], "n": 1}
    assert refuse_unstorable(fine) is fine
    with pytest.raises(InvalidInput) as refused:
        refuse_unstorable({"meta": [{"k": "a\x00b"}]})
    assert refused.value.errors[0]["loc"] == ["meta", 0, "k"]


def test_a_workers_report_is_cleaned_not_refused() -> None:
    report = {"events": [{"message": "a\x00b"}], "log": [{"text": "c\x00d"}], "seq": 1}
    assert replace_nul(report) == {
        "events": [{"message": "a␀b"}],
        "log": [{"text": "c\x00d"}],
        "seq": 1,
    }
