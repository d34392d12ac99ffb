"""A JSON API's routes: each states its models once, for validation and for the document.

A view is a plain function. ``body`` and ``query`` are validated into the models they are annotated
with, path variables come as strings; what it returns becomes JSON.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn, TypeVar, get_type_hints

from flask import Blueprint, Response, jsonify, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel

from espalier.errors import EspalierError, InvalidInput
from espalier.specs import parse

View = TypeVar("View", bound=Callable[..., Any])


class Malformed(EspalierError):
    """The body is not JSON."""

    status, code, title = 400, "malformed", "Malformed request"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route as the OpenAPI document tells it."""

    method: str
    rule: str  # with Flask's <variables>
    name: str
    doc: str
    status: int
    body: type[BaseModel] | None
    query: type[BaseModel] | None
    answer: type[BaseModel] | None  # None: bytes, or nothing
    raw: bool = False  # the body is bytes
    public: bool = False  # needs no token


class Routes:
    """A blueprint's routes and what is known of them."""

    def __init__(
        self, blueprint: Blueprint, clean: Callable[[Any], Any] = lambda value: value
    ) -> None:
        self.blueprint = blueprint
        self.operations: list[Operation] = []
        self._clean = clean

    def route(
        self,
        method: str,
        rule: str,
        *,
        status: int = 200,
        answer: type[BaseModel] | None = None,
        raw: bool = False,
        public: bool = False,
    ) -> Callable[[View], View]:
        """Register a view. Its docstring's first line is the operation's summary."""

        def register(view: View) -> View:
            hints = get_type_hints(view)
            body, query = hints.get("body"), hints.get("query")
            name = view.__name__
            doc = inspect.getdoc(view) or ""
            self.operations.append(
                Operation(method, rule, name, doc, status, body, query, answer, raw, public)
            )

            @wraps(view)
            def call(**variables: str) -> ResponseReturnValue:
                arguments: dict[str, Any] = dict(variables)
                if body is not None:
                    arguments["body"] = parse(body, self._clean(_json()))
                if query is not None:
                    arguments["query"] = parse(query, _arguments())
                return _answer(view(**arguments), status)

            self.blueprint.add_url_rule(rule, name, call, methods=[method])
            return view

        return register


def _answer(result: Any, status: int) -> ResponseReturnValue:
    if isinstance(result, Response):
        return result
    if result is None:
        return "", 204
    if isinstance(result, BaseModel):
        result = result.model_dump(mode="json")
    return jsonify(result), status


def _json() -> Any:
    data = request.get_data(cache=False) or b"{}"
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"The request's body is not JSON: {error}.") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _arguments() -> dict[str, Any]:
    """Return the query's parameters; one given several times is a list."""
    found = dict(request.args.lists())
    return {key: values if len(values) > 1 else values[0] for key, values in found.items()}


def refuse_unstorable(value: Any) -> Any:
    """Return a JSON value whose strings databases can hold. Raises InvalidInput, naming where."""
    for where, text in _strings(value, ()):
        if "\x00" in text or any(0xD800 <= ord(c) <= 0xDFFF for c in text if ord(c) > 0xD7FF):
            raise InvalidInput(
                f"{'.'.join(map(str, where))}: NUL and lone surrogates are not text"
                f" (got {text!r:.80}).",
                errors=[
                    {"loc": list(where), "msg": f"holds NUL or a surrogate (got {text!r:.80})"}
                ],
            )
    return value


def _strings(value: Any, where: tuple[str | int, ...]) -> list[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        return [(where, value)]
    found: list[tuple[tuple[str | int, ...], str]] = []
    if isinstance(value, dict):
        for key, item in value.items():
            found += [((*where, key), key), *_strings(item, (*where, key))]
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += _strings(item, (*where, index))
    return found


def replace_nul(value: Any) -> Any:
    """Return a JSON value with NUL shown as a symbol, except in logs, whose bytes are counted.

    A worker's report must not be refused for what its child printed: it would come again for ever.
    """
    if isinstance(value, str):
        return value.replace("\x00", "\N{SYMBOL FOR NULL}")
    if isinstance(value, dict):
        return {k: v if k == "log" else replace_nul(v) for k, v in value.items()}
    if isinstance(value, list):
        return [replace_nul(item) for item in value]
    return value
