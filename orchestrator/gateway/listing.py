"""The models that clients may ask for: GET /v1/models and GET /v1/models/NAME, answered by the gateway.

One form for both kinds of clients, each of which skips the fields of the other:
https://platform.openai.com/docs/api-reference/models/list, https://docs.anthropic.com/en/api/models-list
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from orchestrator.gateway.dialects import ErrorShape
from orchestrator.gateway.dialects.errors import anthropic_error, openai_error
from orchestrator.gateway.replies import REQUEST_ID

MODELS = "/v1/models"
_ANTHROPIC = "anthropic-version"


def asks_for_models(request: web.BaseRequest) -> str | None:
    """The model that is asked about, empty for all of them; None where something else is asked for."""
    path = request.raw_path.partition("?")[0]
    if request.method not in ("GET", "HEAD") or not path.startswith(MODELS):
        return None
    rest = path.removeprefix(MODELS)
    if rest in ("", "/"):
        return ""
    return unquote(rest[1:]) if rest[0] == "/" else None


def all_models(names: Iterable[str], request_id: str) -> web.Response:
    """The list of all models."""
    data = [_model(name) for name in names]
    ids = [each["id"] for each in data]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    fields = {"object": "list", "data": data, "has_more": False, "first_id": first, "last_id": last}
    return _json(fields, request_id)


def one_model(name: str, request_id: str) -> web.Response:
    """What there is to say of one."""
    return _json(_model(name), request_id)


def shape_of(request: web.BaseRequest) -> ErrorShape:
    """The shape of errors for a client that says which API it speaks, as Anthropic's do."""
    return anthropic_error if _ANTHROPIC in request.headers else openai_error


def _model(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "orchestrator",
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
    }


def _json(fields: dict[str, Any], request_id: str) -> web.Response:
    headers = {"Content-Type": "application/json", REQUEST_ID: request_id}
    return web.Response(body=orjson.dumps(fields), headers=headers)
