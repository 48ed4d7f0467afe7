"""How an attempt on a target can fail, and how a failure differs from an answer."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import orjson

from policies.held import Held


class Blame(StrEnum):
    """What a failure says about its target."""

    NOTHING = "nothing"  # it is no fault of the target
    FAULT = "fault"  # the target failed
    BUSY = "busy"  # the target says that it has too much to do
    DOUBT = "doubt"  # the target's fault only if the same request succeeds at a peer


class Failure(StrEnum):
    """Why an attempt gave the client nothing, or why its stream broke. The values are metric labels."""

    CONNECT = "connect"  # no connection; nothing was sent
    STALE = "stale"  # a kept connection had been closed when the request was written to it
    DISCONNECTED = "disconnected"  # the connection ended before the answer did
    BAD_RESPONSE = "bad_response"  # what came back is not HTTP, or not an answer
    BAD_GATEWAY = "bad_gateway"  # 502 or 504
    UNAVAILABLE = "unavailable"  # 503: busy, or starting
    RATE_LIMITED = "rate_limited"  # 429
    NO_ADAPTER = "no_adapter"  # the target does not know the adapter that it is said to hold
    REFUSED_HERE = "refused_here"  # another 4xx, or a redirection
    SERVER_ERROR = "server_error"  # another 5xx: the request's own fault, or the target's
    ENGINE_ERROR = "engine_error"  # the engine died, failed or shuts down
    ABORTED = "aborted"  # finish_reason "abort" that the client did not ask for
    INCOMPLETE = "incomplete"  # the answer ended properly but is not whole
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a token of text, not a secret
    LOST = "lost"  # the target is silent and fails its checks
    STALLED = "stalled"  # this answer is silent for too long, whatever else the target does
    DEADLINE = "deadline"  # the request took longer than any may
    MOVED = "moved"  # taken away on purpose, before the target's drain deadline
    GATEWAY_STOPPING = "gateway_stopping"  # this gateway must end at once

    @property
    def refused(self) -> bool:
        """Whether the target did no work on the request: sending it elsewhere repeats nothing."""
        return self in _REFUSED

    @property
    def blames(self) -> Blame:
        """What it says about the target."""
        return _BLAMES.get(self, Blame.FAULT)


_REFUSED = frozenset(
    {Failure.CONNECT, Failure.UNAVAILABLE, Failure.RATE_LIMITED, Failure.REFUSED_HERE, Failure.NO_ADAPTER}
)  # fmt: skip
_BLAMES = {
    Failure.UNAVAILABLE: Blame.BUSY,
    Failure.RATE_LIMITED: Blame.BUSY,
    Failure.REFUSED_HERE: Blame.DOUBT,
    Failure.SERVER_ERROR: Blame.DOUBT,
    Failure.NO_ADAPTER: Blame.NOTHING,
    Failure.STALE: Blame.NOTHING,
    Failure.DEADLINE: Blame.NOTHING,
    Failure.MOVED: Blame.NOTHING,
    Failure.GATEWAY_STOPPING: Blame.NOTHING,
}
_BY_STATUS = {
    429: Failure.RATE_LIMITED,
    502: Failure.BAD_GATEWAY,
    503: Failure.UNAVAILABLE,
    504: Failure.BAD_GATEWAY,
    529: Failure.UNAVAILABLE,
}
_FIRST_REDIRECTION, _FIRST_ERROR, _FIRST_SERVER_ERROR = 300, 400, 500
_NOT_MODIFIED, _FAILED_DEPENDENCY, _NOT_IMPLEMENTED = 304, 424, 501
_TOO_LONG = "too large to process"
_ABSENT: dict[int, tuple[str, ...]] = {404: ("",), 400: ("not loaded", "does not exist", "not found")}
_ENGINE_WORDS = (
    "enginecore",
    "enginedead",
    "engine core",
    "engine process",
    "after shutdown",
    "engine is dead",
)


def told(status: int, body: bytes) -> tuple[int, bytes]:
    """An engine's error with the right status: some report a request's own fault as theirs, or theirs as
    the request's.

    llama.cpp (tools/server/server-context.cpp) answers 500 to an input for an embedding that is longer than
    its physical batch, and 501 to what it was not started for; TEI and TGI answer 424 where the process that
    holds the model failed (router/src/http/types.rs, router/src/server.rs).
    """
    if status == _FAILED_DEPENDENCY:
        return _FIRST_SERVER_ERROR, body
    code = "not_supported" if status == _NOT_IMPLEMENTED else ""
    error = _loads_object(body).get("error")
    if status == _FIRST_SERVER_ERROR and isinstance(error, dict) and _TOO_LONG in str(error.get("message")):
        code = "context_length_exceeded"
    if not code:
        return status, body
    if isinstance(error, dict):
        body = orjson.dumps({"error": {**error, "type": "invalid_request_error", "code": code}})
    return _FIRST_ERROR, body


def of_status(status: int, body: bytes, *, draining: bool, held: Held | None = None) -> Failure | None:
    """The failure that an HTTP status stands for (see `told`), None when the answer belongs to the client.

    A 500 is the engine's when the target is draining (vLLM answers "cannot schedule new futures after
    shutdown" while its health check still passes) or when it says that the engine died. Any other 5xx, 4xx
    or redirection may be the request's own fault: a peer tells. `held`: the adapter that was asked for.
    """
    if status < _FIRST_REDIRECTION or status == _NOT_MODIFIED:
        return None
    if (failure := _BY_STATUS.get(status)) is not None:
        return failure
    if held is not None and _lacks(status, body, held):
        return Failure.NO_ADAPTER
    if status < _FIRST_SERVER_ERROR:
        return Failure.REFUSED_HERE
    return Failure.ENGINE_ERROR if draining or is_engine_error(body) else Failure.SERVER_ERROR


def _lacks(status: int, body: bytes, held: Held) -> bool:
    """Whether an engine says that it does not have an adapter: vLLM by 404 (`_check_model`), SGLang by 400
    (`LoRARegistry.acquire`), each with the adapter's name in the message.
    """
    if status not in _ABSENT or not held.served_as:
        return False
    said = str(_loads_object(body))
    return held.served_as in said and any(word in said.lower() for word in _ABSENT[status])


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
