"""How providers, the APIs outside, are spoken to: calls to make of requests, and readers of what comes back.

Pure: bytes and dicts in, bytes out; whoever has a connection sends and feeds. Inside the gateway a
conversation has OpenAI's form (the inner form). A provider of another form is translated both ways; a client
that speaks the provider's own form passes untranslated, with its usage read on the way (native).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from math import isfinite
from typing import Any, Protocol

import orjson

from cloud.sse import DONE, Splitter, event_data, split_events
from policies.spend import Usage

Fields = dict[str, Any]

LONGEST_EVENT = 8 * 1024 * 1024
"""Bytes of one event of a stream; more is held back for nobody."""
_WORDS = 300  # characters of a provider's own words that are passed on


class Untranslatable(ValueError):
    """A request that a provider cannot be asked: `param` names the field at fault, `text` says why."""

    def __init__(self, param: str, text: str) -> None:
        super().__init__(f"{param}: {text}")
        self.param = param
        self.text = text


class Blame(StrEnum):
    """Whose trouble an error answer is, which says where the request may go next."""

    BUSY = "busy"  # the provider has too much to do, or this account asks too fast: later, or elsewhere
    FAILED = "failed"  # the provider broke: again, or elsewhere
    ACCOUNT = "account"  # the key, the account or the model's name: elsewhere, until the operator acts
    REQUEST = "request"  # what the client asks for: the client gets the error


@dataclass(frozen=True, slots=True)
class Fault:
    """An error answer. `retry_after`: seconds that the provider asks to wait, None where it says nothing;
    `text` for people; `body` the error in the form that the reader's answers have.
    """

    status: int
    blame: Blame
    retry_after: float | None
    text: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """A plain 200 answer. `usage` is None where it tells none; `error` says why it is not whole, if so."""

    body: bytes
    usage: Usage | None
    error: str = ""


class Reader(Protocol):
    """Reads what comes back for one call."""

    def answer(self, body: bytes) -> Answer:
        """A plain answer: in the inner form, or as it came for a native call. Never raises."""
        ...

    def relay(self) -> Relay:
        """The reader of a stream."""
        ...

    def fault(self, status: int, headers: Mapping[str, str], body: bytes, now: float) -> Fault:
        """An answer of another status than 200. `now`: seconds since the epoch. Never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A POST to a provider, and how to read its answer.

    `path` follows the scheme and host of the provider's URL; `fields` are what is sent, as JSON in `body`.
    `dropped` names what the provider is not told although it could change the answer.
    """

    path: str
    headers: Mapping[str, str]
    fields: Fields
    reader: Reader
    dropped: tuple[str, ...] = ()

    @property
    def body(self) -> bytes:
        """The bytes to send."""
        return orjson.dumps(self.fields)


class Wire(Protocol):
    """One provider's form."""

    @property
    def name(self) -> str:
        """The kind: "openai" or "anthropic"."""
        ...

    def speaks(self, path: str) -> bool:
        """Whether a client's request to this path is the provider's own form."""
        ...

    def request(
        self, inner: Fields, *, model: str, key: str, stream: bool, most_output: int = 0, created: int
    ) -> Call:
        """The call for a chat request in the inner form. `most_output`: the most tokens of an answer,
        0 where unknown; `created` (seconds since the epoch) stands in translated answers. Raises
        Untranslatable.
        """
        ...

    def native(
        self,
        raw: bytes,
        *,
        model: str,
        key: str,
        stream: bool,
        path: str,
        headers: Mapping[str, str],
    ) -> Call:
        """The call for a request in the provider's own form, given with the client's `headers`: its body
        stays but for the model and what makes a stream tell its usage. Raises Untranslatable.
        """
        ...

    def models(self, key: str, model: str = "") -> tuple[str, Mapping[str, str]]:
        """Path and headers of a GET that costs nothing: the list of models, or what is told of one. The path
        follows scheme and host.
        """
        ...


class Relay(ABC):
    """Reads a stream and makes of it the client's. Feed it bytes, however they are cut.

    `begun`: something that a reader sees has passed; what was returned before may still be withheld, and the
    request sent elsewhere. `whole`: the answer came to its proper end. `error` says what broke the stream,
    empty as long as it is good; nothing passes after it, and error events never do. `usage` is None until the
    provider has told all of it.
    """

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._closed = False  # the stream's own end has passed; what follows is none of it
        self._came = self._went = b""  # how the last event ended, and how what the client got of it
        self.usage: Usage | None = None
        self.begun = False
        self.whole = False
        self.error = ""

    def feed(self, data: bytes) -> bytes:
        """What may go to the client now: whole events, or nothing."""
        if self.error or self._closed:
            return b""
        block = self._splitter.feed(data)
        out = b"".join([self._take(event) for event in split_events(block)]) if block else b""
        if self._splitter.size > LONGEST_EVENT:
            self._fail(f"an event is longer than {LONGEST_EVENT} bytes")
        return out

    def end(self) -> bytes:
        """The connection ended without an error: what may still go to the client.

        A last event without its blank line counts where it can be read.
        """
        tail = self._splitter.tail
        data = event_data(tail)
        out = self._take(tail + b"\n\n") if data == DONE or loaded(data) is not None else b""
        if not self._closed and self.whole:
            out += self._finished()
        elif not self.whole:
            self._fail("the stream ended inside an event" if tail.strip() else "the stream ended too early")
        return out

    def _take(self, event: bytes) -> bytes:
        if self.error or self._closed:
            return b""
        if event == b"\n" and self._came == b"\r":  # the other half of a CR LF
            out = event if self._went == b"\r" else b""
        else:
            out = self._taken(event)
        self._came, self._went = event[-1:], out[-1:]
        return out

    def _taken(self, event: bytes) -> bytes:
        data = event_data(event)
        if not data:
            return self._blank(event)
        if data == DONE:
            return self._done(event)
        fields = loaded(data)
        if fields is None:
            self._fail(f"an event is no JSON object: {words(data)}")
            return b""
        try:
            return self._read(event, fields)
        except MISREAD:
            self._fail(f"an event cannot be read: {words(data)}")
            return b""

    def _fail(self, text: str) -> None:
        self.error, self.whole = self.error or text, False

    def _blank(self, event: bytes) -> bytes:
        """An event without data: a comment."""
        return event

    def _done(self, event: bytes) -> bytes:
        """`[DONE]`, with which OpenAI's streams end, whole or not."""
        if not self.whole:
            self._fail("the stream ended without a finish_reason")
            return b""
        self._closed = True
        return event

    def _finished(self) -> bytes:
        """What a stream that just ended owes the client."""
        return b""

    @abstractmethod
    def _read(self, event: bytes, fields: Fields) -> bytes:
        """What the client gets of one event. May raise one of MISREAD: then the stream is broken."""


MISREAD = (AttributeError, KeyError, IndexError, TypeError, ValueError)
"""What reading JSON of another shape than the one expected raises."""


def loaded(data: bytes) -> Fields | None:
    """A JSON object, None for anything else."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def bearer(key: str) -> dict[str, str]:
    """The header that shows a key, none where there is no key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def words(data: bytes) -> str:
    """The beginning of what a provider sent, on one line."""
    return " ".join(data[: 4 * _WORDS].decode("utf-8", "replace").split())[:_WORDS]


def error_text(error: Any) -> str:
    """What an `error` of either form says, with its type or code before it."""
    if not isinstance(error, dict):
        return words(str(error).encode())
    kind = error.get("type") or error.get("code")
    message = error.get("message")
    text = message if isinstance(message, str) else orjson.dumps(error).decode()
    return words((f"{kind}: {text}" if isinstance(kind, str) else text).encode())


_BUSY = frozenset({429, 503, 529})
_FAILED = frozenset({408, 409, 425})
_ACCOUNT = frozenset({401, 402, 403, 404, 405})
_NO_MONEY = ("insufficient_quota", "billing_error", "billing_not_active", "billing_hard_limit_reached")
_NO_CREDIT = "credit balance is too low"
"""Of accounts without money, which OpenAI answers with 429 and Anthropic with 400:
https://platform.openai.com/docs/guides/error-codes, https://docs.anthropic.com/en/api/errors
"""
_CLIENT_ERRORS = range(400, 500)


def read_fault(status: int, headers: Mapping[str, str], body: bytes, now: float) -> Fault:
    """An error answer of either form. Its body is OpenAI's shape: as it came where it has it."""
    answer = loaded(body) or {}
    error = answer.get("error")
    keeps = isinstance(error, dict) and answer.get("type") != "error"
    if not isinstance(error, dict):
        error = {"message": error if isinstance(error, str) else words(body) or "no reason given"}
    text = error_text(error)
    if not keeps:
        kind, message = error.get("type"), error.get("message")
        told = {
            "message": message if isinstance(message, str) else text,
            "type": kind if isinstance(kind, str) else "api_error",
            "param": None,
            "code": status,
        }
        body = orjson.dumps({"error": told})
    return Fault(status, _blame(status, error, text), _retry_after(headers, now), text, body)


def _blame(status: int, error: Fields, text: str) -> Blame:
    broke = any(error.get(name) in _NO_MONEY for name in ("type", "code"))
    if status in _ACCOUNT or (status in _CLIENT_ERRORS and (broke or _NO_CREDIT in text.lower())):
        return Blame.ACCOUNT
    if status in _BUSY:
        return Blame.BUSY
    if status in _FAILED or status not in _CLIENT_ERRORS:
        return Blame.FAILED
    return Blame.REQUEST


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait: `Retry-After` in seconds or as a date (RFC 9110, 10.2.3), OpenAI's in milliseconds."""
    low = {name.lower(): value for name, value in headers.items()}
    if (told := _number(low.get("retry-after-ms", ""))) is not None:
        return told / 1000
    text = low.get("retry-after", "")
    if (told := _number(text)) is not None:
        return told
    try:
        until = parsedate_to_datetime(text)
        return max(0.0, until.replace(tzinfo=until.tzinfo or UTC).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return max(0.0, number) if isfinite(number) else None
