"""What a client asks of the simulated engine: parsing and checking of request bodies, with vLLM's errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cloud.engines.simulated_server.tokens import VOCABULARY_SIZE, chat_prompt, encode

_COMPLETION_MAX_TOKENS = 16  # vLLM's default for /v1/completions; chat gets the rest of the context


class BadRequest(Exception):
    """A request that is answered with an error body."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, kind: str = "") -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.kind = kind or "BadRequestError"


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceRequest:
    """One checked request for text. `prompt` is token ids, which the client gave himself with `by_ids`;
    `max_tokens` fits into the context.
    """

    chat: bool
    prompt: tuple[int, ...]
    by_ids: bool
    max_tokens: int
    stream: bool
    include_usage: bool
    return_token_ids: bool
    ignore_eos: bool
    seed: int | None
    stops: tuple[str, ...]


def parse(body: bytes, *, chat: bool, model_name: str, max_model_len: int) -> InferenceRequest:
    """Read a body of /v1/completions or, with `chat`, /v1/chat/completions. Raises BadRequest."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"JSON decode error: {error}", param="body", kind="Bad Request") from None
    if not isinstance(data, dict):
        raise BadRequest("the body is not a JSON object", param="body", kind="Bad Request")
    model = data.get("model")
    if model not in (None, model_name):
        message = f"The model `{model}` does not exist. Valid aliases: {model_name}."
        raise BadRequest(message, param="model", status=404, kind="NotFoundError")
    if _whole(data, "n", 1) != 1:
        raise BadRequest("the simulated engine gives one answer per request: n must be 1", param="n")
    prompt, by_ids = (_messages(data), False) if chat else _prompt(data)
    options = data.get("stream_options")
    return InferenceRequest(
        chat=chat,
        prompt=prompt,
        by_ids=by_ids,
        max_tokens=_max_tokens(data, chat, len(prompt), max_model_len),
        stream=bool(data.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        return_token_ids=bool(data.get("return_token_ids")),
        ignore_eos=bool(data.get("ignore_eos")),
        seed=None if data.get("seed") is None else _whole(data, "seed", 0),
        stops=_stops(data),
    )


def _whole(data: Mapping[str, Any], key: str, default: int) -> int:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRequest(f"{key} must be a whole number", param=key)
    return value


def _max_tokens(data: Mapping[str, Any], chat: bool, prompt_length: int, max_model_len: int) -> int:
    left = max_model_len - prompt_length
    if left < 1:
        message = (
            f"This model's maximum context length is {max_model_len} tokens. However, the prompt has "
            f"{prompt_length} tokens and leaves no room for output."
        )
        raise BadRequest(message, param="input_tokens")
    key = "max_completion_tokens" if chat and data.get("max_completion_tokens") is not None else "max_tokens"
    asked = _whole(data, key, left if chat else _COMPLETION_MAX_TOKENS)
    if asked < 1:
        raise BadRequest(f"{key} must be at least 1, got {asked}.", param=key)
    if asked > max_model_len:
        message = f"{key}={asked} cannot be greater than max_model_len={max_model_len}."
        raise BadRequest(f"{message} Please request fewer output tokens.", param=key)
    return min(asked, left)


def _stops(data: Mapping[str, Any]) -> tuple[str, ...]:
    value = data.get("stop") or []
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise BadRequest("stop must be a string or a list of strings", param="stop")
    return tuple(stops)


def _prompt(data: Mapping[str, Any]) -> tuple[tuple[int, ...], bool]:
    """The prompt of a completion, and whether it came as token ids; it may be the only entry of a list."""
    prompt = data.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if not prompt:
        message = "Either prompt or prompt_embeds must be provided and non-empty."
        raise BadRequest(message, param="prompt")
    if isinstance(prompt, str):
        return encode(prompt), False
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        for token in prompt:
            if not 0 <= token < VOCABULARY_SIZE:
                raise BadRequest(f"Token id {token} is out of vocabulary")
        return tuple(prompt), True
    raise BadRequest("prompt must be one text or one list of token ids", param="prompt")


def _messages(data: Mapping[str, Any]) -> tuple[int, ...]:
    messages = data.get("messages")
    if not isinstance(messages, list):
        raise BadRequest("messages: field required", param="body.messages", kind="Bad Request")
    if not messages:
        message = "Cannot apply chat template to an empty conversation. Provide at least one message."
        raise BadRequest(message)
    return chat_prompt([_message(message) for message in messages])


def _message(message: object) -> tuple[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRequest("every message needs a role", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return message["role"], content if isinstance(content, str) else ""
