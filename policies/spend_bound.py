"""How many tokens a request to a paid provider may use, told by its body alone, before it is sent.

What it decides: the most tokens of the prompt and of the answer; or, by name, why nobody can tell.
Why: only what is held back before sending keeps a day's cap. A token of text stands for at least one byte, so
the bytes of the body bound the text, those of the escapes included with which templates write tools; what is
not text (images) is bounded by the most that providers count for one; the few hundred tokens that a provider
adds by itself by constants.
Never: a body whose cost is not bounded by its size gets a bound: files, things stored at the provider, tools
that the provider runs, and tiers of service that cost more are refused by name.

Example:
    >>> bound({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}).output
    5
    >>> bound({"messages": [], "tools": [{"type": "web_search_20250305", "name": "web_search"}]}).why
    'a tool that the provider runs (web_search_20250305) has no known price'
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from policies.spend import Price, most

BASE_TOKENS = 2048
"""For a request as a whole: templates, and the system prompt that providers write for tools (Anthropic's has
up to 804 tokens)."""

ITEM_TOKENS = 64
"""For each object: a message, a part, a tool, a step of its schema."""

_AROUND = 6
"""For each value: quotes, colon, comma, the line and its indent where tools are written as indented JSON."""

CLIENT_TOOL_TOKENS = 2048
"""For a tool that the provider describes and the client runs (Anthropic's bash, text editor, computer: up to
1,200 tokens, as its pages on them say)."""

IMAGE_TOKENS = 49_152
"""For an image. The most that is counted for one is that of gpt-4o-mini at high detail: 2,833 and 5,667
for each of at most 8 tiles, 48,169 in all (OpenAI, "Images and vision"); Anthropic counts below 5,000."""

_CLIENT_TOOLS = ("bash_", "text_editor_", "computer_", "memory_", "local_shell", "apply_patch")
_FUNCTIONS = frozenset({"function", "custom"})
_IMAGES = frozenset({"image", "image_url", "input_image"})
_ELSEWHERE = ("document", "file", "input_file", "item_reference", "container_upload", "video_url", "video")
_SOUND = ("input_audio", "audio", "audio_url")
_UNBOUNDED = {
    **dict.fromkeys(_ELSEWHERE, "the size of a {} is not known"),
    **dict.fromkeys(_SOUND, "the price of {} is not known"),
}
"""Types of parts whose cost their size does not bound, and why."""
_BEYOND = (
    "previous_response_id", "conversation", "container", "mcp_servers", "web_search_options", "background",
    "context_management", "plugins", "models", "fallbacks",
)  # fmt: skip
"""Fields of requests that use what is kept at the provider, work done there, or other models."""
_READ = frozenset({"messages", "content", "text", "prompt", "system", "instructions", "input"})
"""Where texts are that a model reads as they stand. Others it reads within JSON, in which templates escape
quotes, control characters, and some of them all that is not ASCII."""
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_TIERS = ("auto", "default", "standard", "standard_only", "flex")
"""Tiers of service that cost what the price list says, or less. Anthropic's and OpenAI's `auto` are these
unless the account is set up for others."""
_LISTED = {
    "service_tier": (_TIERS, "service_tier {!r:.40} has another price"),
    "speed": (("standard",), "another speed has another price"),
    "inference_geo": (("global",), "inference_geo has another price"),
}
"""Fields whose value may change the price, the values that do not, and what is said of any other."""


@dataclass(frozen=True, slots=True)
class Bound:
    """At most so many tokens of `prompt`, and of `output` where the request limits it (None where not), for
    each of `choices`. `why` says what makes the cost unbounded; empty otherwise.
    """

    prompt: int
    output: int | None
    choices: int = 1
    why: str = ""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that a request may cost, in picodollars; or why that is not known."""

    amount: int
    why: str = ""


def bound(body: Mapping[str, object]) -> Bound:
    """What a request's body (OpenAI's or Anthropic's, parsed) may use at most."""
    prompt, reasons = BASE_TOKENS + _text_bytes(body), [_extra(body)]
    for part in _parts(body):
        what = str(part.get("type"))
        if what in _IMAGES:
            prompt += IMAGE_TOKENS - _picture_bytes(part)
        elif what in _UNBOUNDED:
            reasons.append(_UNBOUNDED[what].format(what))
    tools = body.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, Mapping) else None
        if isinstance(kind, str) and kind not in _FUNCTIONS:
            prompt += CLIENT_TOOL_TOKENS
            if not kind.startswith(_CLIENT_TOOLS):
                reasons.append(f"a tool that the provider runs ({kind:.40}) has no known price")
    why = next(filter(None, reasons), "")
    choices = max(1, _number(body.get("n")) or 1, _number(body.get("best_of")) or 1)
    return Bound(prompt=prompt, output=_limit(body), choices=choices * _prompts(body), why=why)


def ceiling(price: Price, asked: Bound) -> Ceiling:
    """What a request may cost at most. The model's own limits hold where they are lower."""
    if asked.why:
        return Ceiling(0, asked.why)
    limits = [n for n in (asked.output, price.most_output or price.context or None) if n is not None]
    if not limits and price.rates_for(asked.prompt).output:
        return Ceiling(0, "the request sets no max_tokens, and most_output of the model is not known")
    prompt = min(asked.prompt, price.context) if price.context else asked.prompt
    return Ceiling(most(price, prompt=prompt, output=min(limits, default=0) * asked.choices))


def _limit(body: Mapping[str, object]) -> int | None:
    """Tokens that one choice has at most, as the request says, None where it does not or not plainly.

    Of several limits the greatest counts: which of them a provider heeds, it alone knows. A prediction's
    tokens are billed beside it when rejected.
    """
    limits = [_number(body[key]) for key in _LIMITS if body.get(key) is not None]
    plain = [limit for limit in limits if limit is not None and limit > 0]
    if not plain or len(plain) < len(limits):
        return None
    prediction = body.get("prediction")
    return max(plain) + (_text_bytes(prediction) if prediction else 0)


def _extra(body: Mapping[str, object]) -> str:
    """What costs more than the tokens of this body at the listed price; empty when nothing does."""
    for key in _BEYOND:
        if body.get(key):
            return f"what {key} adds is not known"
    if isinstance(body.get("prompt"), Mapping):
        return "the size of a prompt that the provider keeps is not known"
    for key in ("n", "best_of"):
        if body.get(key) is not None and _number(body[key]) is None:
            return f"{key} is no count"
    for key, (listed, why) in _LISTED.items():
        if body.get(key) not in (None, "", *listed):
            return why.format(body[key])
    modalities = body.get("modalities")
    if isinstance(modalities, list) and modalities != ["text"]:
        return "the price of an answer that is not text is not known"
    return ""


def _parts(body: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Every part of the content of every message, also within the results of tools."""
    rest: list[object] = [body.get("messages"), body.get("input")]
    while rest:
        found = rest.pop()
        if isinstance(found, list):
            rest.extend(found)
        elif isinstance(found, Mapping):
            yield found
            rest.append(found.get("content"))


def _picture_bytes(part: Mapping[str, object]) -> int:
    """Bytes of an image's data, which are no text."""
    where = part.get("image_url")
    url = where.get("url") if isinstance(where, Mapping) else where
    if isinstance(url, str) and url.startswith("data:image/"):
        return len(url)
    source = part.get("source")
    data = source.get("data") if isinstance(source, Mapping) and source.get("type") == "base64" else None
    return len(data) if isinstance(data, str) else 0


def _text_bytes(value: object) -> int:
    """Bytes of everything in the body, names too, with what any rendering puts around each value."""
    total, rest = 0, [(value, True)]
    while rest:
        found, read = rest.pop()
        total += _AROUND
        if isinstance(found, str):
            total += _size(found, escape=not read)
        elif isinstance(found, Mapping):
            total += ITEM_TOKENS
            for key, inner in found.items():
                total += _size(str(key), escape=True)
                rest.append((inner, read and key in _READ and not isinstance(inner, Mapping)))
        elif isinstance(found, list):
            rest.extend((inner, read) for inner in found)
        else:
            total += len(str(found))
    return total


def _size(text: str, *, escape: bool) -> int:
    """Bytes of a text, also within JSON (`escape`: in ASCII alone, six for a character), and also once a
    tokenizer has written its characters out (U+FDFA becomes 18 letters)."""
    quoted = json.dumps(text, ensure_ascii=escape)[1:-1]
    if text.isascii():
        return len(quoted)
    written_out = unicodedata.normalize("NFKC", text)
    return max(len(form.encode("utf-8", "surrogatepass")) for form in (quoted, text, written_out))


def _prompts(body: Mapping[str, object]) -> int:
    """The prompts of a completions request, each of which gets all choices. Token ids are one prompt."""
    prompt = body.get("prompt")
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1


def _number(value: object) -> int | None:
    """A count as servers read it, which take "3" and 3.0 too; None for anything else."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < _LONGEST_NUMBER:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_LONGEST_NUMBER = 20  # digits
