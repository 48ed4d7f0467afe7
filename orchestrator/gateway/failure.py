"""How an attempt on a target can fail, and how a failure is told apart from an answer."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import orjson


class Failure(StrEnum):
    """Why an attempt gave the client nothing, or why its stream was cut. The values are metric labels."""

    CONNECT = "connect"  # no connection; nothing was sent
    DISCONNECTED = "disconnected"  # the connection ended before the answer did
    BAD_RESPONSE = "bad_response"  # what came back is not HTTP
    BAD_GATEWAY = "bad_gateway"  # 502 or 504
    UNAVAILABLE = "unavailable"  # 503: busy, or starting
    ENGINE_ERROR = "engine_error"  # the engine died, failed or shuts down
    ABORTED = "aborted"  # finish_reason "abort" that the client did not ask for
    INCOMPLETE = "incomplete"  # the stream ended properly but no finish_reason was seen
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a token of text, not a secret
    ANSWER_TIMEOUT = "answer_timeout"
    IDLE_TIMEOUT = "idle_timeout"  # silence inside a stream
    GATEWAY_STOPPING = "gateway_stopping"  # this gateway was told to end at once

    @property
    def reached_target(self) -> bool:
        """Whether the target may have begun to work on the request."""
        return self is not Failure.CONNECT

    @property
    def blames_target(self) -> bool:
        """Whether it counts against the target. A full queue is no fault, neither is our own end."""
        return self not in (Failure.UNAVAILABLE, Failure.GATEWAY_STOPPING)


_BY_STATUS = {502: Failure.BAD_GATEWAY, 503: Failure.UNAVAILABLE, 504: Failure.BAD_GATEWAY}
_INTERNAL_ERROR = 500
_ENGINE_WORDS = (
    "enginecore",
    "enginedead",
    "engine core",
    "engine process",
    "after shutdown",
    "engine is dead",
)


def of_status(status: int, body: bytes, *, draining: bool) -> Failure | None:
    """The failure that an HTTP answer stands for, None when the answer belongs to the client.

    A 500 is the engine's, and worth a retry, when the target is draining (vLLM answers "cannot schedule new
    futures after shutdown" while its health check still passes) or when it says that the engine died. Any
    other 500 may be the request's own fault and would fail everywhere.
    """
    if (failure := _BY_STATUS.get(status)) is not None:
        return failure
    if status == _INTERNAL_ERROR and (draining or is_engine_error(body)):
        return Failure.ENGINE_ERROR
    return None


def is_engine_error(body: bytes) -> bool:
    """Whether an error answer has vLLM's shape and names the engine."""
    error = _loads_object(body).get("error")
    if not isinstance(error, dict):
        return False
    words = f"{error.get('message', '')} {error.get('type', '')}".lower()
    return any(word in words for word in _ENGINE_WORDS)


def _loads_object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
