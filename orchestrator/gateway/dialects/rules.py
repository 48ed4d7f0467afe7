"""What makes a plain 200 answer whole: the parts that the dialects' rules are made of. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from orchestrator.gateway.dialects import Verdict
from orchestrator.gateway.failure import Failure

if TYPE_CHECKING:
    from orchestrator.gateway.asked import Asked

Check = Callable[["Asked", dict[str, Any]], Failure | None]
Rule = Callable[["Asked", bytes], Verdict]


def anything(_: Asked, _body: bytes) -> Verdict:
    """The rule of what the gateway cannot judge: every answer is whole."""
    return Verdict()


def told_usage(answer: dict[str, Any]) -> Any:
    """Where most dialects tell what was used."""
    return answer.get("usage")


def json_rule(
    check: Check, *, has_error: bool = False, told: Callable[[dict[str, Any]], Any] = told_usage
) -> Rule:
    """A rule for answers that are a JSON object; the rest is up to `check`, the usage to `told`.

    An `error` in a 200 answer is the engine's failure, unless the dialect has a field of this name.
    """

    def whole(asked: Asked, body: bytes) -> Verdict:
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            return Verdict(Failure.BAD_RESPONSE)
        if not isinstance(answer, dict):
            return Verdict(Failure.BAD_RESPONSE)
        if answer.get("error") and not has_error:
            return Verdict(Failure.ENGINE_ERROR)
        return Verdict(check(asked, answer), told(answer))

    return whole


def holds(answer: dict[str, Any], name: str, count: int, *filled: str) -> Failure | None:
    """The list under `name` has at least `count` objects, each with something in one of `filled`."""
    rows = answer.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return Failure.BAD_RESPONSE
    if len(rows) < count or (
        filled and not all(any(row.get(key) is not None for key in filled) for row in rows)
    ):
        return Failure.INCOMPLETE
    return None


def an_object(_: Asked, _answer: dict[str, Any]) -> Failure | None:
    """The check that asks for nothing more than a JSON object."""
    return None


def always(_: dict[str, Any] | None) -> bool:
    """Requests that may run twice: they only compute."""
    return True


def never(_: dict[str, Any] | None) -> bool:
    """Requests that must not run twice: each makes something."""
    return False


def items(value: Any) -> int:
    """How many inputs a field holds: a text, or a list with ids of tokens in it, is one. llama.cpp takes
    texts among them.
    """
    if isinstance(value, list) and value and not any(isinstance(one, int) for one in value):
        return len(value)
    return 0 if value is None else 1


def number(value: Any) -> int | None:
    """A positive count as engines read it: pydantic takes "3" and 3.0 too."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
