"""How long a request may be, in tokens, by the name of a model's family.

What it decides: nothing; it looks up.
Why: an engine that is not told how long a request may be (vLLM's `--max-model-len`) takes the model's own
maximum, and does not start where the cache of one such request does not fit.
Never: a guess. A model of no known family has no answer.

Source: `max_position_embeddings` of each family's config.json on Hugging Face, as vLLM derives its maximum
from it. Models whose scaling makes the maximum depend on vLLM's version (longrope: Phi-3, Phi-4-mini) are
left out.

Example:
    >>> longest_request("meta-llama/Llama-3.1-70B-Instruct")
    131072
    >>> longest_request("acme/odd-7B") is None
    True
"""

from __future__ import annotations

import re

_K = 1024

_FAMILIES = (
    # Distilled models keep the shape of what they were made from.
    (r"deepseek-r1-(distill|0528-qwen)", 128 * _K),
    (r"deepseek-(v3|r1)", 160 * _K),
    (r"kimi-k2-instruct(?!-0905)", 128 * _K),
    (r"llama-?4-maverick", 1024 * _K),
    (r"llama-?4-scout", 10 * 1024 * _K),
    (r"llama-?3\.[123]", 128 * _K),
    (r"llama-?3(?![.\da-z])", 8 * _K),
    (r"llama-?2(?![.\da-z])", 4 * _K),
    (r"qwen(1\.5)?-(0\.5|1\.8|4|7|14|32|72)b", 32 * _K),
    (r"qwen2\.5-vl-", 128_000),
    # Of one size the base model has four times the maximum of the one for instructions.
    (r"qwen2\.5-(coder-)?(0\.5|1\.5|3|7)b-instruct(?!-1m)", 32 * _K),
    (r"qwen2\.5-(coder-)?(14|32|72)b-instruct(?!-1m)", 32 * _K),
    (r"qwen3-(30b-a3b|235b-a22b)-(instruct|thinking)-2507", 256 * _K),
    (r"qwen3-coder-|qwen3-next-|qwen3\.[568]-27b", 256 * _K),
    (r"qwen3-4b-(instruct|thinking)-2507", 256 * _K),
    (r"qwen3-(30b-a3b|235b-a22b)(?!-base)", 40 * _K),
    (r"qwen3-(0\.6|1\.7|4|8|14|32)b(?!-base)", 40 * _K),
    (r"mistral-7b", 32 * _K),
    (r"mistral-small-24b", 32 * _K),
    (r"mistral-small-3\.[12]", 128 * _K),
    (r"mixtral-8x7b", 32 * _K),
    (r"mixtral-8x22b", 64 * _K),
    (r"gemma-(1\.1-)?[27]b", 8 * _K),
    (r"gemma-2-", 8 * _K),
    (r"gemma-3-1b", 32 * _K),
    (r"gemma-3-", 128 * _K),
    (r"phi-4(?!-mini|-multimodal)", 16 * _K),
    (r"gpt-oss", 128 * _K),
    (r"glm-4\.5v", 64 * _K),
    (r"glm-4\.(5|6v)(?!-flash)", 128 * _K),
    (r"glm-4\.6(?!-flash)", 198 * _K),
)


def longest_request(model: str) -> int | None:
    """Tokens of the longest request of a model, by its name or path; None where it is not known."""
    return next((context for pattern, context in _FAMILIES if _begins_in(pattern, model)), None)


def _begins_in(pattern: str, model: str) -> bool:
    """Whether the pattern begins a word of the name. Compiled when it is first asked for."""
    return re.search(rf"(?<![a-z0-9]){pattern}", model, re.IGNORECASE) is not None
