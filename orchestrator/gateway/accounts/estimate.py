"""How many tokens a text has, where nobody tells: by its bytes.

Why: an engine that tells no usage, or a client that leaves before it is told, would leave no trace of what
was used; four bytes a token are right to a third or so for English text and most tokenizers. What a body
holds beside texts (settings, pictures) is not counted, or by a constant.

Example:
    >>> prompt_tokens({"messages": [{"role": "user", "content": "a" * 400}], "temperature": 0.5})
    104
    >>> prompt_tokens({"prompt": [1, 2, 3]})
    3
"""

from __future__ import annotations

from collections.abc import Mapping

BYTES_OF_A_TOKEN = 4
PICTURE = 1000
"""Tokens of a picture or other data in a text's place, roughly."""

_PROMPTS = (
    "messages", "prompt", "input", "instructions", "system", "tools", "functions", "documents", "query",
    "queries", "items", "texts", "images", "inputs", "text_1", "text_2", "data_1", "data_2", "suffix",
)  # fmt: skip
_ANSWERS = ("choices", "content", "output")
_NO_TEXT = frozenset({"role", "type", "id", "status", "finish_reason", "stop_reason", "logprobs"})
"""Fields of answers that were not generated as text."""
_DATA = 2000  # characters without a space that are no text


def prompt_tokens(body: Mapping[str, object]) -> int:
    """Roughly the tokens of what a request's body gives to read."""
    return _tokens([body[name] for name in _PROMPTS if name in body], names=True, but=frozenset())


def answer_tokens(body: Mapping[str, object]) -> int:
    """Roughly the tokens that were generated for a plain answer."""
    return _tokens([body[name] for name in _ANSWERS if name in body], names=False, but=_NO_TEXT)


def _tokens(values: list[object], *, names: bool, but: frozenset[str]) -> int:
    """Of all texts inside, and one for each number in a list, which is the id of a token."""
    rest: list[object] = [*values]
    size = tokens = 0
    while rest:
        found = rest.pop()
        if isinstance(found, str):
            if len(found) > _DATA and " " not in found:
                tokens += PICTURE
            else:
                size += len(found.encode("utf-8", "surrogatepass"))
        elif isinstance(found, Mapping):
            size += sum(map(len, found)) if names else 0
            rest.extend(value for name, value in found.items() if name not in but)
        elif isinstance(found, list):
            if found and isinstance(found[0], int):
                tokens += len(found)
            else:
                rest.extend(found)
    return tokens + -(-size // BYTES_OF_A_TOKEN)
