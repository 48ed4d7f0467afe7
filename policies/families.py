"""What is known of families of models by their names: the longest request, and how much cache it takes.

What it decides: nothing; it looks up.
Why: an engine that is not told how long a request may be (vLLM's `--max-model-len`) takes the model's own
maximum, and does not start where the cache of one such request does not fit.
Never: a guess. A model of no known family has no answer.

Source: `max_position_embeddings` of each family's config.json on Hugging Face, as vLLM derives its maximum
from it. `cache` is the key-value cache of a token in 16 bits, as a share of what `policies.fit` estimates by
the parameter count: layers that hold the whole request x key-value heads x head size x 4 bytes, from the same
files. Models whose scaling makes the maximum depend on vLLM's version (longrope: Phi-3, Phi-4-mini) are left
out.

Example:
    >>> family("meta-llama/Llama-3.1-70B-Instruct").context
    131072
    >>> family("acme/odd-7B") is None
    True
"""

from __future__ import annotations

import re

from policies.value import value


@value
class Family:
    """`context`: tokens of the longest request. `cache`: see the module."""

    context: int
    cache: float = 1.0


_K = 1024

_FAMILIES = tuple(
    (re.compile(rf"(?<![a-z0-9]){pattern}", re.IGNORECASE), Family(context=context, cache=cache))
    for pattern, context, cache in (
        # Distilled models keep the shape of what they were made from.
        (r"deepseek-r1-distill", 128 * _K, 1.0),
        # Latent attention: 61 layers x 576 values x 2 bytes, 69 KiB a token at 671 billion parameters.
        (r"deepseek-(v3|r1)", 160 * _K, 0.085),
        (r"llama-?4-maverick", 1024 * _K, 0.35),
        (r"llama-?4-scout", 10 * 1024 * _K, 0.5),
        (r"llama-?3\.[123]", 128 * _K, 1.0),
        (r"llama-?3(?![.\da-z])", 8 * _K, 1.0),
        (r"llama-?2(?![.\da-z])", 4 * _K, 1.0),
        # Of one size the base model has four times the maximum of the one for instructions.
        (r"qwen2\.5-(coder-)?(0\.5|1\.5|3|7)b-instruct(?!-1m)", 32 * _K, 0.47),
        (r"qwen2\.5-(coder-)?(14|32|72)b-instruct(?!-1m)", 32 * _K, 1.0),
        (r"qwen3-(30b-a3b|235b-a22b)-(instruct|thinking)-2507", 256 * _K, 0.4),
        (r"qwen3-4b-(instruct|thinking)-2507", 256 * _K, 1.0),
        (r"qwen3-(30b-a3b|235b-a22b)(?!-base)", 40 * _K, 0.4),
        (r"qwen3-(0\.6|1\.7|4|8|14|32)b(?!-base)", 40 * _K, 1.0),
        (r"mistral-7b", 32 * _K, 1.0),
        (r"mistral-small-24b", 32 * _K, 1.0),
        (r"mistral-small-3\.[12]", 128 * _K, 1.0),
        (r"mixtral-8x7b", 32 * _K, 0.45),
        (r"mixtral-8x22b", 64 * _K, 0.5),
        # Half of the layers see a window only, in Gemma 3 five of six.
        (r"gemma-(1\.1-)?[27]b", 8 * _K, 1.0),
        (r"gemma-2-", 8 * _K, 1.0),
        (r"gemma-3-1b", 32 * _K, 0.4),
        (r"gemma-3-", 128 * _K, 0.4),
        (r"phi-4(?!-mini|-multimodal)", 16 * _K, 1.0),
        (r"gpt-oss", 128 * _K, 0.1),
    )
)


def family(model: str) -> Family | None:
    """What is known of a model by its name or path; None when nothing is."""
    return next((found for pattern, found in _FAMILIES if pattern.search(model)), None)
