"""Events wait in order, wake the loop, and are acknowledged only once they are on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from orchestrator.loop.inbox import Inbox
from policies.events import Event, NodeMissing, NoticeSeen
from policies.model import Confidence, Notice, NoticeKind

Play = Callable[[Callable[[Any], Awaitable[Any]]], Any]


def event(node: str = "n") -> Event:
    return NodeMissing(at=1.0, node=node)


def notice(node: str = "n") -> NoticeSeen:
    said = Notice(
        id="1",
        kind=NoticeKind.INTERRUPTION,
        node=node,
        deadline=9.0,
        source="feed",
        confidence=Confidence.CONFIRMED,
        seen_at=1.0,
    )
    return NoticeSeen(at=1.0, notice=said)


async def test_events_come_out_in_order_and_once() -> None:
    inbox = Inbox()
    put = [event(str(i)) for i in range(5)]
    tickets = [inbox.put(e) for e in put]
    taken, last = inbox.take_all()
    assert list(taken) == put
    assert tickets == [1, 2, 3, 4, 5]
    assert last == 5
    assert inbox.take_all() == ((), 5)


async def test_a_ticket_is_good_once_it_is_on_disk() -> None:
    inbox = Inbox()
    first, second = inbox.put(event()), inbox.put(event())
    waiting = [asyncio.ensure_future(inbox.written(t)) for t in (first, second, first)]
    await asyncio.sleep(0)
    inbox.take_all()
    await asyncio.sleep(0)
    assert not any(w.done() for w in waiting)  # taken is not written
    inbox.mark_written(first)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [w.done() for w in waiting] == [True, False, True]
    inbox.mark_written(second)
    await asyncio.wait_for(waiting[1], 20)
    await asyncio.wait_for(inbox.written(first), 20)


async def test_one_who_stops_waiting_takes_nobody_along() -> None:
    inbox = Inbox()
    ticket = inbox.put(event())
    first, second = (asyncio.ensure_future(inbox.written(ticket)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    inbox.mark_written(ticket)
    await asyncio.wait_for(second, 20)
    assert first.cancelled()


async def test_a_full_inbox_drops_the_oldest_and_never_acknowledges_it() -> None:
    inbox = Inbox(limit=3)
    lost = inbox.put(notice("lost"))
    waiting = asyncio.ensure_future(inbox.written(lost))
    await asyncio.sleep(0)
    kept = [inbox.put(event(str(i))) for i in range(3)]
    assert inbox.dropped == 1
    taken, last = inbox.take_all()
    assert [e.node for e in taken if isinstance(e, NodeMissing)] == ["0", "1", "2"]
    inbox.mark_written(last)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 20)
    with pytest.raises(asyncio.CancelledError):
        await inbox.written(lost)  # also for one who asks late
    await asyncio.wait_for(inbox.written(kept[-1]), 20)


async def test_an_overloaded_inbox_stays_small() -> None:
    inbox = Inbox(limit=10)
    for _ in range(1000):
        for _ in range(13):
            last = inbox.put(event())
        inbox.take_all()
        inbox.mark_written(last)
    assert inbox.dropped == 3000
    assert len(inbox._lost) <= 30


def test_an_event_or_a_poke_wakes_and_a_notice_ends_the_debounce(play: Play) -> None:
    async def work(clock: Any) -> list[float]:
        inbox, found = Inbox(), []

        async def waited(later: float, act: Callable[[], object], *, debounce: float) -> None:
            began = clock.now()
            asyncio.get_running_loop().call_later(later, act)
            await inbox.wait(10.0, debounce=debounce)
            found.append(round(clock.now() - began, 3))
            inbox.take_all()

        await waited(2.0, lambda: inbox.put(event()), debounce=0.5)
        await waited(2.0, inbox.poke, debounce=0.5)
        await waited(2.0, lambda: inbox.put(notice()), debounce=0.5)
        await waited(20.0, lambda: None, debounce=0.5)
        inbox.put(notice())
        await waited(20.0, lambda: None, debounce=0.5)
        return found

    assert play(work) == [2.5, 2.5, 2.0, 10.0, 0.0]


def test_a_notice_during_the_debounce_ends_it(play: Play) -> None:
    async def work(clock: Any) -> float:
        inbox, began = Inbox(), clock.now()
        inbox.put(event())
        asyncio.get_running_loop().call_later(0.1, lambda: inbox.put(notice()))
        await inbox.wait(10.0, debounce=5.0)
        return round(clock.now() - began, 3)

    assert play(work) == 0.1
