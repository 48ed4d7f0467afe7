"""The JSON of the simulated engine's answers, in the shapes of vLLM 0.32 (fields in its order)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from cloud.engines.simulated_server.requests import InferenceRequest

DONE = b"data: [DONE]\n\n"
ENGINE_FAILED = "EngineCore encountered an issue. See stack trace (above) for the root cause."
SHUT_DOWN = "cannot schedule new futures after shutdown"
QUEUE_FULL = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)
_FINGERPRINT = "vllm-0.32.0-simulated"


def error_body(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    """An error as vLLM tells it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def engine_error() -> dict[str, Any]:
    """The error that every request gets when the engine dies under it."""
    return error_body(ENGINE_FAILED, "InternalServerError", 500)


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class Answer:
    """Builds the body, or the events, of one request."""

    __slots__ = ("_chat", "_head", "_ids", "_prompt", "_request", "completion_tokens")

    def __init__(self, request: InferenceRequest, request_id: str, model: str, created: int) -> None:
        self._request = request
        self._chat = request.chat
        self._ids = request.return_token_ids
        self._prompt = list(request.prompt) if request.return_token_ids else None
        kind = ("chat.completion" + ".chunk" * request.stream) if request.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if request.chat else 'cmpl'}-{request_id}",
            "object": kind,
            "created": created,
            "model": model,
        }
        self.completion_tokens = 0

    def _usage(self) -> dict[str, Any]:
        prompt = len(self._request.prompt)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def first_events(self) -> bytes:
        """What comes before the first token: the role, in a chat."""
        if not self._chat:
            return b""
        choice = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        prompt, self._prompt = self._prompt, None
        return event({**self._head, "choices": [choice], "prompt_token_ids": prompt, "prompt_text": None})

    def chunk(self, text: str, tokens: Sequence[int], finish: str | None, stop: str | None = None) -> bytes:
        """One event with new text; `finish` on the last."""
        self.completion_tokens += len(tokens)
        ids = list(tokens) if self._ids else None
        choice: dict[str, Any]
        if self._chat:
            choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
            if finish is not None:
                choice["stop_reason"] = stop
        else:
            choice = {
                "index": 0,
                "text": text,
                "logprobs": None,
                "finish_reason": finish,
                "stop_reason": stop,
                "prompt_token_ids": self._prompt,
            }
            self._prompt = None
        choice["token_ids"] = ids
        return event({**self._head, "choices": [choice]})

    def last_events(self) -> bytes:
        """What comes after the last chunk."""
        if not self._request.include_usage:
            return DONE
        usage = {**self._head, "choices": [], "usage": self._usage(), "system_fingerprint": _FINGERPRINT}
        return event(usage) + DONE

    def body(self, text: str, tokens: Sequence[int], finish: str, stop: str | None) -> bytes:
        """The whole answer of a request that does not stream."""
        self.completion_tokens = len(tokens)
        choice: dict[str, Any] = {"index": 0}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": finish, "stop_reason": stop}
        choice["token_ids"] = list(tokens) if self._ids else None
        whole: dict[str, Any] = {**self._head, "choices": [choice], "service_tier": None}
        whole |= {"system_fingerprint": _FINGERPRINT, "usage": self._usage()}
        (whole if self._chat else choice)["prompt_token_ids"] = self._prompt
        return orjson.dumps(whole)
