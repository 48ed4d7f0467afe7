"""Providers that speak Anthropic's form, `/v1/messages`: https://docs.anthropic.com/en/api/messages.

Chat requests are translated there and back; Anthropic's clients pass as they are. A message is whole with a
`stop_reason`, and with nothing else: servers end broken streams with `message_stop` too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

from cloud.providers import usage as usages
from cloud.providers.anthropic_request import messages_of
from cloud.providers.wire import (
    MISREAD,
    Answer,
    Call,
    Fault,
    Fields,
    Reader,
    Relay,
    Untranslatable,
    bearer,
    error_text,
    loaded,
    read_fault,
    words,
)
from cloud.sse import DONE_EVENT
from policies.spend import Usage

_MESSAGES, _COUNT = "/v1/messages", "/v1/messages/count_tokens"
_BEARER_SINCE = "2026-10-21"
"""The version of the API, a date, from which on keys are Bearer tokens; before it they are in `x-api-key`."""
_PASSED = ("anthropic-beta",)
"""The client's headers that say what its request means."""
_FINISH = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Of a `stop_reason`; every other is an end that the model meant, "stop"."""
_FREE = Usage(fresh=0, cached=0, cache_write=0, output=0)
_NAMES = {"text": b'"content":', "thinking": b'"reasoning_content":'}
_TAIL = b'},"finish_reason":null}]}\n\n'


class Anthropic:
    """A provider at `url`, with `/v1` or without. `sampling`: its models may be told temperature, top_p and
    top_k; newer ones refuse them.
    """

    name = "anthropic"

    def __init__(self, url: str, *, api_version: str, sampling: bool) -> None:
        self._base = urlsplit(url).path.rstrip("/").removesuffix("/v1")
        self._version = api_version
        self._sampling = sampling

    def speaks(self, path: str) -> bool:
        """See Wire."""
        return path in (_MESSAGES, _COUNT)

    def request(
        self, inner: Fields, *, model: str, key: str, stream: bool, most_output: int = 0, created: int
    ) -> Call:
        """See Wire."""
        fields, dropped = messages_of(
            inner, model=model, stream=stream, sampling=self._sampling, most_output=most_output
        )
        options = inner.get("stream_options")
        asked = isinstance(options, dict) and bool(options.get("include_usage"))
        reader = ChatReader(model=model, created=created, usage_asked=asked)
        return self._call(_MESSAGES, fields, key, reader, dropped, {})

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
        """See Wire. Streams tell their usage unasked."""
        del stream
        if not self.speaks(path):
            raise Untranslatable("path", f"{path} is not asked of a provider")
        if (fields := loaded(raw)) is None:
            raise Untranslatable("body", "is no JSON object")
        low = {name.lower(): value for name, value in headers.items()}
        passed = {name: low[name] for name in _PASSED if name in low}
        reader = CountReader() if path == _COUNT else MessagesReader()
        return self._call(path, {**fields, "model": model}, key, reader, (), passed)

    def models(self, key: str, model: str = "") -> tuple[str, Mapping[str, str]]:
        """See Wire."""
        path = f"/v1/models/{quote(model, safe='')}" if model else "/v1/models?limit=1000"
        return self._base + path, self._shown(key)

    def _shown(self, key: str) -> dict[str, str]:
        """The headers that say who asks, in which version."""
        shown = bearer(key) if self._version >= _BEARER_SINCE or not key else {"x-api-key": key}
        return {"anthropic-version": self._version, **shown}

    def _call(
        self,
        path: str,
        fields: Fields,
        key: str,
        reader: Reader,
        dropped: tuple[str, ...],
        headers: Mapping[str, str],
    ) -> Call:
        return Call(
            path=self._base + path,
            headers={"Content-Type": "application/json", **self._shown(key), **headers},
            fields=fields,
            reader=reader,
            dropped=dropped,
        )


class _Faults:
    def fault(self, status: int, headers: Mapping[str, str], body: bytes, now: float) -> Fault:
        """See Reader."""
        return read_fault(status, headers, body, now)


class MessagesReader(_Faults):
    """Reads messages for a client of Anthropic's: their bytes stay as they are."""

    def answer(self, body: bytes) -> Answer:
        """See Reader."""
        message, error = _message(body)
        return Answer(body, usages.of_anthropic(message.get("usage")), error)

    def relay(self) -> Relay:
        """See Reader."""
        return MessagesRelay()


class CountReader(MessagesReader):
    """Reads counts of tokens, which cost nothing and never stream."""

    def answer(self, body: bytes) -> Answer:
        """See Reader."""
        told = (loaded(body) or {}).get("input_tokens")
        return Answer(body, _FREE, "" if isinstance(told, int) else f"no count is in it: {words(body)}")


@dataclass(frozen=True, slots=True)
class ChatReader(_Faults):
    """Reads messages as chat answers. `model` and `created` (seconds since the epoch) stand in these where
    the message lacks them; `usage_asked`: the client wants the chunk that tells the usage.
    """

    model: str
    created: int
    usage_asked: bool

    def answer(self, body: bytes) -> Answer:
        """See Reader. What cannot be read stays as it is, with the reason."""
        message, error = _message(body)
        usage = usages.of_anthropic(message.get("usage"))
        if error:
            return Answer(body, usage, error)
        try:
            return Answer(orjson.dumps(self._chat(message, usage)), usage)
        except MISREAD:
            return Answer(body, usage, f"the message cannot be read: {words(body)}")

    def relay(self) -> Relay:
        """See Reader."""
        return ChatRelay(self.model, self.created, usage_asked=self.usage_asked)

    def _chat(self, message: Fields, usage: Usage | None) -> Fields:
        said = {"text": "", "thinking": ""}
        calls = []
        for block in message["content"]:
            if (kind := block["type"]) in said:
                said[kind] += block[kind]
            elif kind == "tool_use":
                function = {"name": block["name"], "arguments": orjson.dumps(block["input"]).decode()}
                calls.append({"id": block["id"], "type": "function", "function": function})
        answer: Fields = {"role": "assistant", "content": said["text"] if said["text"] or not calls else None}
        if said["thinking"]:
            answer["reasoning_content"] = said["thinking"]
        if calls:
            answer["tool_calls"] = calls
        choice = {"index": 0, "message": answer, "logprobs": None, **_ending(message)}
        return {
            "id": _chat_id(message),
            "object": "chat.completion",
            "created": self.created,
            "model": message.get("model") or self.model,
            "choices": [choice],
            "usage": None if usage is None else usages.as_openai(usage),
        }


class _Messages(Relay):
    """What every stream of a message tells: its usage, and how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self._told: Fields = {}
        self._counted = False  # a message_delta has told the tokens of the answer
        self._end: Fields = {}

    def _note(self, fields: Fields) -> None:
        """Take in one event. A `message_delta` overrides only the counts that it carries."""
        kind = fields.get("type")
        if kind == "message_start":
            self._told = dict(fields["message"].get("usage") or {})
        elif kind == "message_delta":
            told = fields.get("usage") or {}
            self._told.update({name: value for name, value in told.items() if value is not None})
            self._counted = self._counted or "output_tokens" in told
            if isinstance(fields["delta"].get("stop_reason"), str):
                self._end = fields["delta"]
                self.begun = self.whole = True
            self.usage = usages.of_anthropic(self._told) if self._counted else None
        elif kind == "error" or "error" in fields:
            self._fail(error_text(fields.get("error")))

    def _stopped(self) -> None:
        """`message_stop`: it proves nothing by itself."""
        if not self.whole:
            self._fail("the message stopped without a stop_reason")
        self._closed = True


class MessagesRelay(_Messages):
    """The stream of a message for a client of Anthropic's: its bytes stay as they are."""

    def _read(self, event: bytes, fields: Fields) -> bytes:
        self._note(fields)
        kind = fields.get("type")
        if kind == "content_block_delta" or _opens_call(fields):
            self.begun = True
        if kind == "message_stop":
            self._stopped()
        return b"" if self.error else event


class ChatRelay(_Messages):
    """The stream of a message as chat chunks.

    Some servers leave out `message_start`: the chunk with the role comes before whatever is first.
    """

    def __init__(self, model: str, created: int, *, usage_asked: bool) -> None:
        super().__init__()
        self._model, self._created, self._usage_asked = model, created, usage_asked
        self._id = ""
        self._head = b""  # how every chunk begins, up to its delta; empty before the first
        self._calls: dict[Any, int] = {}  # of the blocks that are tool calls: their places among the calls
        self._filled: set[int] = set()  # those of the calls that have got arguments

    def _read(self, event: bytes, fields: Fields) -> bytes:  # noqa: ARG002 - each is made anew
        kind = fields.get("type")
        if kind == "content_block_delta":
            return self._delta(fields)
        self._note(fields)
        if kind == "message_start":
            return self._begin(fields["message"])
        if kind == "content_block_start":
            return self._start(fields)
        if kind == "content_block_stop":
            return self._stop(fields)
        if kind == "message_stop":
            self._stopped()
            return b"" if self.error else self._finished()
        return b""

    def _blank(self, event: bytes) -> bytes:  # noqa: ARG002 - comments are the provider's, not the client's
        return b""

    def _done(self, event: bytes) -> bytes:  # noqa: ARG002 - no part of this form
        return b""

    def _begin(self, message: Fields) -> bytes:
        """The first chunk, which tells the role."""
        if self._head:
            return b""
        chunk = self._chunk(message, [{"index": 0, "delta": {}}])
        self._head = b"data: " + orjson.dumps(chunk).removesuffix(b"}}]}")
        return self._say(b'"role":"assistant","content":""')

    def _chunk(self, message: Fields, choices: list[Fields]) -> Fields:
        self._id = _chat_id(message)
        self._model = message.get("model") or self._model
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _say(self, delta: bytes) -> bytes:
        """A chunk of this delta, given as JSON without its braces."""
        return (b"" if self._head else self._begin({})) + self._head + delta + _TAIL

    def _delta(self, fields: Fields) -> bytes:
        delta = fields["delta"]
        kind = delta["type"]
        if kind == "text_delta":
            return self._text(_NAMES["text"], delta["text"])
        if kind == "thinking_delta":
            return self._text(_NAMES["thinking"], delta["thinking"])
        call = self._calls.get(fields["index"])
        if kind == "input_json_delta" and call is not None and (piece := delta["partial_json"]):
            self._filled.add(call)
            return self._arguments(call, piece)
        return b""

    def _text(self, name: bytes, text: str) -> bytes:
        if not text:
            return b""
        self.begun = True
        return self._say(name + _json(text))

    def _arguments(self, call: int, piece: str) -> bytes:
        delta = b'"tool_calls":[{"index":%d,"function":{"arguments":%s}}]'
        return self._say(delta % (call, _json(piece)))

    def _start(self, fields: Fields) -> bytes:
        block = fields["content_block"]
        if not _opens_call(fields):
            kind = block["type"]
            return self._text(_NAMES[kind], block[kind]) if kind in _NAMES else b""
        self.begun = True
        call = self._calls[fields["index"]] = len(self._calls)
        function = {"name": block["name"], "arguments": ""}
        opened = [{"index": call, "id": block["id"], "type": "function", "function": function}]
        return self._say(b'"tool_calls":' + orjson.dumps(opened))

    def _stop(self, fields: Fields) -> bytes:
        """A call that takes nothing has no delta: its arguments are an empty object, as in a plain answer."""
        call = self._calls.get(fields["index"])
        return b"" if call is None or call in self._filled else self._arguments(call, "{}")

    def _finished(self) -> bytes:
        """The finish, the usage where it was asked for, and `[DONE]`."""
        out = b"" if self._head else self._begin({})
        message = {"id": self._id, "model": self._model}
        last = self._chunk(message, [{"index": 0, "delta": {}, **_ending(self._end)}])
        out += b"data: " + orjson.dumps(last) + b"\n\n"
        if self._usage_asked and self.usage is not None:
            told = {**self._chunk(message, []), "usage": usages.as_openai(self.usage)}
            out += b"data: " + orjson.dumps(told) + b"\n\n"
        return out + DONE_EVENT


def _message(body: bytes) -> tuple[Fields, str]:
    """A plain answer, with what it lacks to be a whole message."""
    message = loaded(body)
    if message is None:
        return {}, f"the answer is no JSON object: {words(body)}"
    if message.get("type") == "error" or message.get("error"):
        return message, error_text(message.get("error"))
    if not isinstance(message.get("content"), list):
        return message, f"the answer is no message: {words(body)}"
    return message, "" if message.get("stop_reason") else "the message has no stop_reason"


def _opens_call(fields: Fields) -> bool:
    return fields.get("type") == "content_block_start" and fields["content_block"].get("type") == "tool_use"


def _json(text: str) -> bytes:
    """A string as JSON. Raises TypeError for anything else."""
    if not isinstance(text, str):
        raise TypeError
    return orjson.dumps(text)


def _chat_id(message: Fields) -> str:
    """The id of the chat answer that a message becomes; messages of ours carry it back."""
    return "chatcmpl-" + str(message.get("id") or "unnamed").removeprefix("chatcmpl-").removeprefix("msg_")


def _ending(message: Fields) -> Fields:
    """`finish_reason`, and what matched of the client's stop strings in `stop_reason`, as vLLM tells it."""
    ending: Fields = {"finish_reason": _FINISH.get(message["stop_reason"], "stop")}
    if isinstance(matched := message.get("stop_sequence"), str):
        ending["stop_reason"] = matched
    return ending
