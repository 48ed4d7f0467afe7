"""What a journal keeps, whatever database it is in."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.journal.store import SCHEMA_VERSION, Store, StoreUnavailable, decoded, node_of
from policies.actions import ActionKind, Cause
from policies.economics import BaselineHour, Charge
from policies.events import (
    Event,
    IntentClosed,
    IntentOpened,
    NodeMissing,
    NodeSeen,
    NoticeSeen,
    Outcome,
    PoolConfigured,
)
from policies.memory import Memory, replay
from policies.model import Confidence, Market, Notice, NoticeKind, Placement

PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)
BASELINE = BaselineHour(pool="p", hour=0, on_demand_usd=2.0)


def seen(number: int) -> NodeSeen:
    return NodeSeen(
        at=float(number),
        node=f"i-{number}",
        token=f"p/1/{number}",
        placement=PLACE,
        launched_at=float(number),
        price=1.0,
        address=f"10.0.0.{number}:1",
        standby=None,
    )


def opened(token: str, at: float = 1.0) -> IntentOpened:
    return IntentOpened(
        at=at,
        token=token,
        kind=ActionKind.LAUNCH,
        node="",
        placement=PLACE,
        cause=Cause.SHORT,
        reason="missing",
    )


def notice(node: str) -> NoticeSeen:
    said = Notice(
        id="n1",
        kind=NoticeKind.INTERRUPTION,
        node=node,
        deadline=9.0,
        source="feed",
        confidence=Confidence.CONFIRMED,
        seen_at=1.0,
    )
    return NoticeSeen(at=1.0, notice=said)


def intents(journal: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = journal.sql(
        "SELECT token, asked, outcome, node FROM intents ORDER BY opened_at"
    )
    return found


async def test_a_new_journal_is_empty(store: Store) -> None:
    assert await store.load("p") == Memory()
    assert await store.events() == []
    assert await store.last_seq() == 0


async def test_memory_is_what_the_events_say(store: Store) -> None:
    history: list[Event] = [PoolConfigured(at=0.0, replicas=4), *(seen(i) for i in range(5)), notice("i-2")]
    await store.append("p", history[:3])
    await store.append("p", history[3:])
    await store.append("p", [])
    assert await store.load("p") == replay(history)
    assert decoded(await store.events()) == history


async def test_pools_are_kept_apart(store: Store) -> None:
    await store.append("p", [seen(1)])
    await store.append("q", [seen(2)])
    assert list((await store.load("p")).nodes) == ["i-1"]
    assert list((await store.load("q")).nodes) == ["i-2"]


async def test_events_are_found_by_number_and_by_node(store: Store) -> None:
    await store.append("p", [seen(1), seen(2), NodeMissing(at=3.0, node="i-1"), notice("i-1"), opened("t")])
    assert [e.kind for e in await store.events(node="i-1")] == ["NodeSeen", "NodeMissing", "NoticeSeen"]
    assert [e.seq for e in await store.events(after=2, limit=2)] == [3, 4]
    assert [e.seq for e in await store.events(newest=True, limit=2)] == [4, 5]
    assert await store.last_seq() == 5
    assert node_of(opened("t")) is None


async def test_a_snapshot_shortens_the_journal_and_changes_nothing(store: Store) -> None:
    history: list[Event] = [PoolConfigured(at=0.0, replicas=4), *(seen(i) for i in range(5))]
    await store.append("p", history)
    await store.append("q", [seen(9)])
    await store.snapshot("p", replay(history), keep_after=3.0)
    assert [e.at for e in await store.events() if e.pool == "p"] == [3.0, 4.0]
    assert await store.load("p") == replay(history)
    await store.append("p", [notice("i-3")])
    assert await store.load("p") == replay([*history, notice("i-3")])
    assert list((await store.load("q")).nodes) == ["i-9"]


async def test_an_unreadable_snapshot_and_entry_are_passed_over(store: Store, journal: Any) -> None:
    await store.append("p", [PoolConfigured(at=0.0, replicas=4), seen(1)])
    await store.snapshot("p", await store.load("p"), keep_after=0.0)
    await store.append("p", [seen(2)])
    journal.sql("UPDATE snapshots SET body=?", b"{")
    journal.sql("UPDATE events SET body=? WHERE seq=2", b"{")
    journal.sql("INSERT INTO events (pool, at, kind, body) VALUES ('p', 1, 'FromTheFuture', ?)", b"{}")
    memory = await store.load("p")
    assert memory.replicas == 4
    assert list(memory.nodes) == ["i-2"]


async def test_epochs_rise_and_follow_the_clock(store: Store) -> None:
    assert await store.next_epoch(500.0) == 500
    assert await store.next_epoch(500.0) == 501
    assert await store.next_epoch(400.0) == 502
    assert await store.next_epoch(9000.5) == 9000
    assert await store.next_epoch(400.0, after=9500) == 9501
    assert await store.next_epoch(400.0, after=9000) == 9502


async def test_intents_and_their_outcomes_can_be_read_without_the_events(store: Store, journal: Any) -> None:
    await store.append("p", [opened("t1"), opened("t2", 2.0)])
    await store.append("p", [opened("t1", 3.0)])  # asked again
    await store.append("p", [IntentClosed(at=4.0, token="t1", outcome=Outcome.DONE, node="i-1")])
    await store.append("p", [IntentClosed(at=5.0, token="unknown", outcome=Outcome.FAILED)])
    assert intents(journal) == [("t1", 2, "done", "i-1"), ("t2", 1, None, None)]


async def test_money_adds_up(store: Store, journal: Any) -> None:
    charge = Charge(node="i-1", placement=PLACE, hour=0, seconds=60.0, usd=0.5)
    nothing = await store.totals("p")
    assert (nothing.usd, nothing.on_demand_usd, nothing.charged_until) == (0.0, 0.0, None)
    await store.charge("p", [charge], baseline=[BASELINE], until=60.0)
    await store.charge("p", [charge], baseline=[BASELINE], until=120.0)
    totals = await store.totals("p")
    assert (totals.usd, totals.on_demand_usd, totals.charged_until) == (1.0, 4.0, 120.0)
    assert journal.sql("SELECT node, seconds, usd FROM ledger") == [("i-1", 120.0, 1.0)]


async def test_text_that_utf8_cannot_hold_is_written_all_the_same(store: Store) -> None:
    bad = IntentClosed(at=1.0, token="t1", outcome=Outcome.FAILED, detail="half \ud800")
    await store.append("p", [opened("t1"), notice("i-\ud800"), bad])
    assert [e.node for e in await store.events(node="i-?")] == ["i-?"]


# -- all or nothing ------------------------------------------------------------------------------------


async def test_a_batch_is_written_whole_or_not_at_all(store: Store, journal: Any) -> None:
    await store.append("p", [seen(1)])
    journal.sql("CREATE UNIQUE INDEX once ON events (node)")
    with pytest.raises(StoreUnavailable):
        await store.append("p", [opened("t"), seen(2), seen(1), seen(3)])
    assert [e.node for e in await store.events()] == ["i-1"]
    assert intents(journal) == []
    await store.append("p", [seen(2)])  # the connection is usable afterwards
    assert [e.node for e in await store.events()] == ["i-1", "i-2"]


async def test_a_closed_journal_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="the journal is closed"):
        await store.append("p", [seen(1)])
    with pytest.raises(StoreUnavailable, match="the journal is closed"):
        await store.events()


async def test_text_with_a_nul_is_written_all_the_same(store: Store) -> None:
    bad = IntentClosed(at=1.0, token="t1", outcome=Outcome.FAILED, detail="half\0")
    await store.append("p", [opened("t1"), notice("i-\0"), bad])
    assert [e.kind for e in await store.events()] == ["IntentOpened", "NoticeSeen", "IntentClosed"]
    assert decoded(await store.events())[-1] == bad


async def test_a_journal_is_found_again(journal: Any) -> None:
    first = journal.open()
    assert await first.next_epoch(500.0) == 500
    await first.append("p", [seen(1), opened("t")])
    await first.charge("p", [], baseline=[BASELINE], until=60.0)
    again = journal.open()
    assert list((await again.load("p")).nodes) == ["i-1"]
    assert (await again.totals("p")).on_demand_usd == 2.0
    assert await again.next_epoch(400.0) == 501


async def test_a_newer_journal_is_refused_and_left_as_it_is(journal: Any) -> None:
    journal.open()
    journal.sql("UPDATE meta SET value=? WHERE key='schema'", str(SCHEMA_VERSION + 1))
    with pytest.raises(StoreUnavailable, match=r"written by a newer version \(schema 4"):
        journal.open()
    assert journal.sql("SELECT value FROM meta WHERE key='schema'") == [(str(SCHEMA_VERSION + 1),)]


async def test_a_journal_of_the_first_version_opens_and_gains_the_tables(journal: Any) -> None:
    store = journal.open()
    await store.append("p", [seen(1)])
    for table in ("recordings", "turns", "parts"):
        journal.sql(f"DROP TABLE {table}")
    journal.sql("ALTER TABLE events DROP COLUMN epoch")
    journal.sql("UPDATE meta SET value='1' WHERE key='schema'")
    again = journal.open()
    await again.append("p", [seen(2)])
    assert list((await again.load("p")).nodes) == ["i-1", "i-2"]
    assert journal.sql("SELECT COUNT(*) FROM recordings") == [(0,)]
