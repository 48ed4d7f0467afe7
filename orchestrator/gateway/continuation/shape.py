"""JSON of chunks: how the parts of a continuation are sent to the client. Pure."""

from __future__ import annotations

from typing import Any

import orjson


def event_of(chunk: dict[str, Any]) -> bytes:
    """A chunk as a server-sent event."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def usage_of(prompt: int, said: int) -> dict[str, int]:
    """Usage, in tokens."""
    return {"prompt_tokens": prompt, "total_tokens": prompt + said, "completion_tokens": said}


def told_logprobs(
    told: dict[str, Any] | None, skip: int, offset: int, *, chat: bool
) -> dict[str, Any] | None:
    """Logprobs of /v1/completions without the first `skip` tokens, as the client's route tells them.

    For a text, text offsets count from `offset` characters on. For a chat, the bytes of a token are those
    of its text.
    """
    if not told or len(told["tokens"]) <= skip:
        return None
    told = {name: rows[skip:] if isinstance(rows, list) else rows for name, rows in told.items()}
    if not chat:
        return {**told, "text_offset": [at + offset for at in told.get("text_offset") or ()]}
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    return {
        "content": [
            {
                **_logprob(token, logprob),
                "top_logprobs": [_logprob(name, value) for name, value in (top or {}).items()],
            }
            for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
        ]
    }


def without_nulls(value: Any) -> Any:
    """A JSON value without the fields that are null, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _logprob(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
