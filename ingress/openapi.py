"""The public edge as an OpenAPI document, made from its code.

Responsible for: telling whoever calls back, and the tools that test this edge, what may be sent and what is answered.
Pure; no secret and no setting is in it. It must not serve anything, nor describe what the code does not do: vendors,
routes, refusals and sizes come from where they are decided.

Source: OpenAPI 3.1.0; RFC 9457 (problem documents).
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ingress.callback import LONGEST_TASK_ID
from ingress.problems import CONTENT_TYPE, Refusal, RefusedError
from shared.vendors import SAMPLE_ROUTES, Vendor

PATH: Final = "/openapi.json"
CALLBACK_PATH: Final = "/callbacks/{vendor}"

_OF_A_CALLBACK_ONLY: Final = frozenset(
    {
        Refusal.UNAUTHENTIC,
        Refusal.TOO_LARGE,
        Refusal.WRONG_TYPE,
        Refusal.ENCODED,
        Refusal.NOT_DURABLE,
        Refusal.CUT_OFF,
        Refusal.SHEDDING,
    }
)
_OF_NO_OPERATION: Final = Refusal.NOT_FOUND
_HEADERS: Final[Mapping[int, Mapping[str, Any]]] = {
    405: {"Allow": {"required": True, "description": "The methods taken here.", "schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}},
    503: {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}},
}

_TEXT: Final = {"type": ["string", "null"]}
_CODE: Final = {
    "type": ["integer", "string"],
    "description": "200 is done; any other number is a failure with that code. It may come as text.",
    "examples": [200, "501"],
}
_TASK: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": LONGEST_TASK_ID,
    "description": "No control character and no path.",
    "examples": ["ee9c2715375b7837f8bb51d641ff5863"],
}
_LINK: Final = {
    "type": ["string", "null"],
    "description": "Where the WAV is, by http or https.",
    "examples": ["https://files.example.com/song.wav"],
}


def document(version: str, *, largest_body_bytes: int) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        version: of the product.
        largest_body_bytes: that are read of a callback.
    """
    any_request = frozenset(Refusal) - _OF_A_CALLBACK_ONLY - {_OF_NO_OPERATION, Refusal.UNKNOWN_VENDOR}
    sample = any_request | _OF_A_CALLBACK_ONLY
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Wavekeep ingress",
            "version": version,
            "description": "Takes the callbacks of vendors. 200 means durable; everything else is a problem document"
            " (RFC 9457), and anything not described here is answered 404.",
        },
        "servers": [{"url": "/"}],
        "paths": {
            CALLBACK_PATH: {
                "parameters": [
                    {
                        "name": "vendor",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "enum": [str(vendor) for vendor in Vendor]},
                    }
                ],
                "post": _callback("receiveCallback", "A vendor's callback.", sample | {Refusal.UNKNOWN_VENDOR}),
            },
            **{
                path: {"post": _callback(f"receiveSample_{vendor}", f"The route of {vendor}'s own sample.", sample)}
                for vendor, path in SAMPLE_ROUTES.items()
            },
            PATH: {"get": _self_description(any_request)},
        },
        "components": {
            "parameters": {"traceparent": _TRACEPARENT},
            "requestBodies": {"Callback": _request_body(largest_body_bytes)},
            "responses": {"Received": _RECEIVED, **_refusals()},
            "schemas": {"Callback": _CALLBACK, "Data": _DATA},
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def _callback(name: str, summary: str, refusals: frozenset[Refusal]) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "description": "Every proof that is configured for the vendor must hold. Repeating a callback is harmless.",
        "security": [
            {"token": []},
            {"signature": [], "timestamp": []},
            {"token": [], "signature": [], "timestamp": []},
        ],
        "parameters": [{"$ref": "#/components/parameters/traceparent"}],
        "requestBody": {"$ref": "#/components/requestBodies/Callback"},
        "responses": {"200": {"$ref": "#/components/responses/Received"}, **_refused(refusals)},
    }


def _self_description(refusals: frozenset[Refusal]) -> dict[str, Any]:
    return {
        "operationId": "describe",
        "summary": "This document.",
        "security": [],
        "responses": {
            "200": {
                "description": "This document.",
                "headers": {"Cache-Control": {"required": True, "schema": {"type": "string"}}},
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["openapi", "info", "paths"],
                            "properties": {"openapi": {"const": "3.1.0"}},
                        }
                    }
                },
            },
            **_refused(refusals),
        },
    }


def _refused(refusals: frozenset[Refusal]) -> dict[str, Any]:
    """Return the responses of an operation that may be refused for these reasons, by status."""
    statuses = sorted({RefusedError(refusal, "").status for refusal in refusals})
    return {str(status): {"$ref": f"#/components/responses/Refused{status}"} for status in statuses}


def _refusals() -> dict[str, Any]:
    """Return one response for each status of a refusal."""
    by_status: dict[int, list[dict[str, Any]]] = {}
    for told in (_told(refusal) for refusal in Refusal if refusal is not _OF_NO_OPERATION):
        by_status.setdefault(told["status"], []).append(told)
    return {f"Refused{status}": _refusal(status, by_status[status]) for status in sorted(by_status)}


def _refusal(status: int, told: list[dict[str, Any]]) -> dict[str, Any]:
    problem = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "additionalProperties": False,
        "properties": {
            "type": {"enum": [one["type"] for one in told]},
            "title": {"enum": [one["title"] for one in told]},
            "status": {"const": status},
            "detail": {"type": "string", "description": "One sentence; nothing of the request is in it."},
        },
    }
    response: dict[str, Any] = {
        "description": "; or: ".join(one["title"] for one in told) + ".",
        "content": {CONTENT_TYPE: {"schema": problem}},
    }
    if status in _HEADERS:
        response["headers"] = dict(_HEADERS[status])
    return response


def _told(refusal: Refusal) -> dict[str, Any]:
    """Return the problem document of a refusal, as it is sent."""
    body = RefusedError(refusal, "").response().body
    assert isinstance(body, bytes)
    told: dict[str, Any] = msgspec.json.decode(body)
    return told


def _request_body(largest_body_bytes: int) -> dict[str, Any]:
    return {
        "required": True,
        "description": f"UTF-8, at most {largest_body_bytes} bytes, no Content-Encoding. Unknown keys are ignored.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Callback"}}},
    }


_TRACEPARENT: Final = {
    "name": "traceparent",
    "in": "header",
    "required": False,
    "description": "W3C trace context; the trace goes on in the events.",
    "schema": {"type": "string"},
}
_RECEIVED: Final = {
    "description": "It is durable.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["status"],
                "additionalProperties": False,
                "properties": {"status": {"const": "received"}},
            }
        }
    },
}
_SECURITY_SCHEMES: Final = {
    "token": {
        "type": "apiKey",
        "in": "query",
        "name": "token",
        "description": "The text that was put into the callback URL handed to the vendor.",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Webhook-Signature",
        "description": 'base64(HMAC-SHA256(key, taskId + "." + timestamp)), as kie signs.',
    },
    "timestamp": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Webhook-Timestamp",
        "description": "Unix seconds as text; part of what is signed.",
    },
}
_CALLBACK: Final = {
    "type": "object",
    "description": "Whatever the vendor, every spelling is read. What says too little is kept for a person.",
    "properties": {
        "code": _CODE,
        "msg": _TEXT,
        "task_id": _TASK,
        "taskId": _TASK,
        "data": {"oneOf": [{"$ref": "#/components/schemas/Data"}, {"type": "null"}]},
    },
}
_DATA: Final = {
    "type": "object",
    "properties": {
        "task_id": _TASK,
        "taskId": _TASK,
        "audioWavUrl": _LINK,
        "audio_wav_url": _LINK,
        "response": {
            "type": ["object", "null"],
            "properties": {"audioWavUrl": _LINK, "audio_wav_url": _LINK},
        },
        "state": {"type": "string", "examples": ["success", "fail"]},
        "resultJson": {
            "type": "string",
            "description": 'JSON within JSON: {"resultUrls": ["…"]}.',
            "examples": ['{"resultUrls": ["https://files.example.com/song.wav"]}'],
        },
        "failCode": _CODE,
        "failMsg": _TEXT,
        "completeTime": {"type": ["integer", "string", "null"], "description": "Epoch milliseconds."},
    },
}
