"""Answers that the gateway gives itself, in the shape that OpenAI clients read."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from orchestrator.gateway.failure import Failure

REQUEST_ID = "X-Request-Id"
NODE = "X-Orchestrator-Node"


def error_response(
    status: int, code: str, message: str, *, request_id: str = "", retry_after: int | None = None
) -> web.Response:
    """An error in OpenAI's JSON shape. `code` is for programs, `message` for people."""
    headers = {"Content-Type": "application/json"}
    if request_id:
        headers[REQUEST_ID] = request_id
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {
        "error": {"message": message, "type": kind, "param": None, "code": code, "request_id": request_id}
    }
    return web.Response(status=status, headers=headers, body=orjson.dumps(body))


def bad_request(status: int, message: str) -> web.Response:
    """The answer to a request that is broken, or not for this gateway."""
    codes = {421: "misdirected_request", 500: "gateway_error"}
    answer = error_response(status, codes.get(status, "bad_request"), message)
    answer.force_close()
    return answer


def interrupted_event(*, request_id: str, failure: Failure, detail: str, tokens: int | None) -> bytes:
    """The last event of a stream that broke: an error instead of `[DONE]`, so that no client takes the part
    for the whole. `tokens` is how many were generated, null where the engine did not tell.
    """
    error: dict[str, Any] = {
        "message": f"The stream was interrupted and the answer is not complete ({failure}: {detail}).",
        "type": "server_error",
        "param": None,
        "code": "stream_interrupted",
        "request_id": request_id,
        "reason": failure.value,
        "tokens": tokens,
    }
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"
