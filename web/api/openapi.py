"""The OpenAPI 3.1 document, from the routes and their pydantic models.

OpenAPI 3.1's schema dialect is JSON Schema 2020-12, which is what pydantic writes: the specs'
limits, defaults and discriminators appear as they are.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import espalier
from web.api.models import Problem
from web.routes import Operation

_REF = "#/components/schemas/{model}"
_VARIABLE = re.compile(r"<(?:(\w+):)?(\w+)>")
_TYPES = {"int": {"type": "integer"}, None: {"type": "string"}, "path": {"type": "string"}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

#: (model, mode) → reference to its schema, as pydantic named it.
Names = Mapping[tuple[Any, Any], Any]

_PROBLEM = {
    "description": "RFC 9457 problem: what is wrong, where, and the next step",
    "content": {"application/problem+json": {"schema": {"$ref": _REF.format(model="Problem")}}},
}


def document(prefix: str, operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the document of these operations, all below ``prefix``."""
    operations = list(operations)
    bodies = {o.body for o in operations if o.body}
    answers = {o.answer for o in operations if o.answer} | {Problem}
    names, schemas = models_json_schema(
        [(model, "validation") for model in _by_name(bodies)]
        + [(model, "serialization") for model in _by_name(answers)],
        ref_template=_REF,
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = _VARIABLE.sub(r"{\2}", prefix + operation.rule)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Espalier",
            "version": espalier.__version__,
            "summary": "Fine-tuning jobs on the team's Macs, and the artifacts they make.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A personal token, hf_ and 40 letters and digits.",
                }
            },
        },
    }


def _operation(operation: Operation, names: Names) -> dict[str, Any]:
    summary, _, description = operation.doc.partition("\n")
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": summary,
        "parameters": [*_path_parameters(operation.rule), *_query_parameters(operation.query)],
        "responses": {str(operation.status): _answer(operation, names), "default": _PROBLEM},
    }
    if description.strip():
        found["description"] = description.strip()
    if operation.body is not None:
        found["requestBody"] = {
            "required": True,
            "content": _json(names[operation.body, "validation"]),
        }
    elif operation.raw:
        found["requestBody"] = {"required": True, "content": _BYTES}
    if operation.public:
        found["security"] = []
    return found


def _answer(operation: Operation, names: Names) -> dict[str, Any]:
    if operation.answer is not None:
        schema = names[operation.answer, "serialization"]
        return {"description": "Done", "content": _json(schema)}
    if operation.status == 204:
        return {"description": "Done"}
    return {"description": "The bytes", "content": _BYTES}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _path_parameters(rule: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _TYPES[converter or None]}
        for converter, name in _VARIABLE.findall(rule)
    ]


def _query_parameters(query: type[BaseModel] | None) -> list[dict[str, Any]]:
    if query is None:
        return []
    schema = query.model_json_schema(ref_template=_REF)
    kinds = schema.get("$defs", {})
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", []),
            "schema": _inlined(value, kinds),
        }
        for name, value in schema["properties"].items()
    ]


def _inlined(value: Any, kinds: dict[str, Any]) -> Any:
    """Replace references to the query's own few enumerations by what they are."""
    if isinstance(value, dict):
        if "$ref" in value:
            return kinds[value["$ref"].rsplit("/", 1)[1]]
        return {key: _inlined(item, kinds) for key, item in value.items()}
    if isinstance(value, list):
        return [_inlined(item, kinds) for item in value]
    return value


def _by_name(models: set[type[BaseModel]]) -> list[type[BaseModel]]:
    return sorted(models, key=lambda model: model.__name__)
