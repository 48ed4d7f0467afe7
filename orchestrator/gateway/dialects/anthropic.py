"""Anthropic's dialects: messages and their token counts, carried to the engine as chat and as `/tokenize`.

vLLM 0.32 ends a crashed stream of its own `/v1/messages` as if it were whole, which cannot be judged.
https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.gateway.dialects import Dialect
from orchestrator.gateway.dialects.errors import anthropic_error
from orchestrator.gateway.dialects.messages_in import chat_of, count_of
from orchestrator.gateway.dialects.messages_out import MISREAD, CountEdge, MessagesEdge
from orchestrator.gateway.dialects.openai import CHAT, choices_finished
from orchestrator.gateway.dialects.rules import always, json_rule
from orchestrator.gateway.dialects.tokenize import TOKENIZE
from orchestrator.gateway.failure import Failure

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked


def message_finished(asked: Asked, answer: dict[str, Any]) -> Failure | None:
    """The chat answer is whole, and can be read as a message."""
    if (failure := choices_finished(asked, answer)) is not None:
        return failure
    try:
        MessagesEdge(asked).message(answer)
    except MISREAD:
        return Failure.BAD_RESPONSE
    return None


def counted(_: Asked, answer: dict[str, Any]) -> Failure | None:
    """The count is there; nothing else of the engine's answer reaches the client."""
    return None if isinstance(answer.get("count"), int) else Failure.BAD_RESPONSE


MESSAGES = Dialect(
    name="messages",
    judge=CHAT.judge,
    whole=json_rule(message_finished),
    edge=MessagesEdge,
    error=anthropic_error,
    repeats=always,
    translate=chat_of,
    engine_path="/v1/chat/completions",
)
COUNT_TOKENS = Dialect(
    name="count_tokens",
    judge=TOKENIZE.judge,
    whole=json_rule(counted),
    edge=lambda _: CountEdge(),
    error=anthropic_error,
    repeats=always,
    translate=count_of,
    engine_path="/tokenize",
    streams=False,
    counts=False,
)
