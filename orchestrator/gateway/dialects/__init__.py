"""The dialects that clients speak: how each is read, when its answers are whole, how its errors look.

One row of `table.py` stands for one dialect. Inside the gateway every conversation is in OpenAI's form, which
is the engine's; a dialect of another form is translated when a request comes in and by its `Edge` on the way
back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson

from orchestrator.gateway.dialects.errors import openai_error, openai_fields
from orchestrator.gateway.failure import Failure

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked
    from orchestrator.gateway.stream import StreamJudge


class Unfit(Exception):
    """A request that is refused before any target: `status`, `code` for programs, the message for people,
    `param` naming the field at fault, empty where none is.
    """

    def __init__(self, status: int, code: str, message: str, param: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param


class Verdict(NamedTuple):
    """What a plain 200 answer is: what is wrong with it, None for a whole one, and the usage as it tells it,
    None where it does not.
    """

    failure: Failure | None = None
    usage: Any = None


class ErrorShape(Protocol):
    """Makes the JSON body of an error that the gateway itself answers with."""

    def __call__(self, status: int, code: str, message: str, request_id: str, param: str = "") -> bytes:
        """The body for this HTTP status; `code` is for programs, `message` for people."""
        ...


class Edge(Protocol):
    """Stands between a client's dialect and the inner one, OpenAI's. One for each request."""

    def feed(self, block: bytes) -> bytes:
        """Whole inner events in, the client's events out; empty while there is nothing to say."""
        ...

    def closing(self) -> bytes:
        """After a whole stream: what the client still lacks."""
        ...

    def interrupted(self, *, request_id: str, failure: Failure, detail: str, tokens: int | None) -> bytes:
        """The last event of a stream that broke, which no client takes for a proper end.

        `tokens` is how many were generated, None where the engine did not tell.
        """
        ...

    def answer(self, body: bytes) -> bytes:
        """A whole plain 200 answer in the client's form."""
        ...

    def failed(self, status: int, body: bytes, request_id: str) -> bytes:
        """An engine's error answer in the client's form."""
        ...


class Same:
    """The edge of the dialects that engines speak themselves: nothing is changed on the way."""

    __slots__ = ("_error",)

    def __init__(self, error: ErrorShape = openai_error) -> None:
        self._error = error

    def feed(self, block: bytes) -> bytes:
        """See Edge."""
        return block

    def closing(self) -> bytes:
        """See Edge."""
        return b""

    def interrupted(self, *, request_id: str, failure: Failure, detail: str, tokens: int | None) -> bytes:
        """See Edge. An `error` event in place of `[DONE]`: OpenAI's clients raise on it in every dialect."""
        message = f"The stream was interrupted and the answer is not complete ({failure}: {detail})."
        error: dict[str, Any] = {
            **openai_fields(500, "stream_interrupted", message, request_id),
            "reason": failure.value,
            "tokens": tokens,
        }
        return b"data: " + orjson.dumps({"error": error}) + b"\n\n"

    def answer(self, body: bytes) -> bytes:
        """See Edge."""
        return body

    def failed(self, status: int, body: bytes, request_id: str) -> bytes:
        """See Edge. What has no `error`, such as a plain "Internal Server Error", gets the error shape, as
        has everything where that is not OpenAI's. SGLang, TEI and TensorRT-LLM tell their message without
        one around it.
        """
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if isinstance(answer, dict) and (error := answer.get("error")):
            if self._error is openai_error:
                return body
            answer = error if isinstance(error, dict) else {"message": error}
        if isinstance(answer, dict) and isinstance(answer.get("message"), str):
            code = answer.get("code")
            known = code if isinstance(code, str) and code else "engine_error"
            return self._error(status, known, answer["message"][:_WORDS], request_id)
        words = body[:_WORDS].decode("utf-8", "replace").strip() or "the engine gave no reason"
        return self._error(status, "engine_error", words, request_id)


_WORDS = 500  # bytes of an engine's own words that are passed on


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One row of the table."""

    name: str
    judge: Callable[[Asked], StreamJudge]  # makes the judge of a stream from the engine
    whole: Callable[[Asked, bytes], Verdict]  # judges a plain 200 answer
    edge: Callable[[Asked], Edge]  # makes the edge of one request
    error: ErrorShape = openai_error
    json: bool = True  # the body of its POST must be a JSON object
    repeats: Callable[[dict[str, Any] | None], bool]
    """Whether a POST with these fields may run twice; None: its body is no JSON object."""
    translate: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Turns the client's fields into those for `engine_path`; None: the request goes as it came."""
    engine_path: str = ""
    streams: bool = True  # else a request for a stream gets a plain answer
    counts: bool = True  # a POST of it is work that is counted as used
