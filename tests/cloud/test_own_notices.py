"""Notices of other people's machines do not reach the journal, and none of the pool's is lost."""

import asyncio
from contextlib import aclosing

import pytest

from cloud.errors import CloudError, Uncertain
from cloud.own_notices import MOST_WAITING, PATIENCE, OwnNotices
from policies.model import Confidence, Notice, NoticeKind

WAIT = 30.0


class JumpingClock:
    """Time that passes only by sleeping, at once."""

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def steady(self):
        return self.time

    async def sleep(self, seconds):
        self.time += seconds
        await asyncio.sleep(0)


class StoppedClock(JumpingClock):
    """Time that does not pass."""

    async def sleep(self, seconds):
        await asyncio.Event().wait()


class Judged:
    """What is known of machines."""

    def __init__(self, known):
        self.known = known

    def __call__(self, node):
        return self.known(node) is not False


class Source:
    """Tells what it is given, then waits; or fails."""

    name = "played"

    def __init__(self, *told, fails=None, refuses=False):
        self.told, self.fails, self.refuses = told, fails, refuses
        self.acknowledged = []
        self.closed = False

    async def stream(self):
        for notice in self.told:
            yield notice
        if self.fails is not None:
            raise self.fails
        await asyncio.Event().wait()

    async def acknowledge(self, notice):
        if self.refuses:
            raise Uncertain("not confirmed")
        self.acknowledged.append(notice.node)

    def age(self):
        return 7.0

    async def close(self):
        self.closed = True


def notice(node):
    return Notice(
        id=f"n/{node}",
        kind=NoticeKind.INTERRUPTION,
        node=node,
        deadline=120.0,
        source="played",
        confidence=Confidence.CONFIRMED,
        seen_at=0.0,
    )


async def take(own, count):
    found = []
    async with asyncio.timeout(WAIT), aclosing(own.stream()) as stream:
        async for told in stream:
            found.append(told.node)
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


async def test_a_strangers_notice_is_acknowledged_and_not_passed_on():
    source = Source(notice("theirs"), notice("ours"))
    own = OwnNotices(source, JumpingClock(), whose=Judged(lambda node: node == "ours"))
    assert await take(own, 1) == ["ours"]
    await asyncio.sleep(0)
    assert source.acknowledged in (["theirs"], [])  # the stream may have ended first
    assert own.strangers == len(source.acknowledged)


async def test_while_a_launch_is_under_way_a_notice_waits_until_it_is_known_whose_it_is():
    clock, source = JumpingClock(), Source(notice("theirs"), notice("ours"))
    judged = {"ours": True, "theirs": False}
    own = OwnNotices(source, clock, whose=Judged(lambda node: judged[node] if clock.time >= 5.0 else None))
    assert await take(own, 1) == ["ours"]
    assert 5.0 <= clock.time < PATIENCE
    assert source.acknowledged == ["theirs"]
    assert own.strangers == 1


async def test_a_notice_of_a_machine_that_nobody_can_place_counts_after_a_while():
    clock, source = JumpingClock(), Source(notice("new"))
    assert await take(OwnNotices(source, clock, whose=Judged(lambda _node: None)), 1) == ["new"]
    assert clock.time >= PATIENCE
    assert source.acknowledged == []


async def test_a_notice_of_ours_overtakes_those_that_wait():
    source = Source(notice("new"), notice("ours"))
    clock = JumpingClock()
    own = OwnNotices(source, clock, whose=Judged(lambda node: True if node == "ours" else None))
    assert await take(own, 2) == ["ours", "new"]


async def test_no_more_wait_than_there_is_room_for():
    source = Source(*(notice(f"i-{n}") for n in range(MOST_WAITING + 1)))
    own = OwnNotices(source, StoppedClock(), whose=Judged(lambda _node: None))
    assert await take(own, 1) == [f"i-{MOST_WAITING}"]


@pytest.mark.parametrize("fault", [CloudError("gone"), ValueError("gone")], ids=repr)
async def test_a_source_that_ends_with_an_error_says_so(fault):
    own = OwnNotices(Source(fails=fault), JumpingClock(), whose=Judged(lambda _node: True))
    with pytest.raises(type(fault), match="gone"):
        await take(own, 1)


async def test_an_acknowledgement_that_fails_ends_nothing():
    source = Source(notice("theirs"), notice("ours"), refuses=True)
    own = OwnNotices(source, JumpingClock(), whose=Judged(lambda node: node == "ours"))
    assert await take(own, 1) == ["ours"]


async def test_the_rest_is_the_sources_affair():
    source = Source()
    own = OwnNotices(source, JumpingClock(), whose=Judged(lambda _node: True))
    await own.acknowledge(notice("ours"))
    await own.close()
    assert (own.name, own.age(), source.acknowledged, source.closed) == ("played", 7.0, ["ours"], True)
