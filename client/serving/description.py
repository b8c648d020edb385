"""The OpenAPI description of the local service, and its routes."""

from collections.abc import Mapping
from typing import Any, Final

ROUTES: Final[Mapping[str, str]] = {
    "/health": "GET",
    "/model": "GET",
    "/openapi.json": "GET",
    "/predict": "POST",
}
"""The method of each path; HEAD is answered where GET is."""

_ROW: Final = {"oneOf": [{"type": "object"}, {"type": "array", "items": {}}]}
_ROWS: Final = {"type": "array", "items": _ROW, "minItems": 1}
_BODY: Final = {
    "oneOf": [
        {"type": "object", "required": ["row"], "properties": {"row": _ROW}},
        {"type": "object", "required": ["rows"], "properties": {"rows": _ROWS}},
    ]
}
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
_ERRORS: Final[Mapping[int, str]] = {
    400: "the request is malformed",
    401: "the token is missing or wrong",
    404: "no such path",
    405: "another method is required",
    408: "the body came too slowly",
    413: "the body, or the number of rows, is too large",
    421: "the Host field names another machine",
    422: "a row does not fit the model's columns",
}


def _content(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_NAME: Final = {
    "name": "name",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "the file's name, where the body is a file: a table (.csv, .tsv, .txt), "
    "or what the task reads; NAME.zip is unpacked for a task that reads files",
}
_BODIES: Final = _content(_BODY) | {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
}


def _operation(name: str, summary: str, *statuses: int) -> dict[str, Any]:
    answers: dict[str, Any] = {
        "200": {"description": "the answer", "content": _content({"type": "object"})}
    }
    for status in statuses:
        answers[str(status)] = {"description": _ERRORS[status], "content": _content(_ERROR)}
    return {"operationId": name, "summary": summary, "responses": answers}


DESCRIPTION: Final[Mapping[str, Any]] = {
    "openapi": "3.1.0",
    "info": {"title": "Tacit local inference", "version": "1"},
    "paths": {
        "/health": {"get": _operation("health", "Whether the service can answer.", 400, 421)},
        "/model": {
            "get": _operation("model", "The card of the model that answers.", 400, 401, 421)
        },
        "/predict": {
            "post": _operation(
                "predict", "Predict one row, or several.", 400, 401, 408, 413, 421, 422
            )
            | {"parameters": [_NAME], "requestBody": {"required": True, "content": _BODIES}}
        },
    },
}
