"""Which keys hold, and what they may ask for."""

from __future__ import annotations

import pytest

from policies.keys import ClientKey, KeyLimits, KeyState
from policies.value import replace

KEY = ClientKey(name="team-a", sha256="ab" * 32)


def test_a_key_without_an_end_holds_at_any_time() -> None:
    assert {KEY.state(now) for now in (-1.0, 0.0, 1e12)} == {KeyState.VALID}


def test_a_key_ends_with_the_instant_that_it_names() -> None:
    ends = replace(KEY, expires=1000.0)
    assert [ends.state(now) for now in (999.9, 1000.0)] == [KeyState.VALID, KeyState.EXPIRED]


def test_a_key_holds_before_the_clock_reaches_its_making() -> None:
    """The host that made it may be ahead of the one that reads it."""
    assert replace(KEY, created=5000.0).state(1.0) is KeyState.VALID


@pytest.mark.parametrize("revoked", [0.0, 10.0, 1e12])
def test_a_revoked_key_never_holds_whatever_the_clock_says(revoked: float) -> None:
    gone = replace(KEY, revoked=revoked, expires=5.0)
    assert {gone.state(now) for now in (-1.0, 4.0, 9.0, 2e12)} == {KeyState.REVOKED}


@pytest.mark.parametrize(
    ("patterns", "model", "allowed"),
    [
        (("*",), "anything", True),
        (("*",), "", True),
        (("chat",), "chat", True),
        (("chat",), "Chat", False),
        (("chat",), "chat-2", False),
        (("chat",), "", False),
        (("?*",), "", False),
        (("llama-*", "bge"), "llama-3-8b", True),
        (("llama-*", "bge"), "bge", True),
        (("meta/*",), "meta/llama/8b", True),
        ((), "chat", False),
        ((), "", False),
    ],
)
def test_names_are_matched_as_patterns(patterns: tuple[str, ...], model: str, allowed: bool) -> None:
    assert replace(KEY, models=patterns).may_ask(model) is allowed


def test_only_a_bare_star_stands_for_what_is_of_no_model() -> None:
    assert KEY.asks_all
    assert not replace(KEY, models=("**",)).asks_all


def test_limits_of_nothing_are_none() -> None:
    assert KeyLimits().none
    assert not KeyLimits(usd_per_day=0).none
    assert not KeyLimits(in_flight=1).none
