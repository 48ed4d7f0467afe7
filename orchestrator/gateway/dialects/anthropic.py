"""Anthropic's dialects: messages and their token counts, as the engine itself speaks them.

https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from orchestrator.gateway.dialects import Dialect, Same
from orchestrator.gateway.dialects.errors import anthropic_error
from orchestrator.gateway.dialects.rules import always, an_object, json_rule
from orchestrator.gateway.stream import StreamJudge

MESSAGES = Dialect(
    name="messages",
    judge=lambda _: StreamJudge(),
    whole=json_rule(an_object),
    edge=lambda _: Same(anthropic_error),
    error=anthropic_error,
    repeats=always,
)
COUNT_TOKENS = Dialect(
    name="count_tokens",
    judge=lambda _: StreamJudge(),
    whole=json_rule(an_object),
    edge=lambda _: Same(anthropic_error),
    error=anthropic_error,
    repeats=always,
)
