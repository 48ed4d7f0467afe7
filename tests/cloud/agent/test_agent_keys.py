"""Who gets a node's key: the node that proves itself, of this pool, with a challenge given to it lately."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hand_clock import HandClock

from cloud.agent_keys import CHALLENGE_SECONDS, NodeKeys
from cloud.errors import Denied

NODE, OTHER = "i-0000000000000000a", "i-0000000000000000b"


def keys(*owned: str, proves: str = NODE) -> tuple[NodeKeys, HandClock, list[Any]]:
    asked: list[Any] = []

    async def identify(headers: Any, challenge: str) -> str:
        asked.append(headers)
        return proves

    clock = HandClock()
    made = NodeKeys(clock, secret=b"s" * 16, identify=identify, owned=lambda node: node in owned)
    return made, clock, asked


def signed(challenge: Any, headers: Any = None) -> bytes:
    return orjson.dumps({"challenge": challenge, "headers": {"a": "b"} if headers is None else headers})


async def test_a_node_of_the_pool_that_proves_itself_gets_its_key() -> None:
    made, clock, asked = keys(NODE)
    challenge = made._made(NODE, int(clock.now()))
    assert await made._proved(NODE, signed(challenge)) == NODE
    assert asked == [{"a": "b"}]


async def test_nobody_else_does_and_no_stranger_costs_a_call_of_the_provider() -> None:
    made, clock, asked = keys(OTHER)
    challenge = made._made(NODE, int(clock.now()))
    with pytest.raises(Denied, match="no node of this pool"):
        await made._proved(NODE, signed(challenge))
    with pytest.raises(Denied, match="not one that was given"):
        await made._proved(OTHER, signed(challenge))
    for body in (b"no JSON", b"[]", signed(challenge, ["a"]), signed(challenge, {"a": 1})):
        with pytest.raises(Denied, match="not one of ours"):
            await made._proved(NODE, body)
    assert asked == []
    made, clock, asked = keys(NODE, proves=OTHER)
    with pytest.raises(Denied, match=f"it is {OTHER}"):
        await made._proved(NODE, signed(made._made(NODE, int(clock.now()))))


@pytest.mark.parametrize(
    ("later", "good"),
    [(0.0, True), (CHALLENGE_SECONDS, True), (CHALLENGE_SECONDS + 1.0, False), (-1.0, False)],
)
async def test_a_challenge_is_good_for_a_while(later: float, *, good: bool) -> None:
    made, clock, _ = keys(NODE)
    challenge = made._made(NODE, int(clock.now()))
    clock.at += later
    assert made._is_ours(NODE, challenge) is good
    assert not made._is_ours(NODE, challenge[:-1] + ("0" if challenge[-1] != "0" else "1"))
    assert not made._is_ours(NODE, f"x{challenge}")
