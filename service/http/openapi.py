"""The OpenAPI document: what the framework knows, and the endpoints that it does not know."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.http.contract import Contract
from service.http.endpoints import ENDPOINTS, Endpoint
from service.http.policy import Policy
from service.http.schemas import ErrorAnswer, request_model

_REF = "#/components/schemas/{model}"
_FAILURES = {
    "400": "Not HTTP, or it could be read in two ways.",
    "401": "No known key.",
    "408": "The head or the body did not come in time.",
    "413": "The body is too long.",
    "415": "The body is compressed or otherwise encoded.",
    "422": "The body breaks the contract; `details` say where.",
    "429": "The queue is full; `Retry-After` says when to come back.",
    "431": "The headers or trailers are too long.",
    "500": "The model failed on this request.",
    "503": "Starting, shutting down, the engine is down, or too many connections are open.",
    "504": "The deadline passed.",
}
_KEY_SCHEME = "key"
_SERVERS = [{"url": "."}]
"""Relative: without it, clients call the root of the host, whatever prefix a proxy strips."""


def complete(schema: dict[str, Any], contract: Contract, policy: Policy) -> dict[str, Any]:
    """Complete the document that the framework made; return it.

    Args:
        schema: OpenAPI document; changed in place.
        contract: What request bodies hold.
        policy: Says what needs a key. Without keys the document names none: a client that is
            generated from it must not ask for a key that there is not.
    """
    _add_endpoints(schema, contract)
    _drop_null_defaults(schema["components"]["schemas"])
    schema["servers"] = _SERVERS
    if policy.keys:
        scheme = {"type": "http", "scheme": "bearer", "description": "One of the service's keys."}
        schema["components"]["securitySchemes"] = {_KEY_SCHEME: scheme}
        for path, item in schema["paths"].items():
            if path not in policy.open_paths:
                for operation in item.values():
                    operation["security"] = [{_KEY_SCHEME: []}]
    return schema


def _drop_null_defaults(schemas: Any) -> None:
    """A field that may be left out has no default to send: null is refused."""
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if field.get("default", ...) is None:
                del field["default"]


def _add_endpoints(schema: dict[str, Any], contract: Contract) -> None:
    requests = [request_model(contract, x.kind, x.request) for x in ENDPOINTS]
    answers = [answer for endpoint in ENDPOINTS for answer in endpoint.answers]
    modes: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = []
    modes += [(model, "validation") for model in requests]
    modes += [(model, "serialization") for model in answers]
    modes.append((ErrorAnswer, "serialization"))
    _, definitions = models_json_schema(modes, ref_template=_REF)
    schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    for endpoint, request in zip(ENDPOINTS, requests, strict=True):
        schema["paths"][endpoint.path] = {"post": _operation(endpoint, request)}


def _operation(endpoint: Endpoint, request: type[BaseModel]) -> dict[str, Any]:
    refs = [_ref(model) for model in endpoint.answers]
    failures = {
        status: {
            "description": text,
            "content": {"application/json": {"schema": _ref(ErrorAnswer)}},
        }
        for status, text in _FAILURES.items()
    }
    return {
        "tags": ["predictions"],
        "summary": endpoint.summary,
        "parameters": [
            _header("X-Request-Id", "Echoed in the answer and in logs.", {"type": "string"}),
            _header(
                "X-Request-Timeout-Seconds",
                "Deadline; a default applies without it, a maximum cuts it.",
                {"type": "number", "exclusiveMinimum": 0},
            ),
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref(request), "example": _example(request)}
            },
        },
        "responses": {
            "200": {
                "description": "The prediction.",
                "content": {
                    "application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}
                },
            },
            **failures,
        },
    }


def _example(request: type[BaseModel]) -> dict[str, Any]:
    """Return a body of the fields with examples; tools that make up others ask for odd things."""
    fields = request.model_fields
    return {name: field.examples[0] for name, field in fields.items() if field.examples}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def _header(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": schema}
