"""What a client may ask for, and what the gateway has to know of a request before it sends it on.

Nodes have admin routes (pause, sleep, LoRA loading, collective calls) that must not be reached from
outside, so a path is let through only when it is on the list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

import orjson

COMPLETION_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
_ADMIN_UNDER_V1 = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_PROMPT_LIST = re.compile(rb'"prompt"\s*:\s*\[')


def admits(path: str, allow_paths: tuple[str, ...]) -> bool:
    """Whether a request's path (as sent, without the query) may go to a target.

    `path` must read the same before and after decoding and hold no dots or empty segments to resolve:
    otherwise the gateway and the engine could read two different paths.
    """
    if path in allow_paths:
        return True
    if not path.startswith("/v1/") or path.startswith(_ADMIN_UNDER_V1):
        return False
    decoded = unquote(path)
    if "\\" in decoded or "%" in decoded or decoded.count("/") != path.count("/"):
        return False
    if decoded.startswith(_ADMIN_UNDER_V1):
        return False
    return not any(segment in ("", ".", "..") for segment in decoded.split("/")[1:])


@dataclass(frozen=True, slots=True)
class Shape:
    """What a request will be answered with: `streams` says that it asked for a stream, `choices` how many
    answers it asked for, `completion` that the rules of completion streams hold.
    """

    completion: bool
    streams: bool
    choices: int


def shape_of(path: str, body: bytes) -> Shape:
    """Look at a request as cheaply as its kind allows: only one that may ask for many choices is parsed."""
    completion = path in COMPLETION_PATHS
    streams = b'"stream"' in body and _STREAM.search(body) is not None
    choices = 1
    if completion and streams and (b'"n"' in body or b'"best_of"' in body or _PROMPT_LIST.search(body)):
        choices = _choices(body)
    return Shape(completion, streams, choices)


def _choices(body: bytes) -> int:
    """Answers asked for: `n` for each prompt. A list of token ids is one prompt."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return 1
    if not isinstance(fields, dict):
        return 1
    per_prompt = fields.get("n")
    prompt = fields.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * (per_prompt if isinstance(per_prompt, int) and per_prompt > 0 else 1)
