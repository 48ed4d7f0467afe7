"""The JSON of the simulated engine's answers, in the shapes of vLLM 0.32 (fields in its order)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson

from cloud.engines.simulated_server.outputs import Piece
from cloud.engines.simulated_server.requests import InferenceRequest
from cloud.engines.simulated_server.tokens import decode

DONE = b"data: [DONE]\n\n"
ENGINE_FAILED = "EngineCore encountered an issue. See stack trace (above) for the root cause."
SHUT_DOWN = "cannot schedule new futures after shutdown"
QUEUE_FULL = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)
FINGERPRINT = "vllm-0.32.0-simulated"


def error_body(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    """An error as vLLM tells it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def engine_error() -> dict[str, Any]:
    """The error that every request gets when the engine dies under it."""
    return error_body(ENGINE_FAILED, "InternalServerError", 500)


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def usage(prompt: int, completion: int, *, whole: bool = False) -> dict[str, Any]:
    """Token counts; a whole answer names the details too."""
    counts = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
    return counts | (dict.fromkeys(("prompt_tokens_details", "completion_tokens_details")) if whole else {})


class Answer(Protocol):
    """Builds the events, or the body, of one request in the shapes of its route."""

    def begin(self) -> bytes:
        """What comes before the first token."""
        ...

    def chunk(self, piece: Piece) -> bytes:
        """The event of a piece; empty where it has nothing to show."""
        ...

    def end(self) -> bytes:
        """What comes after the last piece of the last output."""
        ...

    def failed(self) -> bytes:
        """How a stream ends whose engine died."""
        ...

    def body(self, pieces: Sequence[Piece]) -> bytes:
        """The whole answer of a request that does not stream, from its whole outputs."""
        ...


class _Counting:
    """What the answers have in common: who asked, and how many tokens there were."""

    def __init__(self, request: InferenceRequest, request_id: str, created: int) -> None:
        self.request = request
        self.request_id = request_id
        self.created = created
        self.generated = 0

    def failed(self) -> bytes:
        """An error event, and an end mark that proves nothing."""
        return event(engine_error()) + DONE

    def usage(self, *, whole: bool = False) -> dict[str, Any]:
        """The counts of all outputs so far."""
        return usage(sum(map(len, self.request.prompts)), self.generated, whole=whole)

    def ids(self, piece: Piece) -> list[int] | None:
        """A piece's ids, where the client asked for them."""
        return list(piece.tokens) if self.request.return_token_ids else None


class _OpenAi(_Counting):
    """What completions and chats have in common."""

    def __init__(self, request: InferenceRequest, request_id: str, created: int, kind: str) -> None:
        super().__init__(request, request_id, created)
        self.head = {"id": request_id, "object": kind, "created": created, "model": request.model}

    def event(self, choice: dict[str, Any], more: Mapping[str, Any] | None = None) -> bytes:
        """One event with one choice."""
        last = choice["finish_reason"] is not None and not self.request.include_usage
        mark = {"system_fingerprint": FINGERPRINT} if last else {}
        return event({**self.head, "choices": [choice], **(more or {}), **mark})

    def end(self) -> bytes:
        """Usage, where asked for, and the end mark."""
        if not self.request.include_usage:
            return DONE
        last = {**self.head, "choices": [], "usage": self.usage(), "system_fingerprint": FINGERPRINT}
        return event(last) + DONE

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The fields of a whole answer up to its usage."""
        whole = {**self.head, "choices": choices, "service_tier": None, "system_fingerprint": FINGERPRINT}
        return whole | {"usage": self.usage(whole=True)}


class CompletionAnswer(_OpenAi):
    """/v1/completions."""

    def __init__(self, request: InferenceRequest, request_id: str, created: int) -> None:
        super().__init__(request, f"cmpl-{request_id}", created, "text_completion")
        self._prompts: list[list[int] | None] = [
            list(prompt) if request.return_token_ids else None
            for prompt in request.prompts
            for _ in range(request.n)
        ]
        self._offsets = [0] * len(self._prompts)

    def begin(self) -> bytes:
        """Nothing: a completion begins with its text."""
        return b""

    def chunk(self, piece: Piece) -> bytes:
        """One event with new text."""
        self.generated += len(piece.tokens)
        choice = {
            "index": piece.index,
            "text": piece.delta.content,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish,
            "stop_reason": piece.stop,
            "prompt_token_ids": self._prompts[piece.index],
            "token_ids": self.ids(piece),
        }
        self._prompts[piece.index] = None
        return self.event(choice)

    def body(self, pieces: Sequence[Piece]) -> bytes:
        """The whole answer."""
        self.generated = sum(len(piece.tokens) for piece in pieces)
        choices = [
            {
                "index": piece.index,
                "text": piece.delta.content,
                "logprobs": self._logprobs(piece),
                "finish_reason": piece.finish,
                "stop_reason": piece.stop,
                "token_ids": self.ids(piece),
                "prompt_logprobs": None,
                "prompt_token_ids": self._prompts[piece.index],
                "routed_experts": None,
            }
            for piece in pieces
        ]
        none = dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))
        return orjson.dumps(self.whole(choices) | none)

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        texts = [decode((token,)) for token in piece.tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offsets[piece.index])
            self._offsets[piece.index] += len(text)
        values = [logprob(token) for token in piece.tokens]
        return {
            "text_offset": offsets,
            "token_logprobs": values,
            "tokens": texts,
            "top_logprobs": [{text: value} for text, value in zip(texts, values, strict=True)],
        }


class ChatAnswer(_OpenAi):
    """/v1/chat/completions."""

    def __init__(self, request: InferenceRequest, request_id: str, created: int) -> None:
        kind = "chat.completion.chunk" if request.stream else "chat.completion"
        super().__init__(request, f"chatcmpl-{request_id}", created, kind)
        self._prompt = list(request.prompts[0]) if request.return_token_ids else None

    def begin(self) -> bytes:
        """The role, for each output."""
        more = {"prompt_token_ids": self._prompt, "prompt_text": None}
        delta = {"role": "assistant", "content": ""}
        return b"".join(
            self.event({"index": index, "delta": delta, "logprobs": None, "finish_reason": None}, more)
            for index in range(self.request.n)
        )

    def chunk(self, piece: Piece) -> bytes:
        """One event; none where the parser holds everything back and nobody wants the ids."""
        self.generated += len(piece.tokens)
        parsed = self.request.parsing.active
        wanted = self.request.return_token_ids or self.request.logprobs is not None
        if parsed and piece.delta.empty and piece.finish is None and not wanted:
            return b""
        choice = {
            "index": piece.index,
            "delta": delta_of(piece, parsed),
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish,
        }
        if piece.finish is not None:
            choice["stop_reason"] = piece.stop
        choice["token_ids"] = self.ids(piece)
        return self.event(choice)

    def body(self, pieces: Sequence[Piece]) -> bytes:
        """The whole answer."""
        self.generated = sum(len(piece.tokens) for piece in pieces)
        choices = [
            {
                "index": piece.index,
                "message": message_of(piece),
                "logprobs": self._logprobs(piece),
                "finish_reason": piece.finish,
                "stop_reason": piece.stop,
                "token_ids": self.ids(piece),
                "routed_experts": None,
            }
            for piece in pieces
        ]
        whole = self.whole(choices) | {"prompt_logprobs": None, "prompt_token_ids": self._prompt}
        none = dict.fromkeys(("prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics"))
        return orjson.dumps(whole | none)

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.request.logprobs is None:
            return None
        content = []
        for token in piece.tokens:
            text = decode((token,))
            one: dict[str, Any] = {"token": text, "logprob": logprob(token), "bytes": list(text.encode())}
            content.append({**one, "top_logprobs": [one] * min(self.request.logprobs, 1)})
        return {"content": content}


class TokensAnswer(_Counting):
    """/inference/v1/generate."""

    def __init__(
        self, request: InferenceRequest, request_id: str, created: int, *, text: bool = False
    ) -> None:
        super().__init__(request, f"generate-tokens-{request_id}", created)
        self._prompt = list(request.prompts[0]) if request.return_token_ids else None
        self._mode = "text" if text else "tokens"
        self._made = [0] * request.n

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def chunk(self, piece: Piece) -> bytes:
        """One event with new ids."""
        self.generated += len(piece.tokens)
        head: dict[str, Any] = {"request_id": self.request_id, "usage": None}
        if self._prompt is not None:
            head["prompt_token_ids"], self._prompt = self._prompt, None
        return event({**head, "output_mode": self._mode, "choices": [self._choice(piece)]})

    def end(self) -> bytes:
        """Usage, where asked for, and the end mark."""
        if not self.request.include_usage:
            return DONE
        head = {"request_id": self.request_id, "usage": self.usage()}
        return event({**head, "output_mode": self._mode, "choices": []}) + DONE

    def body(self, pieces: Sequence[Piece]) -> bytes:
        """The whole answer."""
        self.generated = sum(len(piece.tokens) for piece in pieces)
        whole: dict[str, Any] = {"request_id": self.request_id, "model": self.request.model}
        whole |= {"created": self.created, "usage": self.usage(whole=True), "prompt_logprobs": None}
        whole |= {"prompt_token_id_logprobs": None, "prompt_token_ids": self._prompt, "mm_placeholders": None}
        whole |= dict.fromkeys(("metrics", "kv_transfer_params", "ec_transfer_params"))
        choices = [self._choice(piece) for piece in pieces]
        return orjson.dumps(whole | {"output_mode": self._mode, "choices": choices})

    def _choice(self, piece: Piece) -> dict[str, Any]:
        self._made[piece.index] += len(piece.tokens)
        versions = [{"version": "default", "start": 0, "end": self._made[piece.index]}]
        choice: dict[str, Any] = {
            "index": piece.index,
            "finish_reason": piece.finish,
            "stop_reason": piece.stop,
            "token_ids": list(piece.tokens),
            "routed_experts": None,
            "sampling_mask": None,
            "weight_versions": versions if piece.finish else None,
        }
        if self._mode == "text":
            choice["text"] = piece.delta.content
        wanted = self.request.logprobs
        choice["logprobs"] = (
            None if wanted is None else {"content": [_id_logprob(t, wanted) for t in piece.tokens]}
        )
        return choice


def delta_of(piece: Piece, parsed: bool) -> dict[str, Any]:
    """A chunk's delta: only the fields that are set, as vLLM sends it. `parsed`: a parser made it."""
    delta = piece.delta
    if delta.calls:
        found = {"content": delta.content or None, "tool_calls": delta.calls}
        return {"reasoning": delta.reasoning, **found} if delta.reasoning else found
    if not parsed:
        return {"content": delta.content}
    found = {"reasoning": delta.reasoning, "content": delta.content}
    return {key: value for key, value in found.items() if value}


def message_of(piece: Piece) -> dict[str, Any]:
    """The message of a whole chat answer."""
    delta = piece.delta
    content = delta.content or (None if delta.calls or delta.reasoning else "")
    message: dict[str, Any] = {"role": "assistant", "content": content}
    message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
    if delta.calls:
        message["tool_calls"] = delta.calls
    return message | {"reasoning": delta.reasoning or None}


def logprob(token: int) -> float:
    """The log probability that the simulated model gives a token: always the same."""
    return -(1 + token % 97) / 100


def _id_logprob(token: int, wanted: int) -> dict[str, Any]:
    one: dict[str, Any] = {"token_id": token, "logprob": logprob(token), "rank": 1}
    return {**one, "top_logprobs": [one] * min(wanted, 1)}
