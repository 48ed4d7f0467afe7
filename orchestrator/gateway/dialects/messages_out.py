"""OpenAI chat answers as Anthropic messages: plain ones, and streams event by event.

Only `closing` writes `message_delta` and `message_stop`, and it is called after a whole stream alone: a
broken one ends with an `error` event, on which Anthropic's clients raise.

Wire format: https://docs.anthropic.com/en/api/messages-streaming, the types of the `anthropic` SDK 2.14.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from cloud.sse import event_data, split_events
from orchestrator.gateway.dialects.errors import anthropic_error
from orchestrator.gateway.dialects.messages_blocks import Blocks, Unordered, event, is_whole, tool_input
from orchestrator.gateway.failure import Failure

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

Fields = dict[str, Any]

_WORDS = 500  # bytes of an engine's own words that are passed on
_INTERNAL_ERROR = 500  # the status whose error type a broken stream gets
MISREAD = (
    AttributeError,
    KeyError,
    IndexError,
    TypeError,
)  # what reading an answer of another shape than chat's raises
_REASONS = {"length": "max_tokens", "content_filter": "refusal"}  # of a finish_reason, whatever was said


class _AnthropicErrors:
    """How engines' errors and broken streams reach Anthropic's clients."""

    def interrupted(self, *, request_id: str, failure: Failure, detail: str, tokens: int | None) -> bytes:
        """See Edge. https://docs.anthropic.com/en/api/messages-streaming#error-events"""
        told = "" if tokens is None else f" after {tokens} tokens"
        message = f"the stream broke off{told} and the answer is not complete ({failure}: {detail})"
        return _error_event(anthropic_error(_INTERNAL_ERROR, "stream_interrupted", message, request_id))

    def failed(self, status: int, body: bytes, request_id: str) -> bytes:
        """See Edge."""
        return anthropic_error(status, "", _words(body), request_id)


class MessagesEdge(_AnthropicErrors):
    """Edge of `/v1/messages`: chat chunks in, message events out; a chat completion in, a message out."""

    def __init__(self, asked: Asked) -> None:
        stop = (asked.inner or {}).get("stop") or []
        self._stops = frozenset([stop] if isinstance(stop, str) else stop)
        self._blocks: Blocks | None = None  # None before the first chunk
        self._finish = ""
        self._matched: Any = None  # what ended the text: a stop string, the id of a stop token, nothing
        self._usage: Any = None
        self._failed = False

    def feed(self, block: bytes) -> bytes:
        """See Edge. Comments pass; an error of the engine ends the message."""
        return b"".join(self._translated(each) for each in split_events(block))

    def closing(self) -> bytes:
        """See Edge. Nothing after an error, which was the end."""
        if self._failed or self._blocks is None:
            return b""
        out = self._blocks.finish()
        reason, sequence = _stop(self._finish, self._matched, self._stops, self._blocks.calls_whole)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return out + event("message_delta", delta=delta, usage=_usage(self._usage)) + event("message_stop")

    def answer(self, body: bytes) -> bytes:
        """See Edge."""
        return orjson.dumps(self.message(orjson.loads(body)))

    def message(self, chat: Fields) -> Fields:
        """The message that a chat completion stands for. Raises one of MISREAD where it is none."""
        choice = chat["choices"][0]
        said = choice["message"]
        content: list[Fields] = []
        if thinking := _reasoning(said):
            content.append({"type": "thinking", "thinking": thinking, "signature": _message_id(chat)})
        if text := _text(said):
            content.append({"type": "text", "text": text})
        whole: bool | None = None
        for call in said.get("tool_calls") or []:
            function = call["function"]
            arguments = function.get("arguments") or ""
            whole = whole is not False and is_whole(arguments)
            use = {"id": call["id"], "name": function["name"], "input": tool_input(arguments)}
            content.append({"type": "tool_use", **use})
        reason, sequence = _stop(choice["finish_reason"], choice.get("stop_reason"), self._stops, whole)
        return {
            **_message(chat),
            "content": content or [{"type": "text", "text": ""}],
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(chat.get("usage")),
        }

    def _translated(self, raw: bytes) -> bytes:
        """The message events of one chat event."""
        data = event_data(raw)
        if not data:
            return raw
        if self._failed or (chunk := _loaded(data)) is None:
            return b""
        if error := chunk.get("error"):
            return self._fail(_status(error), "", _words(data))
        try:
            return self._read(chunk)
        except (Unordered, *MISREAD):
            return self._fail(_INTERNAL_ERROR, "bad_response", "the engine's stream cannot be read as chat")

    def _read(self, chunk: Fields) -> bytes:
        """The message events of one chunk. Raises Unordered or one of MISREAD."""
        self._usage = chunk.get("usage") or self._usage
        out = b"" if self._blocks else self._begin(chunk)
        return out + b"".join(self._said(choice) for choice in chunk.get("choices") or [])

    def _begin(self, chunk: Fields) -> bytes:
        self._blocks = Blocks(_message_id(chunk))
        message = {
            **_message(chunk),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(self._usage),
        }
        return event("message_start", message=message) + event("ping")

    def _said(self, choice: Fields) -> bytes:
        """The events of what a chunk brings: reasoning, text, tool calls, in this order."""
        assert self._blocks is not None  # noqa: S101 - begun by this very chunk
        if finish := choice.get("finish_reason"):
            self._finish, self._matched = str(finish), choice.get("stop_reason")
        said = choice.get("delta") or {}
        out = b""
        if thinking := _reasoning(said):
            out += self._blocks.thinking(thinking)
        if text := _text(said):
            out += self._blocks.text(text)
        for call in said.get("tool_calls") or []:
            function = call.get("function") or {}
            arguments = function.get("arguments") or ""
            name = function.get("name") or ""
            out += self._blocks.call(call.get("index") or 0, call.get("id") or "", name, arguments)
        return out

    def _fail(self, status: int, code: str, message: str) -> bytes:
        self._failed = True
        return _error_event(anthropic_error(status, code, message, ""))


class CountEdge(_AnthropicErrors):
    """Edge of `/v1/messages/count_tokens`, which never streams."""

    def feed(self, block: bytes) -> bytes:
        """See Edge."""
        return block

    def closing(self) -> bytes:
        """See Edge."""
        return b""

    def answer(self, body: bytes) -> bytes:
        """See Edge. `/tokenize` answers `{"count": N, "tokens": [...]}`."""
        return orjson.dumps({"input_tokens": orjson.loads(body)["count"]})


def _message(chat: Fields) -> Fields:
    """What a message has in common with the chat answer or chunk that it is made of."""
    model = chat.get("model") or ""
    return {"id": _message_id(chat), "type": "message", "role": "assistant", "model": model}


def _message_id(chat: Fields) -> str:
    return "msg_" + str(chat.get("id") or "").removeprefix("chatcmpl-")


def _stop(
    finish: str, matched: Any, stops: frozenset[str], calls_whole: bool | None
) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`.

    `matched` is vLLM's `stop_reason`. A stop string counts before a call that it cut short and that must not
    be run (`calls_whole` False); chat ends a forced call with "stop".
    """
    if finish in _REASONS:
        return _REASONS[finish], None
    if not calls_whole and isinstance(matched, str) and matched in stops:
        return "stop_sequence", matched
    return ("end_turn" if calls_whole is None else "tool_use"), None


def _usage(usage: Any) -> Fields:
    """Tokens. Anthropic's `input_tokens` are those neither read from the prefix cache nor written to it; what
    the engine does not report of the cache is left out.
    """
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    told = {
        "cache_read_input_tokens": details.get("cached_tokens"),
        "cache_creation_input_tokens": details.get("created_cache_tokens"),
    }
    cached = {name: count for name, count in told.items() if isinstance(count, int)}
    prompt = _count(usage.get("prompt_tokens")) - sum(cached.values())
    return {"input_tokens": max(0, prompt), "output_tokens": _count(usage.get("completion_tokens")), **cached}


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _reasoning(said: Fields) -> str:
    """Reasoning, under vLLM's name for it or that of others."""
    return said.get("reasoning") or said.get("reasoning_content") or ""


def _text(said: Fields) -> str:
    return said.get("content") or said.get("refusal") or ""


def _error_event(body: bytes) -> bytes:
    return b"event: error\ndata: %s\n\n" % body


def _status(error: Any) -> int:
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else _INTERNAL_ERROR


def _words(body: bytes) -> str:
    """An engine's message, in whatever shape it came."""
    found: Any = _loaded(body) or {}
    found = found.get("error", found)
    if isinstance(found, dict):
        found = found.get("message") or found.get("detail")
    if not isinstance(found, str):
        found = body[:_WORDS].decode("utf-8", "replace").strip()
    return found or "the engine gave no reason"


def _loaded(data: bytes) -> Fields | None:
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
