"""Judges a stream while it passes: what may go to the client, when it counts as begun, when as whole.

vLLM ends broken streams cleanly, with an error event or with finish_reason "abort", and then `[DONE]`; so
only what the dialect itself calls the end proves an answer whole: a finish_reason for every choice, or an
event of a type that ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import Any, Protocol

import orjson

from cloud.sse import DONE, DONE_EVENT, Splitter, event_data, split_events
from orchestrator.gateway.failure import Failure

_HOLD_LIMIT = 4 * 1024 * 1024  # bytes before the first text, such as prompt token ids, that are still held
_INSIDE = "the stream ended inside an event"
_DETAIL = 200  # bytes of the engine's own words that are kept
_CLIENT_ERRORS = range(400, 500)
_TOO_MANY = 429
_REASON_KEY = b'"finish_reason"'
_REASON_NULL = b'"finish_reason":null'


class Recorder(Protocol):
    """Notes every good event of a completion stream, and says what of it goes to the client."""

    @property
    def tokens(self) -> int:
        """Tokens generated so far."""
        ...

    def take(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        """Note one event, given with its data parsed; returns what the client gets in its place."""
        ...

    def take_plain(self, block: bytes, chunks: list[Any]) -> bytes | None:
        """The same for a block of ordinary events at once. None, and nothing is noted, where it cannot."""
        ...

    def closing(self) -> bytes:
        """What a stream whose every choice has ended still owes its client: its usage."""
        ...


class Kind(Enum):
    """What one event of a stream means."""

    PREAMBLE = auto()  # carries nothing for a reader yet: comments, the role, empty text
    CONTENT = auto()  # text, reasoning, a tool call
    FINISH = auto()  # a part of the answer, or all of it, ended as it should
    ABORT = auto()  # cut short by the engine
    ERROR = auto()  # the engine failed
    REFUSAL = auto()  # the engine refuses the request: the client's own fault
    NONSENSE = auto()  # no JSON object, or text after its own end
    DONE = auto()  # [DONE]: the end, but no proof that the answer is whole


_BAD = {
    Kind.ERROR: Failure.ENGINE_ERROR,
    Kind.ABORT: Failure.ABORTED,
    Kind.NONSENSE: Failure.BAD_RESPONSE,
}


class StreamJudge:
    """Feed it the bytes of a stream, pass on what it returns, stop once it has a failure.

    This one serves streams whose end the gateway does not know how to prove: they have begun with their
    first event and are whole when they end between two events without an error of the connection. `chunks`
    counts the choices that passed, or events with a part of a response, which is the number of tokens where
    each token has its own chunk. `usage` is what a whole stream reported, as it came.
    """

    def __init__(self) -> None:
        self.usage: Any = None
        self._splitter = Splitter()
        self._failure: Failure | None = None
        self.detail = ""
        self.begun = False
        self.chunks = 0
        self.whole = False

    def feed(self, data: bytes) -> bytes:
        """What may go to the client now; empty while nothing may."""
        block = self._splitter.feed(data)
        self.begun = self.begun or bool(block)
        return block

    def end(self) -> bytes:
        """The stream ended without an error of the connection: what may still go to the client.

        A last event without its blank line counts when its data can be read; half an event never passes.
        """
        last = _last_event(self._splitter.tail)
        if last is None:
            self.fail(Failure.INCOMPLETE, _INSIDE)
            return b""
        self.whole = True
        return last

    def closing(self) -> bytes:
        """What a whole stream still lacks at its end."""
        return b""

    def tokens(self) -> int | None:
        """Tokens generated so far, where the engine tells."""
        return None

    def fail(self, failure: Failure, detail: str) -> None:
        """The stream is broken. A later failure does not replace the first."""
        if self._failure is None:
            self._failure, self.detail = failure, detail

    def failure(self) -> Failure | None:
        """What broke the stream, None as long as it is good."""
        return self._failure

    def size_of_tail(self) -> int:
        """Bytes held back because their event is not complete."""
        return self._splitter.size


class EventJudge(StreamJudge, ABC):
    """For dialects whose events are JSON and whose end can be proved. Subclasses say what an event means.

    Events before the first that carries text or a normal end are held back: up to there the request can go
    to another target. An error event, an abort, an event that is no JSON, and an end of the stream without
    its proof are failures, and are never passed on.
    """

    _lacks = "its last event"  # what a stream that ends too early has not shown

    def __init__(self) -> None:
        super().__init__()
        self._held: list[bytes] = []
        self._held_size = 0
        self._skips = False
        self._done = False

    def feed(self, data: bytes) -> bytes:
        """See StreamJudge."""
        block = self._splitter.feed(data)
        return self._examine(block) if block else b""

    def end(self) -> bytes:
        """See StreamJudge."""
        last = _last_event(self._splitter.tail)
        block = self._examine(last) if last else b""
        if not self.whole:
            detail = _INSIDE if last is None else f"the stream ended without {self._lacks}"
            self.fail(Failure.INCOMPLETE, detail)
        return block

    def _examine(self, block: bytes) -> bytes:
        """Judge every event of a block; what goes to the client ends before the first bad one."""
        good: list[bytes] = []
        for event in split_events(block):
            if self._done:
                break
            data = event_data(event)
            if event.strip(b"\r\n"):  # else the rest of a blank line: it goes where its event went
                self._skips = not data and not (event.startswith(b":") and event.isascii())
            if self._skips:
                continue  # clients skip it where it is text at all; comments keep their connection open
            body = _parsed(data) if data else None
            kind = self._kind(data, body)
            if kind is Kind.DONE and not self.whole:
                self.fail(Failure.INCOMPLETE, f"[DONE] came without {self._lacks}")
            elif (failure := _BAD.get(kind)) is not None:
                if self.whole:
                    self._skips = True
                    continue  # the answer is complete; what is wrong after it is not the client's concern
                self.fail(failure, data[:_DETAIL].decode("utf-8", "replace"))
            if self.failure() is not None:
                break
            self.begun = self.begun or kind in (Kind.CONTENT, Kind.FINISH, Kind.REFUSAL)
            self._done = self._done or kind is Kind.DONE
            good.append(self._passed(event, body) if isinstance(body, dict) else event)
        return self._forward(b"".join(good))

    def _forward(self, good: bytes) -> bytes:
        """Hold events back until the stream has begun, or until they are too many."""
        if not self.begun:
            self._held.append(good)
            self._held_size += len(good)
            if self._held_size <= _HOLD_LIMIT:
                return b""
            self.begun = True
            good = b""
        if self._held:
            good = b"".join((*self._held, good))
            self._held.clear()
        return good

    def _kind(self, data: bytes, body: Any) -> Kind:
        if not data:
            return Kind.PREAMBLE
        if body is DONE:
            return Kind.DONE
        if not isinstance(body, dict):
            return Kind.NONSENSE
        if error := body.get("error"):
            if not refuses(error):
                return Kind.ERROR
            self.whole = True
            return Kind.REFUSAL
        return self._meaning(body)

    @abstractmethod
    def _meaning(self, body: dict[str, Any]) -> Kind:
        """What an event without an error means; sets `whole` with the one that ends the answer."""

    def _passed(self, event: bytes, _: dict[str, Any]) -> bytes:
        """What goes to the client for a good event with data."""
        return event


class CompletionJudge(EventJudge):
    """For `/v1/completions` and `/v1/chat/completions` with this many choices.

    Whole with a finish_reason for every choice. With a recorder each event passes through it. `unasked`: the
    client did not ask for the event that tells the usage and nothing else, and does not get it.
    """

    _lacks = "a finish_reason"

    def __init__(self, choices: int, recorder: Recorder | None = None, *, unasked: bool = False) -> None:
        super().__init__()
        self._unasked = unasked
        self._open = set(range(choices))  # asked for, and not ended
        self._ended: set[int] = set()
        self._recorder = recorder
        self._last = b""

    def feed(self, data: bytes) -> bytes:
        """See StreamJudge. Ordinary chunks pass without a look at their meaning, unrecorded ones unparsed."""
        block = self._splitter.feed(data)
        if not block:
            return b""
        if not self.begun or self._ended or not is_plain(block):
            return self._examine(block)
        if self._recorder is None:
            passed = block
        else:
            recorded = self._recorder.take_plain(block, _rows(block))
            if recorded is None:
                return self._examine(block)
            passed = recorded
        self.chunks += block.count(_REASON_KEY)
        self._last = block
        return passed

    def closing(self) -> bytes:
        """Usage and `[DONE]` where the connection broke between the last finish_reason and them."""
        if self._done:
            return b""
        return (b"" if self._recorder is None else self._recorder.closing()) + DONE_EVENT

    def tokens(self) -> int | None:
        """See StreamJudge. Told by `continuous_usage_stats`, or by the recorder."""
        if self._recorder is not None:
            return self._recorder.tokens
        if b'"completion_tokens"' not in self._last:
            return None
        body = _parsed(event_data(split_events(self._last)[-1]))
        usage = body.get("usage") if isinstance(body, dict) else None
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return tokens if isinstance(tokens, int) else None

    def _meaning(self, body: dict[str, Any]) -> Kind:
        choices = body.get("choices")
        rows = [row for row in choices if isinstance(row, dict)] if isinstance(choices, list) else []
        kind = Kind.PREAMBLE
        for row in rows:
            index, reason, carries = _index(row), row.get("finish_reason"), _carries(row)
            if reason == "abort":
                return Kind.ABORT
            if index in self._ended:
                if carries:
                    return Kind.NONSENSE
                continue  # said again, with usage or without
            if reason:
                self._open.discard(index)
                self._ended.add(index)
                kind = Kind.FINISH
            elif carries and kind is Kind.PREAMBLE:
                kind = Kind.CONTENT
        self.whole = self.whole or (kind is Kind.FINISH and not self._open)
        return kind

    def _passed(self, event: bytes, body: dict[str, Any]) -> bytes:
        self.chunks += event.count(_REASON_KEY)
        self._last = event
        if usage := body.get("usage"):
            if self.whole:
                self.usage = usage
            if self._unasked and not body.get("choices"):
                return b""
        if self._recorder is None:
            return event
        return self._recorder.take(event, body)


class TypedJudge(EventJudge):
    """For audio and images: whole with an event of one of the types that end, or with a finish_reason.

    OpenAI names the type of each event in its data; vLLM streams transcripts in chunks with choices.
    """

    def __init__(self, ends: frozenset[str]) -> None:
        super().__init__()
        self._ends = ends

    def _meaning(self, body: dict[str, Any]) -> Kind:
        choices = body.get("choices")
        rows = [row for row in choices if isinstance(row, dict)] if isinstance(choices, list) else []
        reasons = [row["finish_reason"] for row in rows if row.get("finish_reason")]
        if "abort" in reasons:
            return Kind.ABORT
        if reasons or body.get("type") in self._ends:
            self.whole, self.usage = True, body.get("usage")
            return Kind.FINISH
        return Kind.CONTENT if not rows or any(_carries(row) for row in rows) else Kind.PREAMBLE


class ResponsesJudge(EventJudge):
    """For `/v1/responses`: whole with `response.completed`, `.incomplete` or `.failed`.

    One that failed by the server's own fault is a failure, unless it is `stored`, and the client looks at
    what became of it. `response_id` is the id in its first event, empty before.
    https://platform.openai.com/docs/api-reference/responses-streaming
    """

    _lacks = "response.completed"

    def __init__(self, *, stored: bool = False) -> None:
        super().__init__()
        self._stored = stored
        self.response_id = ""

    def _meaning(self, body: dict[str, Any]) -> Kind:
        kind, response = body.get("type"), body.get("response")
        response = response if isinstance(response, dict) else {}
        if isinstance(found := response.get("id"), str):
            self.response_id = found
        if kind == "error":
            return self._refused() if refuses(body) else Kind.ERROR
        if kind in _PREAMBLES:
            return Kind.PREAMBLE
        if kind not in _ENDS:
            self.chunks += 1
            return Kind.CONTENT
        self.usage = response.get("usage")
        if not self._stored:
            if kind == "response.failed" and not refuses(response.get("error")):
                return Kind.ERROR
            if response.get("status") == "cancelled" or says_nothing(response):
                return Kind.ABORT
        self.whole = True
        return Kind.FINISH

    def _refused(self) -> Kind:
        self.whole = True
        return Kind.REFUSAL


_PREAMBLES = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_part.added",
    }
)
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})


def is_plain(block: bytes) -> bool:
    """Whether a block of whole events holds only ordinary text chunks of one choice each. Nothing is parsed.

    Rests on JSON escaping quotes and newlines inside strings: a key in quotes or a blank line cannot appear
    inside generated text. Most engines write no space after the colon; a block of one that does is parsed,
    which is slower, not wrong.
    """
    events = block.count(b"\n\n")
    return (
        block.count(_REASON_NULL) == events == block.count(_REASON_KEY)
        and block.startswith(b"data: {")
        and block.endswith(b"}\n\n")
        and block.count(b"}\n\ndata: {") == events - 1
        and block.count(b"data: {") == events
        and b'"error"' not in block
    )


def refuses(error: Any) -> bool:
    """Whether an error in an answer is the client's own fault: a 4xx, or a code of OpenAI's that says so."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int):
        return code in _CLIENT_ERRORS and code != _TOO_MANY
    return isinstance(code, str) and ("invalid" in code or "image" in code)


def says_nothing(response: dict[str, Any]) -> bool:
    """Whether a completed response has not one token. vLLM 0.32 says so of one that a draining engine aborts;
    a whole one has at least the token that ends it.
    """
    usage = response.get("usage")
    return (
        response.get("status") == "completed" and isinstance(usage, dict) and usage.get("output_tokens") == 0
    )


def _parsed(data: bytes) -> Any:
    """The data of an event as JSON, `DONE` for `[DONE]`, None when it is neither."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return DONE if data.strip() == DONE else None


def _rows(block: bytes) -> list[Any]:
    """The data of a block that `is_plain`, parsed in one go; empty unless each event is a whole value."""
    try:
        rows = orjson.loads(b"[%b]" % block[6:-2].replace(b"\n\ndata: ", b","))
    except orjson.JSONDecodeError:
        return []
    return rows if len(rows) == block.count(b"\n\n") else []


def _last_event(tail: bytes) -> bytes | None:
    """What came after the last blank line as an event: empty for a comment, None when it is a half.

    A line feed on its own is the end of a CR LF whose CR ended an event.
    """
    if not tail.strip(b"\r\n"):
        return tail
    if tail.startswith(b":") and all(line.startswith(b":") for line in tail.splitlines()):
        return b""
    whole = tail + b"\n\n"
    return None if _parsed(event_data(whole)) is None else whole


def _index(choice: dict[str, Any]) -> int:
    index = choice.get("index", 0)
    return index if isinstance(index, int) else 0


def _carries(choice: dict[str, Any]) -> bool:
    """Whether a chunk's choice brings anything a reader sees: any filled field of its delta but the role."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text"))
    return bool(delta.get("content")) or any(value for key, value in delta.items() if key != "role")
