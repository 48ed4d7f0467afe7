"""Error bodies in the shapes that the clients of each dialect read."""

from __future__ import annotations

import orjson

_FIRST_SERVER_ERROR = 500


def openai_error(status: int, code: str, message: str, request_id: str, param: str = "") -> bytes:
    """OpenAI's shape: `{"error": {"message", "type", "param", "code", "request_id"}}`."""
    return orjson.dumps({"error": openai_fields(status, code, message, request_id, param)})


def openai_fields(
    status: int, code: str, message: str, request_id: str, param: str = ""
) -> dict[str, str | None]:
    """What stands under `error` in OpenAI's shape. `code` is for programs, `message` for people."""
    kind = "invalid_request_error" if status < _FIRST_SERVER_ERROR else "server_error"
    return {
        "message": message,
        "type": kind,
        "param": param or None,
        "code": code,
        "request_id": request_id,
    }


def anthropic_error(status: int, code: str, message: str, request_id: str, param: str = "") -> bytes:
    """Anthropic's shape: `{"type": "error", "error": {"type", "message"}, "request_id"}`.

    `code` goes in front of the message, as the shape has no field for it; `param` is one field more.
    https://docs.anthropic.com/en/api/errors
    """
    kind = _ANTHROPIC_TYPES.get(
        status, "invalid_request_error" if status < _FIRST_SERVER_ERROR else "api_error"
    )
    error = {"type": kind, "message": f"{code}: {message}" if code else message}
    if param:
        error["param"] = param
    return orjson.dumps({"type": "error", "error": error, "request_id": request_id})


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def cohere_error(status: int, code: str, message: str, request_id: str, param: str = "") -> bytes:
    """OpenAI's shape with the `message` at the top too, where Cohere's clients read it.

    https://docs.cohere.com/reference/errors
    """
    fields = openai_fields(status, code, message, request_id, param)
    return orjson.dumps({"message": message, "error": fields})
