"""Tokens as providers tell them, read into one form; and told again in OpenAI's.

What is told in another shape counts as not told (None), never as nothing: what is booked then is what was
reserved.
"""

from __future__ import annotations

from typing import Any

from cloud.providers.wire import Fields
from policies.spend import Usage, counted


def of_openai(told: Any) -> Usage | None:
    """The `usage` of chat, completions and embeddings, or of responses.

    Some compatible APIs (xAI's, Gemini's) leave thinking out of `completion_tokens` and count it in
    `total_tokens` only. https://platform.openai.com/docs/api-reference/chat/object,
    .../responses/object, https://api-docs.deepseek.com/api/create-chat-completion (prompt_cache_hit_tokens).
    """
    if not isinstance(told, dict):
        return None
    plain = "prompt_tokens" in told
    details = told.get("prompt_tokens_details" if plain else "input_tokens_details")
    details = details if isinstance(details, dict) else {}
    try:
        prompt = counted(told["prompt_tokens" if plain else "input_tokens"])
        output = counted(told.get("completion_tokens" if plain else "output_tokens") or 0)
        total = counted(told.get("total_tokens") or 0)
        cached = counted(details.get("cached_tokens") or told.get("prompt_cache_hit_tokens") or 0)
        written = counted(details.get("created_cache_tokens") or details.get("cache_write_tokens") or 0)
        fresh = max(0, prompt - cached - written)
        return Usage(fresh=fresh, cached=cached, cache_write=written, output=max(output, total - prompt))
    except (KeyError, ValueError):
        return None


def of_anthropic(told: Any) -> Usage | None:
    """The `usage` of a message. Its three kinds of input do not overlap.

    https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching#tracking-cache-performance
    """
    if not isinstance(told, dict):
        return None
    split = told.get("cache_creation")
    hour = split.get("ephemeral_1h_input_tokens") if isinstance(split, dict) else 0
    try:
        written, hour = counted(told.get("cache_creation_input_tokens") or 0), counted(hour or 0)
        return Usage(
            fresh=counted(told["input_tokens"]),
            cached=counted(told.get("cache_read_input_tokens") or 0),
            cache_write=max(0, written - hour),
            cache_write_1h=hour,
            output=counted(told["output_tokens"]),
        )
    except (KeyError, ValueError):
        return None


def as_openai(usage: Usage) -> Fields:
    """The `usage` of a chat answer. `created_cache_tokens` is vLLM's name for those written to the cache."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.output,
        "total_tokens": usage.prompt + usage.output,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached,
            "created_cache_tokens": usage.cache_write + usage.cache_write_1h,
        },
    }
