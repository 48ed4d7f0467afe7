"""Tokenizing and its reverse, as vLLM 0.32 defines them (entrypoints/serve/tokenize)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.gateway.dialects import Dialect, Same
from orchestrator.gateway.dialects.rules import always, json_rule
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.stream import StreamJudge

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked


def counted(_: Asked, answer: dict[str, Any]) -> Failure | None:
    """As many tokens as the answer counts. llama.cpp gives the tokens without a count."""
    tokens, count = answer.get("tokens"), answer.get("count")
    if not isinstance(tokens, list):
        return Failure.BAD_RESPONSE
    return Failure.INCOMPLETE if isinstance(count, int) and count != len(tokens) else None


def _text(_: Asked, answer: dict[str, Any]) -> Failure | None:
    """The text, which llama.cpp calls `content`."""
    return None if isinstance(answer.get("prompt", answer.get("content")), str) else Failure.BAD_RESPONSE


TOKENIZE = Dialect(
    name="tokenize",
    judge=lambda _: StreamJudge(),
    whole=json_rule(counted),
    edge=lambda _: Same(),
    repeats=always,
    streams=False,
    counts=False,
)
DETOKENIZE = Dialect(
    name="tokenize",
    judge=lambda _: StreamJudge(),
    whole=json_rule(_text),
    edge=lambda _: Same(),
    repeats=always,
    streams=False,
    counts=False,
)
