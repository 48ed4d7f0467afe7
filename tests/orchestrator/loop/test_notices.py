"""The notices of a source come into the inbox, whatever becomes of the source and of its acknowledgements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from cloud.errors import CloudError
from orchestrator.loop.inbox import Inbox
from orchestrator.loop.notices import hear
from policies.events import NoticeSeen
from policies.model import Confidence, Notice, NoticeKind

pytestmark = pytest.mark.usefixtures("quiet")

Play = Callable[[Callable[[Any], Awaitable[Any]]], Any]


def notice(node: str) -> Notice:
    return Notice(
        id=f"of {node}",
        kind=NoticeKind.INTERRUPTION,
        node=node,
        deadline=120.0,
        source="feed",
        confidence=Confidence.CONFIRMED,
        seen_at=0.0,
    )


class Feed:
    """A source that tells one notice each time it is heard, and then fails or ends. An acknowledgement
    `takes` so many seconds."""

    name = "feed"

    def __init__(
        self,
        *nodes: str,
        fails: bool = False,
        takes_none: frozenset[str] = frozenset(),
        takes: float = 0.0,
    ) -> None:
        self.left, self.fails, self.takes_none, self.takes = list(nodes), fails, takes_none, takes
        self.heard, self.asked, self.acknowledged = 0, 0, list[str]()

    async def stream(self) -> AsyncIterator[Notice]:
        self.heard += 1
        if self.left:
            yield notice(self.left.pop(0))
        if self.fails:
            raise CloudError("the connection was closed")

    async def acknowledge(self, said: Notice) -> None:
        self.asked += 1
        await asyncio.sleep(self.takes)
        if said.node in self.takes_none:
            raise CloudError("expired")
        self.acknowledged.append(said.node)


def hearing(play: Play, feed: Feed, work: Callable[[Any, Inbox], Awaitable[None]]) -> None:
    async def whole(clock: Any) -> None:
        inbox = Inbox()
        task = asyncio.create_task(hear(feed, inbox, clock))  # type: ignore[arg-type]
        try:
            await work(clock, inbox)
        finally:
            task.cancel()

    play(whole)


@pytest.mark.parametrize("fails", [True, False])
def test_a_source_that_fails_or_ends_is_heard_again_a_second_later(play: Play, *, fails: bool) -> None:
    feed = Feed("a", "b", fails=fails)

    async def work(clock: Any, inbox: Inbox) -> None:
        await clock.sleep(0.5)
        assert feed.heard == 1
        await clock.sleep(2.0)
        assert feed.heard == 3
        events, _ = inbox.take_all()
        assert [(e.at, e.notice.node) for e in events if isinstance(e, NoticeSeen)] == [
            (pytest.approx(events[0].at), "a"),
            (pytest.approx(events[0].at + 1.0), "b"),
        ]

    hearing(play, feed, work)


def test_each_notice_is_acknowledged_once_it_is_on_disk_and_not_before(play: Play) -> None:
    feed = Feed("a", "b", "c", takes_none=frozenset("a"))

    async def work(clock: Any, inbox: Inbox) -> None:
        await clock.sleep(2.5)
        assert feed.acknowledged == []
        inbox.mark_written(2)
        await clock.sleep(0.1)
        assert feed.acknowledged == ["b"], "that of a is not taken, and holds up no other one"
        inbox.mark_written(3)
        await clock.sleep(0.1)
        assert feed.acknowledged == ["b", "c"]

    hearing(play, feed, work)


@pytest.mark.parametrize("under_way", [True, False])
def test_a_source_that_is_heard_no_more_is_not_told_to_forget_anything(
    play: Play, *, under_way: bool
) -> None:
    """What the loop took and did not write before it ended is lost, whatever its successor writes."""
    feed = Feed("a", takes=5.0)

    async def work(clock: Any) -> None:
        inbox = Inbox()
        task = asyncio.create_task(hear(feed, inbox, clock))  # type: ignore[arg-type]
        await clock.sleep(0.5)
        if under_way:
            inbox.mark_written(1)
            await clock.sleep(1.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        inbox.mark_written(1)
        await clock.sleep(10.0)
        assert feed.asked == under_way
        assert feed.acknowledged == []

    play(work)
