"""How a broken stream can be finished elsewhere: decided from the request alone, before it is sent.

A stream is finished by its token ids: prompt and answer so far become the prompt of another engine. That
carries everything an engine derives from the ids, and nothing that it counts from the first generated token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from orchestrator.gateway.failure import Failure

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


class Kind(StrEnum):
    """What becomes of a stream that breaks. The values are metric labels."""

    EXACT = "exact"  # text, continued by ids: as if it had never broken
    PARSED = "parsed"  # the same with tool calls or reasoning: the parser's state is rebuilt
    OURS = "ours"  # with stop strings, which the gateway looks for from the break on
    INEXACT = "inexact"  # continued, but a generator or a count starts anew: a valid answer, not the same one
    AGAIN = "again"  # a grammar or the like starts anew: asked again whole, while only white space was sent
    ENDED = "ended"  # several answers at once, or no completion: an error event


@dataclass(frozen=True, slots=True)
class Plan:
    """The kind of a request, and how its stream can be continued."""

    kind: Kind
    parser: bool = False  # its answer may hold tool calls
    stops: tuple[str, ...] = ()  # its stop strings
    inexact: bool = False  # a continuation must be marked
    why: str = ""  # what prevents an exact continuation; empty: nothing

    @property
    def by_ids(self) -> bool:
        """Whether the answer can be continued by its token ids."""
        return self.kind in (Kind.EXACT, Kind.PARSED, Kind.OURS, Kind.INEXACT)


class Way(StrEnum):
    """What a target has for continuing: the values are shown by `/v1/state`."""

    DERENDER = "derender"  # everything: ids in, ids out, and its parsers over ids (`--enable-scale-out`)
    CLEAN = "clean"  # plain text: ids in as a prompt
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Capability:
    """What a target can do for streams that broke elsewhere, as its probe found it."""

    way: Way = Way.NONE
    identity: str = ""  # only targets of one identity, not empty, finish each other's streams
    why: str = "not probed yet"  # what is missing
    reasons: bool = False  # answers pass a parser even without tools (reasoning)
    max_model_len: int = 0  # context in tokens; 0: not reported
    answered: bool = True  # `why` is by its own answers


class Broken(Exception):
    """A continuation broke. What it sent is recorded, so that it can be continued once more."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail


def plan_of(asked: Asked) -> Plan:
    """The plan for a request."""
    fields = asked.inner
    path = asked.inner_path.partition("?")[0]
    if fields is None or not asked.stream or path not in (CHAT_PATH, TEXT_PATH):
        return Plan(Kind.ENDED, why="not a stream of a completion")
    if asked.choices > 1:
        return Plan(Kind.ENDED, why="more than one answer")
    if why := _first(_ENDED, fields):
        return Plan(Kind.ENDED, why=why)
    tools = asked.tools and fields.get("tool_choice") != "none"
    stops = stop_strings(fields)
    why = _first(_AGAIN, fields)
    if not why and tools and stops:
        why = "stop strings beside tools"
    if why:
        return Plan(Kind.AGAIN, parser=tools, why=why)
    why = _first(_INEXACT, fields)
    kind = Kind.INEXACT if why else Kind.PARSED if tools else Kind.OURS if stops else Kind.EXACT
    return Plan(kind, parser=tools, stops=stops, inexact=bool(why), why=why)


def stop_strings(fields: dict[str, Any]) -> tuple[str, ...]:
    """The stop strings of a request body; empty ones stop nothing."""
    stop = fields.get("stop")
    listed = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return tuple(text for text in listed if isinstance(text, str) and text)


def _set(*names: str) -> Callable[[dict[str, Any]], bool]:
    """Whether any of the fields is given and not zero, false or empty."""
    return lambda fields: any(fields.get(name) for name in names)


def _formatted(fields: dict[str, Any]) -> bool:
    form = fields.get("response_format")
    return bool(form) and not (isinstance(form, dict) and form.get("type") == "text")


def _forced(fields: dict[str, Any]) -> bool:
    return fields.get("tool_choice") not in (None, "auto", "none")


def _strict(fields: dict[str, Any]) -> bool:
    functions = [tool.get("function") for tool in _objects(fields.get("tools"))]
    return any(isinstance(function, dict) and function.get("strict") for function in functions)


def _seen(fields: dict[str, Any]) -> bool:
    """Whether a message holds more than text: its ids alone do not stand for it."""
    parts = [part for row in _objects(fields.get("messages")) for part in _objects(row.get("content"))]
    return any(part.get("type") not in ("text", "refusal") for part in parts)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _drawn(fields: dict[str, Any]) -> bool:
    """Whether a seeded generator draws: greedy text does not depend on it."""
    return fields.get("seed") is not None and fields.get("temperature") != 0


_Rules = tuple[tuple[Callable[[dict[str, Any]], bool], str], ...]

_ENDED: _Rules = (
    (_set("use_beam_search"), "beam search"),
    (_set("echo"), "the prompt is echoed"),
    (lambda fields: fields.get("prompt_logprobs") is not None, "logprobs of the prompt"),
)
_AGAIN: _Rules = (
    (_formatted, "response_format: its grammar starts anew"),
    (
        _set("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
        "structured output: its grammar starts anew",
    ),
    (_forced, "tool_choice is forced: its grammar starts anew"),
    (_strict, "strict tools: their grammar starts anew"),
    (_seen, "a prompt of more than text"),
    (_set("prompt_embeds"), "a prompt of embeddings"),
    (lambda fields: fields.get("thinking_token_budget") is not None, "a budget for thinking"),
)
_INEXACT: _Rules = (
    (_set("presence_penalty", "frequency_penalty"), "penalties count generated tokens only"),
    (_drawn, "the seeded generator starts anew"),
    (
        lambda fields: fields.get("logprobs") is not None and fields["logprobs"] is not False,
        "logprobs have another form",
    ),
    (_set("repetition_detection", "bad_words", "vllm_xargs"), "a count over generated tokens starts anew"),
)


def _first(rules: _Rules, fields: dict[str, Any]) -> str:
    return next((why for applies, why in rules if applies(fields)), "")
