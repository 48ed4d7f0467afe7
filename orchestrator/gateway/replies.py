"""Answers that the gateway gives itself."""

from __future__ import annotations

from aiohttp import web

from orchestrator.gateway.dialects import ErrorShape
from orchestrator.gateway.dialects.errors import openai_error

REQUEST_ID = "X-Request-Id"
ANTHROPIC_REQUEST_ID = "request-id"
"""Where Anthropic's clients read the same."""
NODE = "X-Orchestrator-Node"
BACKEND = "X-Orchestrator-Backend"
"""Which pool, or provider and model, answered where there are routes, as `claude/claude-sonnet-5`."""
DROPPED = "X-Orchestrator-Dropped"
"""The fields of the request that this provider did not get, though its answer may depend on them."""


def error_response(
    status: int,
    code: str,
    message: str,
    *,
    request_id: str = "",
    retry_after: int | None = None,
    shape: ErrorShape = openai_error,
    param: str = "",
) -> web.Response:
    """An error in the shape of the client's dialect. `code` is for programs, `message` for people, `param`
    names the field at fault.
    """
    headers = {"Content-Type": "application/json"}
    if request_id:
        headers[REQUEST_ID] = request_id
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return web.Response(status=status, headers=headers, body=shape(status, code, message, request_id, param))


_CODES = {
    405: "method_not_allowed",
    408: "head_timeout",
    421: "misdirected_request",
    431: "head_too_large",
    500: "gateway_error",
}


def bad_request(status: int, message: str, request_id: str = "") -> web.Response:
    """The answer to a request that is broken, or not for this gateway. The connection ends with it."""
    answer = error_response(status, _CODES.get(status, "bad_request"), message, request_id=request_id)
    answer.force_close()
    return answer
