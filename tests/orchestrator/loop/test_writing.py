"""What waits for a journal and what does not: order is kept, nothing is written twice, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.journal.store import StoreUnavailable, Superseded
from orchestrator.loop.inbox import Inbox
from orchestrator.loop.writing import Writing
from policies.events import AlarmRaised, Event, NoticeSeen
from policies.model import Confidence, Notice, NoticeKind

pytestmark = pytest.mark.usefixtures("quiet")


def news(number: int) -> AlarmRaised:
    return AlarmRaised(at=float(number), name=f"{number}", text="")


def notice() -> NoticeSeen:
    said = Notice(
        id="n",
        kind=NoticeKind.INTERRUPTION,
        node="i-1",
        deadline=9.0,
        source="s",
        confidence=Confidence.CONFIRMED,
        seen_at=0.0,
    )
    return NoticeSeen(at=0.0, notice=said)


class Held:
    """A journal that answers when it is let, with what it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may = asyncio.Event()
        self.may.set()
        self.error: Exception | None = None

    async def append(self, _pool: str, events: Sequence[Event]) -> None:
        await self.may.wait()
        if self.error is not None:
            raise self.error
        self.batches.append([event.name for event in events if isinstance(event, AlarmRaised)])

    async def charge(self, *_: Any, **__: Any) -> None:
        await self.may.wait()


@pytest.fixture
def journal() -> Held:
    return Held()


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def writing(journal: Held, inbox: Inbox) -> Writing:
    return Writing("p", journal, inbox)


async def turns_of_the_loop(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_turn_waits_for_its_events_to_be_on_disk(writing: Writing, journal: Held) -> None:
    journal.may.clear()
    turn = asyncio.ensure_future(writing.write([news(1)], urgent=False))
    await turns_of_the_loop()
    assert not turn.done()
    assert not writing.settled
    journal.may.set()
    assert await turn
    assert (journal.batches, writing.settled) == ([["1"]], True)


async def test_a_notice_ends_the_wait_and_what_is_under_way_goes_on(
    writing: Writing, journal: Held, inbox: Inbox
) -> None:
    journal.may.clear()
    turn = asyncio.ensure_future(writing.write([news(1)], urgent=False))
    await turns_of_the_loop()
    inbox.put(notice())
    assert not await turn
    assert (writing.settled, writing.under_way, writing.behind) == (False, True, 1)
    assert writing.durable, "slow is not broken"
    inbox.take_all()
    assert not await writing.write([news(2)], urgent=True), "the turn of the notice does not wait either"
    assert writing.behind == 2
    journal.may.set()
    assert await writing.write([news(3)], urgent=False)
    assert journal.batches == [["1"], ["2", "3"]]
    assert (writing.settled, writing.behind, writing.under_way) == (True, 0, False)


@pytest.mark.parametrize("urgent", [False, True])
async def test_a_write_that_hangs_counts_as_one_that_failed_until_it_is_done(
    writing: Writing, journal: Held, monkeypatch: pytest.MonkeyPatch, urgent: bool
) -> None:
    monkeypatch.setattr("orchestrator.loop.writing.HANGS_AFTER", 0.01)
    journal.may.clear()
    assert not await writing.write([news(1)], urgent=urgent)
    assert not await writing.write([news(2)], urgent=False), "no turn waits for ever"
    assert (writing.durable, writing.under_way, writing.behind) == (False, True, 2)
    journal.may.set()
    assert await writing.write([news(3)], urgent=False)
    assert journal.batches == [["1"], ["2", "3"]]
    assert (writing.durable, writing.settled) == (True, True)


async def test_an_account_that_hangs_holds_up_no_turn(
    writing: Writing, journal: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.loop.writing.HANGS_AFTER", 0.01)
    journal.may.clear()
    await writing.account(journal.charge())
    journal.may.set()
    await turns_of_the_loop()
    await writing.account(journal.charge())


async def test_the_loop_is_woken_once_a_slow_append_is_done(
    writing: Writing, journal: Held, inbox: Inbox
) -> None:
    journal.may.clear()
    assert not await writing.write([news(1)], urgent=True)
    inbox.take_all()
    journal.may.set()
    assert await inbox.wait(60.0)


async def test_what_fails_while_nobody_waits_is_written_first_next_time(
    writing: Writing, journal: Held
) -> None:
    journal.may.clear()
    journal.error = StoreUnavailable("full")
    assert not await writing.write([news(1)], urgent=True)
    journal.may.set()
    assert not await writing.write([news(2)], urgent=False)
    assert (writing.durable, writing.behind) == (False, 2)
    journal.error = None
    assert await writing.write([news(3)], urgent=False)
    assert journal.batches == [["1", "2", "3"]]


async def test_an_intent_that_was_not_written_can_be_taken_back(writing: Writing, journal: Held) -> None:
    journal.may.clear()
    assert not await writing.write([news(1)], urgent=True)
    intent = news(2)
    assert not await writing.write([intent, news(3)], urgent=True)
    writing.void([intent])
    journal.may.set()
    assert await writing.write([], urgent=False)
    assert journal.batches == [["1"], ["3"]]


async def test_what_precedes_a_deed_is_waited_for_whatever_comes(
    writing: Writing, journal: Held, inbox: Inbox
) -> None:
    journal.may.clear()
    turn = asyncio.ensure_future(writing.write([news(1)]))
    inbox.put(notice())
    await turns_of_the_loop()
    assert not turn.done()
    journal.may.set()
    assert await turn


async def test_another_daemon_that_took_over_is_heard_of_late_too(writing: Writing, journal: Held) -> None:
    journal.may.clear()
    journal.error = Superseded("epoch 2")
    assert not await writing.write([news(1)], urgent=True)
    journal.may.set()
    with pytest.raises(Superseded):
        await writing.write([news(2)], urgent=False)


async def test_the_ledger_goes_on_beside_a_notice_one_at_a_time(
    writing: Writing, journal: Held, inbox: Inbox
) -> None:
    journal.may.clear()
    began: list[int] = []

    async def count(number: int) -> None:
        began.append(number)
        await journal.charge()

    inbox.put(notice())
    await writing.account(count(1))
    await writing.account(count(2))
    assert began == [1]
    journal.may.set()
    await turns_of_the_loop()
    await writing.account(count(3))
    assert began == [1, 3]

    async def superseded() -> None:
        raise Superseded("epoch 2")

    with pytest.raises(Superseded):
        await writing.account(superseded())


async def test_an_account_that_fails_while_nobody_waits_is_heard_of_by_the_next(
    writing: Writing, journal: Held, inbox: Inbox
) -> None:
    journal.may.clear()

    async def superseded() -> None:
        await journal.charge()
        raise Superseded("epoch 2")

    inbox.put(notice())
    await writing.account(superseded())
    journal.may.set()
    await turns_of_the_loop()
    work = journal.charge()
    with pytest.raises(Superseded):
        await writing.account(work)
    work.close()


async def test_what_is_settled_is_on_disk_and_nothing_else(writing: Writing, journal: Held) -> None:
    """Three things unsettle it, each alone: a turn that writes, events that wait, a journal that fails."""
    assert writing.settled
    journal.error = StoreUnavailable("full")
    assert not await writing.write([news(1)], urgent=False)
    assert (writing.settled, writing.behind, writing.durable, writing.under_way) == (False, 1, False, False)
    journal.error, journal.batches = None, []
    assert await writing.write([], urgent=False)
    assert (writing.settled, writing.behind, writing.durable) == (True, 0, True)
    assert journal.batches == [["1"]]


async def test_the_oldest_that_wait_are_dropped_and_that_is_said(
    writing: Writing, journal: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.loop.writing.UNWRITTEN_MOST", 3)
    journal.error = StoreUnavailable("full")
    assert not await writing.write([news(1), news(2), news(3)], urgent=False)
    assert (writing.behind, writing.lost) == (3, False)
    assert not await writing.write([news(4)], urgent=False)
    assert (writing.behind, writing.lost) == (3, True)
    assert not await writing.write([], urgent=False)
    assert writing.lost, "until the loop has heard of it"
    journal.error = None
    assert await writing.write([], urgent=False)
    assert journal.batches == [["2", "3", "4"]]


async def test_stopping_leaves_nothing_behind(writing: Writing, journal: Held) -> None:
    journal.may.clear()
    assert not await writing.write([news(1)], urgent=True)
    await writing.stop()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
