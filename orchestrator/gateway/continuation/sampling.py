"""What the rest of an answer is asked for with: the request's own sampling, less what was said."""

from __future__ import annotations

from typing import Any

_DEFAULT_LIMIT = 16  # tokens that /v1/completions gives to a request that names no limit (OpenAI's default)
_CARRIED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "repetition_detection",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "watermarking",
    "priority",
    "cache_salt",
    "vllm_xargs",
    "stream_interval",
)  # fields that mean the same on /v1/completions as on /v1/chat/completions


def limit_of(fields: dict[str, Any], *, chat: bool) -> int | None:
    """The most tokens that a request asks for; None: as many as the context holds."""
    if chat:
        names = ("max_completion_tokens", "max_tokens")
        return next((int(fields[name]) for name in names if fields.get(name) is not None), None)
    limit = fields.get("max_tokens", _DEFAULT_LIMIT)
    return None if limit is None else int(limit)


def least_of(fields: dict[str, Any], said: int) -> int:
    """The tokens that must still come, `min_tokens` less those that came."""
    return max(0, int(fields.get("min_tokens") or 0) - said)


def sampling_of(fields: dict[str, Any], *, chat: bool) -> dict[str, Any]:
    """The sampling of a request in the fields of /v1/completions: no limits, no stop strings."""
    carried = {name: fields[name] for name in _CARRIED if fields.get(name) is not None}
    if chat and fields.get("logprobs"):
        carried["logprobs"] = int(fields.get("top_logprobs") or 0)
    elif not chat and fields.get("logprobs") is not None:
        carried["logprobs"] = fields["logprobs"]
    return carried
