"""The OpenAPI 3.1 document, made of the table that requests are checked with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import __version__
from .edge import HEALTH
from .fields import EDIT, GENERATION, Field, fields_of
from .limits import Limits

__all__ = ["document"]

_TEXT = {"type": "string"}
_ERRORS = {
    400: "A field that cannot be; `param` names it.",
    401: "No key, or a wrong one.",
    403: "A page of another site asked, or the name in Host is not one of this service.",
    404: "The model is not served here.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is of another kind.",
    422: "It cannot be there by the deadline, or its settings lead to no picture.",
    429: "The queue is full; Retry-After says when to come again.",
    500: "A device failed.",
    503: "The service ends, no device is left, or too much goes on at once.",
    504: "The deadline passed while the request waited.",
    507: "There is no room to keep the picture.",
}


def document(limits: Limits, keyed: bool) -> dict[str, Any]:
    """What is served at /openapi.json. keyed: a key is needed."""
    paths = {**_images(limits), **_others()}
    for path, methods in paths.items():
        for operation in methods.values():
            operation["responses"] |= _errors(*_at_the_door(path, operation, keyed))
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "driffusion-trt",
            "version": __version__,
            "summary": "Pictures within a latency budget, in the form of OpenAI's API of images.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _SCHEMAS, **({"securitySchemes": _SECURITY} if keyed else {})},
    }
    return {**found, "security": [{"key": []}]} if keyed else found


def _at_the_door(path: str, operation: Mapping[str, Any], keyed: bool) -> tuple[int, ...]:
    """Statuses that `Edge` answers with."""
    if path in HEALTH:
        return ()
    if keyed:
        return (503,) if operation.get("security") == [] else (401, 503)
    return (403, 503)


def _object(fields: Mapping[str, Field], **more: Any) -> dict[str, Any]:
    required = [name for name, field in fields.items() if field.required]
    properties = {name: field.schema() for name, field in fields.items()} | more
    return {
        "type": "object",
        "properties": properties,
        "required": [*required, *(["image"] if "image" in more else [])],
        "additionalProperties": False,
    }


def _form(fields: Mapping[str, Field]) -> dict[str, Any]:
    """Of a multipart body: texts have no null, so what may be left out is left out."""
    file = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
    found = _object(
        fields,
        image={**file, "description": "PNG, JPEG or WebP."},
        mask={**file, "description": "Its transparent pixels are made anew."},
    )
    for name, schema in found["properties"].items():
        if isinstance(schema.get("type"), list):
            plain = {**schema, "type": schema["type"][0]}
            if "enum" in plain:
                plain["enum"] = [one for one in plain["enum"] if one is not None]
            found["properties"][name] = plain
    return found


def _images(limits: Limits) -> dict[str, Any]:
    made = {
        "200": {
            "description": "The pictures; with `stream` events as they are made.",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/Images"}},
                "text/event-stream": {"schema": _TEXT},
            },
        },
        **_errors(*(status for status in _ERRORS if status not in (401, 403))),
    }

    def post(name: str, summary: str, kind: str, schema: dict[str, Any]) -> dict[str, Any]:
        body = {"required": True, "content": {kind: {"schema": schema}}}
        return {
            "post": {"operationId": name, "summary": summary, "requestBody": body, "responses": dict(made)}
        }

    return {
        "/v1/images/generations": post(
            "createImage",
            "Pictures from a prompt.",
            "application/json",
            _object(fields_of(GENERATION, limits)),
        ),
        "/v1/images/edits": post(
            "createImageEdit",
            "Pictures from a picture, or a part of one made anew.",
            "multipart/form-data",
            _form(fields_of(EDIT, limits)),
        ),
        "/v1/images/files/{name}": {
            "get": {
                "operationId": "getImageFile",
                "summary": "A picture that was made with `response_format: url`.",
                "security": [],
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}],
                "responses": {
                    "200": {
                        "description": "It.",
                        "content": {kind: {} for kind in ("image/png", "image/jpeg", "image/webp")},
                    },
                    **_errors(404),
                },
            }
        },
    }


def _others() -> dict[str, Any]:
    def get(name: str, summary: str, content: Mapping[str, Any], *errors: int, **more: Any) -> dict[str, Any]:
        told = {"200": {"description": "Yes.", "content": content}, **_errors(*errors)}
        return {"get": {"operationId": name, "summary": summary, "responses": told, **more}}

    def json(schema: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}

    name = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    ready = get("ready", "Whether requests are taken.", json("State"), security=[])
    ready["get"]["responses"]["503"] = {
        "description": "Not now; `status` says why.",
        "content": json("State"),
    }
    return {
        "/v1/models": get("listModels", "The model that is served.", json("Models")),
        "/v1/models/{model}": get("getModel", "A model.", json("Model"), 404, parameters=[name]),
        "/healthz": get("healthy", "Whether the process lives.", json("State"), security=[]),
        "/readyz": ready,
        "/metrics": get("metrics", "Prometheus' text format.", {"text/plain": {"schema": _TEXT}}),
    }


def _errors(*statuses: int) -> dict[str, Any]:
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": _ERRORS[status], "content": schema} for status in statuses}


_SECURITY = {"key": {"type": "http", "scheme": "bearer"}}
_PICTURE = {
    "type": "object",
    "properties": {
        "b64_json": _TEXT,
        "url": {"type": "string", "format": "uri"},
        "seed": {"type": "integer", "description": "With which it can be made again."},
    },
    "required": ["seed"],
}
_MODEL = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": _TEXT,
    },
    "required": ["id", "object", "created", "owned_by"],
}
_SCHEMAS: dict[str, Any] = {
    "Picture": _PICTURE,
    "Images": {
        "type": "object",
        "properties": {
            "created": {"type": "integer"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Picture"}},
            "background": _TEXT,
            "output_format": _TEXT,
            "quality": _TEXT,
            "size": _TEXT,
            "details": {
                "type": "object",
                "description": "Mode, whether guidance was split over two lanes, lanes, rounds and times.",
            },
        },
        "required": ["created", "data"],
    },
    "Model": _MODEL,
    "Models": {
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
        "required": ["object", "data"],
    },
    "State": {"type": "object", "properties": {"status": _TEXT}, "required": ["status"]},
    "Error": {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": _TEXT,
                    "request_id": _TEXT,
                },
                "required": ["message", "type", "param", "code"],
            }
        },
        "required": ["error"],
    },
}
