"""The events as an AsyncAPI document, made from their models.

Responsible for: telling other services, in their own tools' format, what they may subscribe to. Pure. The models in
`shared.events` are the source; nothing is described here that they do not say.

Source: AsyncAPI 3.0; JSON Schema 2020-12 as msgspec derives it.
"""

from typing import Any

import msgspec

from shared.events import CONTENT_TYPE, EVENTS_EXCHANGE, MODELS, Data, routing_key

_ENVELOPE = {
    "specversion": {"const": "1.0"},
    "id": {"type": "string", "format": "uuid", "description": "UUIDv5 of the fact: the same fact has the same id."},
    "source": {"type": "string", "description": "`wavekeep/{vendor}`, whoever publishes. Deduplicate on (source, id)."},
    "subject": {"type": "string", "description": "`{vendor}/{task_id}`."},
    "time": {"type": "string", "format": "date-time"},
    "datacontenttype": {"const": "application/json"},
    "traceparent": {"type": "string", "description": "W3C trace context, from the callback on."},
}


def document(version: str) -> dict[str, Any]:
    """Return the AsyncAPI document of every event, private ones marked.

    Args:
        version: of the product.
    """
    models = list(MODELS.values())
    _, schemas = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Wavekeep",
            "version": version,
            "description": "CloudEvents 1.0, structured JSON, over AMQP 0-9-1. Readers ignore fields they do not know.",
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {_name(model): _channel(model) for model in models},
        "operations": {
            f"receive{_name(model)}": {"action": "receive", "channel": {"$ref": f"#/channels/{_name(model)}"}}
            for model in models
            if model.EXCHANGE == EVENTS_EXCHANGE
        },
        "components": {"messages": {_name(model): _message(model) for model in models}, "schemas": schemas},
    }


def _name(model: type[Data]) -> str:
    return model.__name__


def _channel(model: type[Data]) -> dict[str, Any]:
    public = model.EXCHANGE == EVENTS_EXCHANGE
    return {
        "address": routing_key(model.TYPE),
        "description": "Public: bind a queue of your own." if public else "Private: it may hold links and raw bodies.",
        "messages": {_name(model): {"$ref": f"#/components/messages/{_name(model)}"}},
        "bindings": {
            "amqp": {"is": "routingKey", "exchange": {"name": model.EXCHANGE, "type": "topic", "durable": True}}
        },
    }


def _message(model: type[Data]) -> dict[str, Any]:
    properties = {
        **_ENVELOPE,
        "type": {"const": model.TYPE},
        "data": {"$ref": f"#/components/schemas/{_name(model)}"},
    }
    summary = (model.__doc__ or "").strip().partition("\n")[0]
    return {
        "name": model.TYPE,
        "contentType": CONTENT_TYPE,
        "summary": summary,
        "payload": {"type": "object", "required": sorted(properties), "properties": properties},
    }
