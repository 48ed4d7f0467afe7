"""OpenAI's dialects of text: chat completions, completions, responses.

https://platform.openai.com/docs/api-reference and what vLLM 0.32 makes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.gateway.dialects import Dialect, Same
from orchestrator.gateway.dialects.rules import always, an_object, json_rule
from orchestrator.gateway.failure import Failure
from orchestrator.gateway.stream import CompletionJudge, ResponsesJudge, refuses, says_nothing

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

_EFFECTS = frozenset(
    {"mcp", "code_interpreter"}
)  # tools that the server itself runs, and that may change things


def choices_finished(asked: Asked, answer: dict[str, Any]) -> Failure | None:
    """All choices are there, and the engine ended none of them itself."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return Failure.BAD_RESPONSE
    reasons = [choice.get("finish_reason") for choice in choices]
    if "abort" in reasons:
        return Failure.ABORTED
    return None if len(reasons) >= asked.choices and all(reasons) else Failure.INCOMPLETE


def response_ended(asked: Asked, answer: dict[str, Any]) -> Failure | None:
    """The answer to a new response: at its end, or accepted where it was asked for in the background.

    vLLM answers an aborted one with the status `cancelled`, or calls it `completed` without a token.
    """
    status = answer.get("status")
    background = asked.inner is not None and bool(asked.inner.get("background"))
    if background and status in ("queued", "in_progress"):
        return None
    if status == "failed" and not background:
        return None if refuses(answer.get("error")) else Failure.ENGINE_ERROR
    if not background and (status == "cancelled" or says_nothing(answer)):
        return Failure.ABORTED
    if status in ("completed", "incomplete", "failed", "cancelled"):
        return None
    return Failure.INCOMPLETE if status in ("queued", "in_progress") else Failure.BAD_RESPONSE


def repeats_response(fields: dict[str, Any] | None) -> bool:
    """A response may be made twice unless it is to be stored, or its tools may change things.

    Without `store` the client expects no more than the answer itself.
    """
    if fields is None or fields.get("background") or fields.get("store"):
        return False
    tools = fields.get("tools")
    kinds = [tool.get("type") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return not _EFFECTS.intersection(kinds)


CHAT = Dialect(
    name="chat",
    judge=lambda asked: CompletionJudge(asked.choices),
    whole=json_rule(choices_finished),
    edge=lambda _: Same(),
    repeats=always,
)
COMPLETIONS = Dialect(
    name="completions",
    judge=lambda asked: CompletionJudge(asked.choices),
    whole=json_rule(choices_finished),
    edge=lambda _: Same(),
    repeats=always,
)
RESPONSES = Dialect(
    name="responses",
    judge=lambda _: ResponsesJudge(),
    whole=json_rule(response_ended, has_error=True),
    edge=lambda _: Same(),
    repeats=repeats_response,
)
RESPONSE = Dialect(  # one that is stored: looked at, cancelled, deleted
    name="responses",
    judge=lambda _: ResponsesJudge(stored=True),
    whole=json_rule(an_object, has_error=True),
    edge=lambda _: Same(),
    json=False,
    repeats=always,
    counts=False,
)
