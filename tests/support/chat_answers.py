"""Chat answers as vLLM gives them, plain and streamed, made from what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class ChatAnswer:
    """What an engine says: reasoning, text, calls of tools as (name, arguments), and how it ends."""

    text: str = ""
    reasoning: str = ""
    calls: Sequence[tuple[str, str]] = ()
    finish: str = "stop"
    matched: str | int | None = None
    prompt: int = 11
    completion: int = 7
    cached: int | None = None

    def plain(self) -> bytes:
        """The body of a plain answer."""
        calls = [
            {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for at, (name, arguments) in enumerate(self.calls)
        ]
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        message |= {"tool_calls": calls} if calls else {}
        message |= {"reasoning": self.reasoning} if self.reasoning else {}
        choice = {"index": 0, "message": message, "finish_reason": self.finish, "stop_reason": self.matched}
        return json.dumps(
            {**self._head("chat.completion"), "choices": [choice], "usage": self.usage()}
        ).encode()

    def events(self, sizes: Sequence[int] = (3,)) -> list[bytes]:
        """The events of its stream, up to `[DONE]`. `sizes`: characters of the pieces, in turn."""
        size = _cycle(sizes)
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning": piece} for piece in _pieces(self.reasoning, size)]
        deltas += [{"content": piece} for piece in _pieces(self.text, size)]
        for at, (name, arguments) in enumerate(self.calls):
            deltas.append(self.call_delta(at, name))
            deltas += [
                {"tool_calls": [{"index": at, "function": {"arguments": piece}}]}
                for piece in _pieces(arguments, size)
            ]
        return self.stream(deltas)

    def stream(self, deltas: Sequence[dict[str, Any]]) -> list[bytes]:
        """The events of a stream of these deltas, up to `[DONE]`."""
        events = [self._chunk(delta, made=at) for at, delta in enumerate(deltas)]
        events.append(self._chunk({}, made=self.completion, finish=self.finish, matched=self.matched))
        head = self._head("chat.completion.chunk")
        return [*events, _event({**head, "choices": [], "usage": self.usage()}), DONE]

    def usage(self) -> dict[str, Any]:
        """Tokens, as vLLM tells them."""
        total = self.prompt + self.completion
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": total,
        }
        return (
            usage
            if self.cached is None
            else usage | {"prompt_tokens_details": {"cached_tokens": self.cached}}
        )

    @staticmethod
    def call_delta(index: int, name: str, arguments: str = "") -> dict[str, Any]:
        """The first piece of a call."""
        function = {"name": name, "arguments": arguments}
        return {
            "tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]
        }

    def _chunk(
        self, delta: dict[str, Any], *, made: int, finish: str | None = None, matched: str | int | None = None
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        choice |= {"stop_reason": matched} if finish else {}
        usage = {"prompt_tokens": self.prompt, "completion_tokens": made, "total_tokens": self.prompt + made}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice], "usage": usage})

    @staticmethod
    def _head(kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-a1", "object": kind, "created": 1764000000, "model": "tiny"}


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def _cycle(sizes: Sequence[int]) -> Iterator[int]:
    while True:
        yield from sizes


def _pieces(text: str, size: Iterator[int]) -> Iterator[str]:
    at = 0
    while at < len(text):
        step = next(size)
        yield text[at : at + step]
        at += step
