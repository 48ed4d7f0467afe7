"""Providers that speak OpenAI's form: https://platform.openai.com/docs/api-reference, and what is compatible.

OpenAI's clients pass as they are. What the gateway made of another client's request (vLLM's chat form) loses
the fields that only vLLM reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from cloud.providers import usage as usages
from cloud.providers.wire import (
    MISREAD,
    Answer,
    Call,
    Fault,
    Fields,
    Relay,
    Untranslatable,
    bearer,
    error_text,
    loaded,
    read_fault,
    words,
)
from cloud.sse import DONE_EVENT

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_RESPONSES, _EMBEDDINGS = "/v1/responses", "/v1/embeddings"
_PATHS = frozenset({_CHAT, _COMPLETIONS, _RESPONSES, _EMBEDDINGS})
_OWN_HOSTS = (".openai.com", ".openai.azure.com")
_STOPPED = ("stop", "length", "tool_calls", "content_filter", "function_call")
_LAST = {"response.completed", "response.incomplete"}
_BROKEN = {"response.failed", "response.cancelled", "error"}
_TEMPLATE = frozenset({"enable_thinking", "thinking"})


class OpenAi:
    """A provider at `url`: that of its host (`/v1` follows), or with the base path as OpenAI's clients take
    it (`https://api.groq.com/openai/v1`).
    """

    name = "openai"

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._base = parts.path.rstrip("/") or "/v1"
        # OpenAI's own newer models refuse `max_tokens`; not every compatible API knows another name for it.
        own = f".{parts.hostname}".endswith(_OWN_HOSTS)
        self._limit = "max_completion_tokens" if own else "max_tokens"

    def speaks(self, path: str) -> bool:
        """See Wire."""
        return path in _PATHS

    def request(
        self, inner: Fields, *, model: str, key: str, stream: bool, most_output: int = 0, created: int
    ) -> Call:
        """See Wire. Answers carry a time of their own, and a limit is nothing that the API asks for."""
        del created, most_output
        fields, dropped = self._plain_chat(inner)
        fields["stream"] = stream
        if not stream:
            fields.pop("stream_options", None)
        return self._call(fields, model, key, stream, _CHAT, dropped)

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
        """See Wire. None of the client's headers is the provider's business."""
        del headers
        if path not in _PATHS:
            raise Untranslatable("path", f"{path} is not asked of a provider")
        if (fields := loaded(raw)) is None:
            raise Untranslatable("body", "is no JSON object")
        return self._call(fields, model, key, stream, path, ())

    def models(self, key: str, model: str = "") -> tuple[str, Mapping[str, str]]:
        """See Wire."""
        return f"{self._base}/models" + (f"/{quote(model, safe='')}" if model else ""), bearer(key)

    def _plain_chat(self, inner: Fields) -> tuple[Fields, tuple[str, ...]]:
        """Chat without what the gateway adds for vLLM alone; what the client named itself stays."""
        fields, dropped = dict(inner), []
        if fields.pop("continue_final_message", None):
            raise Untranslatable("messages", "an answer whose beginning is given (prefill)")
        fields.pop("add_generation_prompt", None)
        if (kwargs := fields.pop("chat_template_kwargs", None)) is not None:
            if not isinstance(kwargs, dict) or kwargs.keys() - _TEMPLATE:
                raise Untranslatable("chat_template_kwargs", "only vLLM has chat templates to fill")
            dropped.append("thinking")
        if fields.pop("thinking_token_budget", None) is not None and "thinking" not in dropped:
            dropped.append("thinking")
        if "max_tokens" in fields and fields.get("max_completion_tokens") is None:
            fields[self._limit] = fields.pop("max_tokens")
        messages = fields.get("messages")
        if isinstance(messages, list):
            fields["messages"] = [_without_reasoning(message) for message in messages]
        return fields, tuple(dropped)

    def _call(
        self,
        fields: Fields,
        model: str,
        key: str,
        stream: bool,
        path: str,
        dropped: tuple[str, ...],
    ) -> Call:
        asked = _asks_usage(fields)
        fields = {**fields, "model": model}
        if stream and path in (_CHAT, _COMPLETIONS):
            options = fields.get("stream_options")
            options = dict(options) if isinstance(options, dict) else {}
            options.pop("continuous_usage_stats", None)
            fields["stream_options"] = {**options, "include_usage": True}
        return Call(
            path=self._base + path.removeprefix("/v1"),
            headers={"Content-Type": "application/json", **bearer(key)},
            fields=fields,
            reader=OpenAiReader(path=path, choices=_choices(path, fields), usage_asked=asked),
            dropped=dropped,
        )


@dataclass(frozen=True, slots=True)
class OpenAiReader:
    """See Reader. `choices`: how many answers, or vectors, the request asks for; `usage_asked`: the client
    wants the event that tells the usage.
    """

    path: str
    choices: int
    usage_asked: bool

    def answer(self, body: bytes) -> Answer:
        """See Reader. The body stays as it is."""
        if (fields := loaded(body)) is None:
            return Answer(body, None, f"the answer is no JSON object: {words(body)}")
        usage = usages.of_openai(fields.get("usage"))
        try:
            return Answer(body, usage, self._lack(fields))
        except MISREAD:
            return Answer(body, usage, f"the answer cannot be read: {words(body)}")

    def relay(self) -> Relay:
        """See Reader."""
        if self.path == _RESPONSES:
            return ResponsesRelay()
        return ChoicesRelay(self.choices, usage_asked=self.usage_asked)

    def fault(self, status: int, headers: Mapping[str, str], body: bytes, now: float) -> Fault:
        """See Reader."""
        return read_fault(status, headers, body, now)

    def _lack(self, fields: Fields) -> str:
        """What a plain answer lacks, empty where it is whole."""
        if self.path == _RESPONSES:
            status = fields.get("status")
            good = status in ("completed", "incomplete")
            return "" if good else f"{status}: {error_text(fields.get('error') or 'no reason given')}"
        if error := fields.get("error"):
            return error_text(error)
        if self.path == _EMBEDDINGS:
            vectors = [row["embedding"] for row in fields["data"] if row["embedding"]]
            return (
                "" if len(vectors) >= self.choices else f"{len(vectors)} of {self.choices} vectors are in it"
            )
        reasons = [choice.get("finish_reason") for choice in fields["choices"]]
        if strange := [reason for reason in reasons if reason and reason not in _STOPPED]:
            return f"ended by the provider: {strange[0]}"
        return "" if len(reasons) >= self.choices and all(reasons) else "not every choice has ended"


class ChoicesRelay(Relay):
    """A stream of chat or of completions: whole when every choice has a finish_reason.

    The usage comes in an event without choices, which a client that did not ask for it does not get.
    """

    def __init__(self, choices: int, *, usage_asked: bool) -> None:
        super().__init__()
        self._open = choices
        self._ended: set[int] = set()
        self._usage_asked = usage_asked

    def _read(self, event: bytes, fields: Fields) -> bytes:
        if error := fields.get("error"):
            self._fail(error_text(error))
            return b""
        choices = fields.get("choices") or []
        if told := fields.get("usage"):
            self.usage = usages.of_openai(told) or self.usage
            if not choices and not self._usage_asked:
                return b""
        for choice in choices:
            if reason := choice.get("finish_reason"):
                if reason not in _STOPPED:
                    self._fail(f"ended by the provider: {reason}")
                    return b""
                self._ended.add(choice.get("index") or 0)
                self.whole = len(self._ended) >= self._open
                self.begun = True
            elif not self.begun:
                self.begun = _says(choice)
        return event

    def _finished(self) -> bytes:
        return DONE_EVENT


class ResponsesRelay(Relay):
    """A stream of a response: whole with an event that ends it, which carries all of it and its usage.

    https://platform.openai.com/docs/api-reference/responses-streaming
    """

    def _read(self, event: bytes, fields: Fields) -> bytes:
        kind = fields["type"]
        if kind in _BROKEN:
            inner = fields.get("response") or {}
            self._fail(error_text(inner.get("error") or fields.get("error") or fields))
            return b""
        self.begun = self.begun or ".delta" in kind
        if kind in _LAST:
            self.usage = usages.of_openai(fields["response"].get("usage"))
            self.begun = self.whole = True
        return event


def _says(choice: Fields) -> bool:
    """Whether a choice of a chunk carries something for a reader."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("text"))
    return any(value for name, value in delta.items() if name != "role")


def _asks_usage(fields: Fields) -> bool:
    options = fields.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def _without_reasoning(message: Any) -> Any:
    """A message without the reasoning of an earlier answer, which OpenAI's API has no field for."""
    if isinstance(message, dict) and "reasoning" in message:
        return {name: value for name, value in message.items() if name != "reasoning"}
    return message


def _choices(path: str, fields: Fields) -> int:
    """How many answers are asked for: n for each prompt, a vector for each input."""
    if path == _EMBEDDINGS:
        return _prompts(fields.get("input"))
    answers = fields.get("n")
    answers = answers if isinstance(answers, int) and answers > 0 else 1
    return answers * (_prompts(fields.get("prompt")) if path == _COMPLETIONS else 1)


def _prompts(prompt: Any) -> int:
    """Prompts of a completion, or inputs to embed. A list of token ids is one."""
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
