"""The journal survives what happens to processes, files and disks."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store import SCHEMA_VERSION, Store, StoreUnavailable, decoded, node_of
from policies.actions import ActionKind, Cause
from policies.economics import Charge
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


def intents(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as db:
        return db.execute("SELECT token, asked, outcome, node FROM intents ORDER BY opened_at").fetchall()


@pytest.fixture(params=[False, True], ids=["threads", "inline"])
async def store(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    store = Store.open(tmp_path / "journal.db", now=1000.0, inline=request.param)
    yield store
    store.close()


async def test_a_new_journal_is_empty(store: Store) -> None:
    assert await store.load("p") == Memory()
    assert await store.events() == []
    assert await store.last_seq() == 0
    assert store.set_aside is None


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


async def test_an_unreadable_snapshot_and_entry_are_passed_over(store: Store) -> None:
    await store.append("p", [PoolConfigured(at=0.0, replicas=4), seen(1)])
    await store.snapshot("p", await store.load("p"), keep_after=0.0)
    await store.append("p", [seen(2)])
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE snapshots SET body='{'")
        db.execute("UPDATE events SET body='{' WHERE seq=2")
        db.execute("INSERT INTO events (pool, at, kind, body) VALUES ('p', 1, 'FromTheFuture', '{}')")
    memory = await store.load("p")
    assert memory.replicas == 4
    assert list(memory.nodes) == ["i-2"]


async def test_epochs_rise_and_follow_the_clock(store: Store) -> None:
    assert await store.next_epoch(500.0) == 500
    assert await store.next_epoch(500.0) == 501
    assert await store.next_epoch(400.0) == 502
    assert await store.next_epoch(9000.5) == 9000


async def test_intents_and_their_outcomes_can_be_read_without_the_events(store: Store) -> None:
    await store.append("p", [opened("t1"), opened("t2", 2.0)])
    await store.append("p", [opened("t1", 3.0)])  # asked again
    await store.append("p", [IntentClosed(at=4.0, token="t1", outcome=Outcome.DONE, node="i-1")])
    await store.append("p", [IntentClosed(at=5.0, token="unknown", outcome=Outcome.FAILED)])
    assert intents(store.path) == [("t1", 2, "done", "i-1"), ("t2", 1, None, None)]


async def test_money_adds_up(store: Store) -> None:
    charge = Charge(node="i-1", market=Market.SPOT, seconds=60.0, usd=0.5)
    assert (await store.totals("p")).charged_until is None
    await store.charge("p", [charge], on_demand_usd=2.0, until=60.0)
    await store.charge("p", [charge], on_demand_usd=2.0, until=120.0)
    totals = await store.totals("p")
    assert (totals.usd, totals.on_demand_usd, totals.charged_until) == (1.0, 4.0, 120.0)
    with sqlite3.connect(store.path) as db:
        assert db.execute("SELECT node, seconds, usd FROM ledger").fetchall() == [("i-1", 120.0, 1.0)]


async def test_text_that_utf8_cannot_hold_is_written_all_the_same(store: Store) -> None:
    bad = IntentClosed(at=1.0, token="t1", outcome=Outcome.FAILED, detail="half \ud800")
    await store.append("p", [opened("t1"), notice("i-\ud800"), bad])
    assert [e.node for e in await store.events(node="i-?")] == ["i-?"]


# -- all or nothing ------------------------------------------------------------------------------------


async def test_a_batch_is_written_whole_or_not_at_all(store: Store) -> None:
    await store.append("p", [seen(1)])
    with sqlite3.connect(store.path) as db:
        db.execute(
            "CREATE TRIGGER no BEFORE INSERT ON events WHEN NEW.node='i-3' "
            "BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with pytest.raises(StoreUnavailable):
        await store.append("p", [opened("t"), seen(2), seen(3), seen(4)])
    assert [e.node for e in await store.events()] == ["i-1"]
    assert intents(store.path) == []
    await store.append("p", [seen(2)])  # the connection is usable afterwards
    assert [e.node for e in await store.events()] == ["i-1", "i-2"]


WRITER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from orchestrator.store import Store
    from policies.events import NodeMissing

    async def main() -> None:
        store = Store.open(Path(sys.argv[1]), now=1.0)
        number = await store.last_seq()
        while True:
            batch = [NodeMissing(at=1.0, node=f"n{number + i}") for i in range(7)]
            await store.append("p", batch)
            number += 7
            print(number, flush=True)

    asyncio.run(main())
""")


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_it_was_told_is_written(tmp_path: Path) -> None:
    """kill -9 at some instant of a stream of writes, four times on one file."""
    path = tmp_path / "journal.db"
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert writer.stdout is not None
            told = [int(writer.stdout.readline()) for _ in range(5)]
            os.kill(writer.pid, signal.SIGKILL)
            told += [int(line) for line in writer.stdout]
        finally:
            writer.kill()
            writer.communicate(timeout=60)
        store = Store.open(path, now=2.0, inline=True)
        try:
            assert store.set_aside is None
            with sqlite3.connect(path) as db:
                nodes = [row[0] for row in db.execute("SELECT node FROM events ORDER BY seq")]
        finally:
            store.close()
        assert len(nodes) >= told[-1]
        assert len(nodes) % 7 == 0  # no half batch
        assert nodes == [f"n{i}" for i in range(len(nodes))]


# -- files that are not what they should be ------------------------------------------------------------


async def filled(path: Path) -> None:
    store = Store.open(path, now=1.0, inline=True)
    await store.append("p", [seen(i) for i in range(500)])
    store.close()


@pytest.mark.parametrize("damage", ["garbage", "torn page", "overwritten pages", "no version", "bytes"])
async def test_a_corrupt_journal_is_set_aside_whole(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.db"
    await filled(path)
    body = bytearray(path.read_bytes())
    match damage:
        case "garbage":
            body = bytearray(b"this is no database" * 500)
        case "torn page":
            body = body[:-5000]
        case "overwritten pages":
            body[8192:40960] = b"\xa5" * 32768
        case "no version":
            with sqlite3.connect(path) as db:
                db.execute("UPDATE meta SET value='what' WHERE key='schema'")
            body = bytearray(path.read_bytes())
        case "bytes":  # in a name that the message of SQLite repeats
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA writable_schema=ON")
                db.execute("UPDATE sqlite_master SET name=CAST(x'C181EE' AS TEXT) WHERE type='index'")
                db.execute("UPDATE sqlite_master SET tbl_name='gone' WHERE type='index'")
            body = bytearray(path.read_bytes())
    path.write_bytes(body)
    store = Store.open(path, now=1234.5, inline=True)
    assert store.set_aside == tmp_path / "journal.db.corrupt-1234"
    assert store.set_aside.read_bytes()[:4096] == bytes(body[:4096])
    assert await store.load("p") == Memory()
    await store.append("p", [seen(1)])
    assert list((await store.load("p")).nodes) == ["i-1"]
    store.close()


async def test_an_older_corrupt_journal_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    for name in ("", "-2", "-3"):
        path.write_bytes(b"garbage" * 1000 + name.encode())
        store = Store.open(path, now=5.0, inline=True)
        store.close()
        assert store.set_aside == tmp_path / f"journal.db.corrupt-5{name}"
    assert (tmp_path / "journal.db.corrupt-5").read_bytes().endswith(b"garbage")


async def test_an_empty_file_is_a_new_journal(tmp_path: Path) -> None:
    (tmp_path / "journal.db").touch()
    store = Store.open(tmp_path / "journal.db", now=1.0, inline=True)
    assert store.set_aside is None
    assert await store.load("p") == Memory()
    store.close()


async def test_a_newer_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        db.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION + 1),))
    with pytest.raises(StoreUnavailable, match=r"journal.db: written by a newer version \(schema 3"):
        Store.open(path, now=1.0)
    with sqlite3.connect(path) as db:
        tables = db.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
    assert tables == [("meta",)]


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"missing/journal.db: cannot be opened: check that the state"):
        Store.open(tmp_path / "missing" / "journal.db", now=1.0)


async def test_a_closed_journal_says_so(store: Store) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="the journal is closed"):
        await store.append("p", [seen(1)])
    with pytest.raises(StoreUnavailable, match="the journal is closed"):
        await store.events()


async def test_a_file_held_by_another_process_is_unavailable_and_then_is_not(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "journal.db", now=1.0, inline=True)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another process holds the file"):
        await store.append("p", [seen(1)])
    assert await store.events() == []  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    await store.append("p", [seen(1)])
    store.close()


# -- full disks ----------------------------------------------------------------------------------------

FULL = textwrap.dedent("""
    import asyncio, resource, sys
    from pathlib import Path
    from orchestrator.store import Store, StoreUnavailable
    from policies.events import NodeMissing

    def batch(first):
        return [NodeMissing(at=1.0, node=f"n{i}") for i in range(first, first + 200)]

    async def main() -> None:
        store = Store.open(Path(sys.argv[1]), now=1.0)
        await store.append("p", batch(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
        written = 200
        try:
            while written < 100_000:
                await store.append("p", batch(written))
                written += 200
        except StoreUnavailable as error:
            print(error)
        assert len(await store.events(limit=10**6)) == written, "what was there can be read"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await store.append("p", batch(written))
        found = [e.node for e in await store.events(limit=10**6)]
        assert found == [f"n{i}" for i in range(written + 200)], "nothing is missing and nothing is double"
        store.close()

    asyncio.run(main())
""")


@pytest.mark.slow
def test_a_full_disk_is_survived_and_recovered_from(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "journal.db")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stderr == ""
    assert "journal.db: the disk" in done.stdout
    assert "notices are still acted on meanwhile" in done.stdout


async def test_sqlite_that_has_no_page_left_says_that_the_disk_is_full(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "journal.db", now=1.0, inline=True)
    await store.append("p", [seen(1)])
    await store._writer.run(lambda db: db.execute("PRAGMA max_page_count=12").fetchone())
    with pytest.raises(StoreUnavailable, match="the disk is full: free some space"):
        await store.append("p", [seen(i) for i in range(10_000)])
    before = len(await store.events(limit=10**6))
    await store._writer.run(lambda db: db.execute("PRAGMA max_page_count=1000000").fetchone())
    await store.append("p", [seen(2)])
    assert len(await store.events(limit=10**6)) == before + 1
    store.close()
