"""A journal from a time when the clock was ahead: nothing in it lies in the future for the next daemon."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from policies.actions import ActionKind, Cause
from policies.clock_step import not_in_future
from policies.events import (
    DaemonStarted,
    DrainStarted,
    IntentClosed,
    IntentOpened,
    NodeReady,
    NodeSeen,
    NoticeSeen,
    OperatorDrained,
    Outcome,
    PartBack,
    PartLost,
    Paused,
    PoolConfigured,
    PoolWhole,
    StateChanged,
)
from policies.memory import Memory, reduce
from policies.model import Confidence, Market, Notice, NoticeKind, PartKind, Placement

SPOT = Placement("toy", "r", "a", "gpu", Market.SPOT)
AHEAD = 100_000.0
NOW = 50_000.0


def remembered() -> Memory:
    """A little of everything, at `AHEAD`."""
    notice = Notice(
        id="n",
        kind=NoticeKind.INTERRUPTION,
        node="a",
        deadline=AHEAD + 60.0,
        source="feed",
        confidence=Confidence.CONFIRMED,
        seen_at=AHEAD,
    )
    at = AHEAD
    return reduce(
        Memory(),
        DaemonStarted(at=at, epoch=1),
        PoolConfigured(at=at, replicas=1),
        NodeSeen(
            at=at, node="a", token="t", placement=SPOT, launched_at=at, price=1.0, address="x:1", standby=None
        ),
        NodeReady(at=at, node="a", address="x:1"),
        PoolWhole(at=at),
        NoticeSeen(at=at, notice=notice),
        NoticeSeen(at=at, notice=dataclasses.replace(notice, node="early")),
        OperatorDrained(at=at, node="a", budget=30.0, reason="r"),
        DrainStarted(at=at, node="a", deadline=at + 20.0, cause=Cause.NOTICE, reason="r"),
        IntentOpened(at=at, token="p/1/1", kind=ActionKind.LAUNCH, node="", placement=SPOT, replaces="a"),
        IntentOpened(at=at, token="p/1/2", kind=ActionKind.LAUNCH, node="", placement=SPOT),
        IntentClosed(at=at, token="p/1/2", outcome=Outcome.REFUSED, node="", detail=""),
        PartLost(at=at, kind=PartKind.BALANCER, part="gateway", since=at, error="e"),
        PartLost(at=at, kind=PartKind.CLOUD, part="instances", since=at, error="e"),
        PartBack(at=at, kind=PartKind.CLOUD, part="instances", after=1.0),
        StateChanged(at=at, state="ok", before="", why="w"),
        Paused(at=at, by="me", reason="r", until=at + 300.0),
    )


def instants(value: Any) -> Iterator[float]:
    """Every number in memory that can only be an instant."""
    if isinstance(value, float) and value >= 1000.0:
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from instants(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from instants(each)
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from instants(getattr(value, each.name))


def test_nothing_lies_in_the_future_but_what_the_cloud_named_and_what_was_left_of_a_wait() -> None:
    memory = reduce(remembered(), DaemonStarted(at=NOW, epoch=2))
    later = {at for at in instants(memory) if at > NOW}
    assert later == {AHEAD + 60.0, NOW + 20.0, NOW + 300.0}
    drain = memory.nodes["a"].drain
    assert drain is not None
    assert (drain.since, drain.deadline) == (NOW, NOW + 20.0)
    assert memory.pause is not None
    assert memory.pause.until == NOW + 300.0
    assert memory.nodes["a"].notices[0].deadline == AHEAD + 60.0


def test_open_calls_are_due_as_if_asked_just_now() -> None:
    intent = reduce(remembered(), DaemonStarted(at=NOW, epoch=2)).intents["p/1/1"]
    assert not intent.due(NOW, 60.0)
    assert intent.due(NOW + 1.0, 60.0)


@pytest.mark.parametrize("later", [0.0, 10.0])
def test_a_memory_of_the_past_stays_as_it_is(later: float) -> None:
    assert not_in_future(remembered(), AHEAD + later) == remembered()
