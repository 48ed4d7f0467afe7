"""Judges a stream while it passes: what may go to the client, when it counts as begun, when as whole.

vLLM ends broken streams cleanly, with an error event or with finish_reason "abort", and then `[DONE]`; so
only a finish_reason for every choice proves an answer whole.
"""

from __future__ import annotations

from orchestrator.gateway.failure import Failure
from orchestrator.gateway.sse import (
    Kind,
    Splitter,
    classify,
    completion_tokens,
    count_chunks,
    event_data,
    finished_choices,
    is_plain,
    split_events,
)

_HOLD_LIMIT = 4 * 1024 * 1024  # bytes before the first text, such as prompt token ids, that are still held
_DETAIL = 200  # characters of the engine's own words that are kept
_DONE_EVENT = b"data: [DONE]\n\n"


class StreamJudge:
    """Feed it the bytes of a stream, pass on what it returns, stop once it has a failure.

    This one serves streams whose end the gateway does not know how to prove: they have begun with their
    first event and are whole when they end without an error of the connection. `chunks` counts the choices
    that passed, which is the number of tokens where each token has its own chunk.
    """

    def __init__(self) -> None:
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
        """The stream ended without an error of the connection: what may still go to the client."""
        self.whole = True
        return self._splitter.tail

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
        return len(self._splitter.tail)


class CompletionJudge(StreamJudge):
    """For `/v1/completions` and `/v1/chat/completions` with this many choices.

    Events before the first that carries text or a normal end are held back: up to there the request can go
    to another target. An error event, an abort, `[DONE]` without all finish_reasons, and the end of the
    stream without them are failures, and are never passed on.
    """

    def __init__(self, choices: int) -> None:
        super().__init__()
        self._unfinished = choices
        self._held = b""
        self._last = b""
        self._done = False

    def feed(self, data: bytes) -> bytes:
        """See StreamJudge."""
        block = self._splitter.feed(data)
        if not block:
            return b""
        if self.begun and is_plain(block):
            self.chunks += count_chunks(block)
            self._last = block
            return block
        return self._examine(block)

    def end(self) -> bytes:
        """See StreamJudge. A last event without its blank line counts."""
        tail = self._splitter.tail
        block = self._examine(tail + b"\n\n") if tail.strip() else b""
        if not self.whole:
            self.fail(Failure.INCOMPLETE, "the stream ended without a finish_reason")
        return block

    def closing(self) -> bytes:
        """`[DONE]` where the connection broke between the last finish_reason and it."""
        return b"" if self._done else _DONE_EVENT

    def tokens(self) -> int | None:
        """See StreamJudge."""
        events = split_events(self._last)
        return completion_tokens(events[-1]) if events else None

    def _examine(self, block: bytes) -> bytes:
        """Judge every event of a block; what goes to the client ends before the first bad one."""
        good: list[bytes] = []
        for event in split_events(block):
            kind = classify(event)
            if self.whole and kind in (Kind.ERROR, Kind.ABORT):
                continue  # the answer is complete; what broke after it is not the client's concern
            if kind is Kind.ERROR:
                self.fail(Failure.ENGINE_ERROR, _words(event))
            elif kind is Kind.ABORT:
                self.fail(Failure.ABORTED, "the engine aborted the request")
            elif kind is Kind.DONE and not self.whole:
                self.fail(Failure.INCOMPLETE, "[DONE] came without a finish_reason")
            if self.failure() is not None:
                break
            good.append(event)
            self._note(kind, event)
        forward = b"".join(good)
        self.chunks += count_chunks(forward)
        self._last = forward or self._last
        if self._held:
            forward, self._held = self._held + forward, b""
        if not self.begun and len(forward) <= _HOLD_LIMIT:
            self._held = forward
            return b""
        self.begun = True
        return forward

    def _note(self, kind: Kind, event: bytes) -> None:
        """What a good event proves."""
        if kind is Kind.FINISH:
            self._unfinished -= finished_choices(event)
            self.whole = self._unfinished <= 0
        elif kind is Kind.REFUSAL:
            self.whole = True
        elif kind is Kind.DONE:
            self._done = True
        self.begun = self.begun or kind in (Kind.CONTENT, Kind.FINISH, Kind.REFUSAL)


def _words(event: bytes) -> str:
    """The engine's message, shortened."""
    return event_data(event).decode("utf-8", "replace")[:_DETAIL]
