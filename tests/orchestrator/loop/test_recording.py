"""Turns on their way into the journal: which are recorded, when they are written, how long they are kept."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.journal import turn_log
from orchestrator.journal.file import JournalFile
from orchestrator.journal.replay import Replayed, Selection, replay
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import StoreUnavailable
from orchestrator.journal.turn_log import TurnLog, TurnRecord
from orchestrator.loop.recorder import RECORDING_LASTS, RECORDING_TURNS, Recorder
from orchestrator.metrics import metrics
from policies.actions import ActionKind, Alarm, Attach, Cause, Deferred, Plan
from policies.decide import decide
from policies.economics import Charge
from policies.events import DrainStarted, Event, NodeMissing, NodeReady, NodeSeen, NoticeSeen, PoolConfigured
from policies.fleet import Fleet
from policies.memory import Memory, reduce
from policies.model import (
    Confidence,
    EngineReading,
    Instance,
    InstanceState,
    Market,
    Notice,
    NoticeKind,
    Observed,
    Placement,
    Pool,
    TargetSpec,
    World,
)

POOL = Pool(name="p", replicas=2)
PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)
TARGET = TargetSpec(id="i-1", address="h:1")
QUIET = Plan(notes=("spot gpu in a refused 6 s ago",))


def world(at: float, nodes: int = 2) -> World:
    machines = tuple(
        Instance(
            id=f"i-{number}",
            pool="p",
            token=f"p/1/{number}",
            placement=PLACE,
            state=InstanceState.RUNNING,
            launched_at=0.0,
            price=1.0,
        )
        for number in range(nodes)
    )
    engines = {m.id: EngineReading(node=m.id, at=at, ready=True, ok=True) for m in machines}
    return World(now=at, regions={"": Observed(value=machines, at=at)}, engines=engines)


def seen(number: int, at: float = 1.0) -> NodeSeen:
    return NodeSeen(
        at=at,
        node=f"i-{number}",
        token=f"p/1/{number}",
        placement=PLACE,
        launched_at=0.0,
        price=1.0,
        address=f"10.0.0.{number}:1",
        standby=None,
    )


def notice(node: str, at: float = 1.0) -> NoticeSeen:
    said = Notice(
        id="n1",
        kind=NoticeKind.INTERRUPTION,
        node=node,
        deadline=at + 100.0,
        source="feed",
        confidence=Confidence.CONFIRMED,
        seen_at=at,
    )
    return NoticeSeen(at=at, notice=said)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore.open(tmp_path / "journal.db", now=1.0, inline=True)
    store.keep_turns_for, store.keep_turns_bytes = 1e9, 10**9
    yield store
    store.close()


class Turns:
    """What the loop does around a recorder: fold, write, decide, record."""

    def __init__(self, store: SqliteStore, name: str = "p") -> None:
        self.store, self.memory = store, Memory()
        self.pool = replace(POOL, name=name)
        self.unwritten: list[Event] = []
        self.recorder = Recorder(store.turns(name), quiet=0.0)

    async def take(self, events: Sequence[Event], at: float, *, fails: bool = False) -> None:
        """A turn that takes events in; with `fails` they cannot be written."""
        self.memory = reduce(self.memory, *events)
        waiting = [*self.unwritten, *events]
        if fails:
            self.unwritten = waiting
        else:
            await self.store.append(self.pool.name, waiting)
            self.unwritten = []
        now = world(at)
        plan = decide(self.pool, now, self.memory)
        self.recorder.decided(self.pool, now, self.memory, plan, behind=len(self.unwritten))

    async def replayed(self) -> list[Replayed]:
        await self.store.flush(self.pool.name)
        with JournalFile.open(self.store.path) as journal:
            return list(replay(journal, Selection(pool=self.pool.name)))


def unrecorded() -> float:
    name = "orchestrator_turns_unrecorded_total"
    return metrics.REGISTRY.get_sample_value(name, {"pool": "p"}) or 0.0


# -- which -------------------------------------------------------------------------------------------


class Taken(TurnLog):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[TurnRecord] = []

    def hold(self, turn: TurnRecord) -> bool:
        self.records.append(turn)
        return True


def taken(plans: Sequence[tuple[float, Plan]], quiet: float = 60.0) -> list[int]:
    """The places of the turns that a recorder takes."""
    log = Taken()
    recorder = Recorder(log, quiet=quiet)
    found = []
    for place, (at, plan) in enumerate(plans):
        before = len(log.records)
        recorder.decided(POOL, world(at), Memory(), plan, behind=0)
        if len(log.records) > before:
            found.append(place)
    return found


def held(reason: str) -> Plan:
    return Plan(deferred=(Deferred(kind=ActionKind.LAUNCH, reason=reason),))


ATTACH = Plan(actions=(Attach(node="i-1", reason="ready"),))
ALARM = Plan(actions=(Alarm(name="A", reason="since 5 s"),))


@pytest.mark.parametrize(
    ("plans", "wanted"),
    [
        ([QUIET, QUIET, QUIET], [0]),
        ([ATTACH, ATTACH, ATTACH], [0, 1, 2]),
        ([QUIET, ATTACH, QUIET, QUIET], [0, 1, 2]),
        ([QUIET, replace(QUIET, notes=("spot gpu in a refused 7.5 s ago",))], [0]),
        ([QUIET, replace(QUIET, notes=("spot gpu in b refused 6 s ago",))], [0, 1]),
        ([Plan(notes=("i-1 waits",)), Plan(notes=("i-2 waits",))], [0, 1]),
        ([held("over quota"), held("over quota"), held("paused"), Plan()], [0, 2, 3]),
        ([ALARM, replace(ALARM, actions=(Alarm(name="A", reason="since 6 s"),)), Plan()], [0, 2]),
        ([Plan(write=("gw",)), Plan(write=("gw",)), Plan()], [0, 2]),
        ([Plan(write=("gw",)), Plan(write=("gw",), targets=(TARGET,))], [0, 1]),
        ([Plan(), Plan(targets=(TARGET,))], [0]),
    ],
    ids=[
        "quiet", "deeds", "after-a-deed", "a-number-counts-on", "another-place", "another-node",
        "what-is-held-back", "alarm", "a-set-that-is-not-taken", "another-set",
        "a-set-that-nobody-lacks",
    ],
)  # fmt: skip
def test_what_is_new_is_recorded(plans: Sequence[Plan], wanted: list[int]) -> None:
    assert taken([(float(place), plan) for place, plan in enumerate(plans)]) == wanted


def test_a_quiet_turn_is_recorded_now_and_then_also_when_the_clock_goes_back() -> None:
    assert taken([(float(at), QUIET) for at in range(0, 200, 10)]) == [0, 6, 12, 18]
    assert taken([(100.0, QUIET), (50.0, QUIET), (55.0, QUIET)]) == [0, 1]
    assert taken([(float(at), QUIET) for at in range(4)], quiet=0.0) == [0, 1, 2, 3]


def test_recordings_begin_anew_after_a_while_and_when_events_were_lost() -> None:
    log = Taken()
    recorder = Recorder(log, quiet=0.0)

    def begins(at: float) -> bool:
        recorder.decided(POOL, world(at), Memory(), QUIET, behind=0)
        return log.records[-1].begins

    assert [begins(0.0), begins(1.0), begins(RECORDING_LASTS), begins(RECORDING_LASTS + 1)] == [
        True, False, True, False,
    ]  # fmt: skip
    recorder.events_lost()
    assert begins(RECORDING_LASTS + 2)
    assert sum(begins(RECORDING_LASTS + 2) for _ in range(RECORDING_TURNS)) == 1


# -- when ----------------------------------------------------------------------------------------------


async def test_what_somebody_waits_for_takes_no_turns_along(store: SqliteStore) -> None:
    turns = Turns(store)
    await turns.take([PoolConfigured(at=1.0, replicas=2)], 1.0)
    assert store.turns("p").waiting == 1
    await store.append("p", [seen(1), notice("i-1")])
    drain = DrainStarted(at=2.0, node="i-1", deadline=9.0, cause=Cause.NOTICE, reason="r")
    await store.append("p", [drain])
    assert store.turns("p").waiting == 1
    await store.append("p", [NodeMissing(at=3.0, node="i-1")])
    assert store.turns("p").waiting == 0
    turns.memory = reduce(turns.memory, seen(1), notice("i-1"), drain, NodeMissing(at=3.0, node="i-1"))
    await turns.take([], 4.0)
    charge = Charge(node="i-1", placement=PLACE, hour=0, seconds=1.0, usd=1.0)
    await store.charge("p", [charge], baseline=[], until=5.0)
    assert store.turns("p").waiting == 0
    found = await turns.replayed()
    assert [(t.seq, t.identical) for t in found] == [(1, True), (5, True)]


async def test_turns_decided_while_the_journal_failed_find_their_place(store: SqliteStore) -> None:
    """The events that they knew are written later, in one go."""
    turns = Turns(store)
    await turns.take([PoolConfigured(at=1.0, replicas=2)], 1.0)
    for number in range(3):
        await turns.take([seen(number), notice(f"i-{number}")], 2.0 + number, fails=True)
    await store.flush("p")
    assert store.turns("p").waiting == 3, "only the first knows nothing that is not on disk"
    await turns.take([NodeReady(at=9.0, node="i-1", address="a:1")], 9.0)
    found = await turns.replayed()
    assert [t.seq for t in found] == [1, 3, 5, 7, 8]
    assert [t.differences or t.unreadable for t in found if not t.identical] == []


async def test_events_of_another_daemon_do_not_belong_to_a_recording(
    store: SqliteStore, tmp_path: Path
) -> None:
    """Somebody took the lease away by hand; until it notices, the first daemon writes on."""
    turns = Turns(store)
    await store.next_epoch(10.0)
    ready = NodeReady(at=1.0, node="i-0", address="a:1")
    await turns.take([PoolConfigured(at=1.0, replicas=2), seen(0), ready], 1.0)
    await store.flush("p")
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute(
            "INSERT INTO events (pool, at, kind, node, body, epoch) SELECT pool, at, 'NodeGone', node, "
            '\'{"at": 1, "node": "i-0", "cause": "lost"}\', 11 FROM events WHERE kind=\'NodeSeen\''
        )
    await turns.take([seen(1)], 2.0)
    found = await turns.replayed()
    assert [t.identical for t in found] == [True, True]
    assert "i-0" in [target["id"] for target in found[-1].recorded["targets"]]


async def test_events_that_were_lost_begin_a_new_recording(store: SqliteStore) -> None:
    turns = Turns(store)
    await turns.take([PoolConfigured(at=1.0, replicas=2)], 1.0)
    await turns.take([seen(0), seen(1)], 2.0, fails=True)
    turns.unwritten = turns.unwritten[1:]
    turns.recorder.events_lost()
    await turns.take([notice("i-0", 3.0)], 3.0, fails=True)
    await turns.take([NodeReady(at=4.0, node="i-0", address="a:1")], 4.0)
    found = await turns.replayed()
    assert [(t.seq, t.identical) for t in found] == [(1, True), (3, True), (4, True)]
    with JournalFile.open(store.path) as journal:
        assert [r.turns for r in journal.recordings()] == [1, 2]


@pytest.mark.usefixtures("quiet")
async def test_turns_that_cannot_be_written_keep_no_event_out_of_the_journal(store: SqliteStore) -> None:
    turns = Turns(store)
    await turns.take([PoolConfigured(at=1.0, replicas=2)], 1.0)
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("CREATE TRIGGER no BEFORE INSERT ON turns BEGIN SELECT RAISE(ABORT, 'no'); END")
    await store.append("p", [seen(0)])
    assert await store.last_seq() == 2
    assert store.turns("p").waiting == 1
    with closing(sqlite3.connect(store.path)) as db, db:
        assert db.execute("SELECT COUNT(*) FROM recordings").fetchone() == (0,)
        db.execute("DROP TRIGGER no")
    turns.memory = reduce(turns.memory, seen(0))
    await turns.take([seen(1)], 3.0)
    found = await turns.replayed()
    assert [(t.seq, t.identical) for t in found] == [(1, True), (3, True)]


async def test_after_a_write_that_failed_the_next_one_takes_nothing_along(store: SqliteStore) -> None:
    turns = Turns(store)
    await turns.take([PoolConfigured(at=1.0, replicas=2)], 1.0)
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("CREATE TRIGGER no BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(StoreUnavailable):
        await store.append("p", [seen(0)])
    with closing(sqlite3.connect(store.path)) as db, db:
        db.execute("DROP TRIGGER no")
    await store.append("p", [seen(0)])
    assert store.turns("p").waiting == 1
    await store.append("p", [seen(1)])
    assert store.turns("p").waiting == 0
    assert [(t.seq, t.identical) for t in await turns.replayed()] == [(1, True)]


async def test_turns_that_cannot_be_written_keep_no_event_out_and_are_told_of_once(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(turn_log.log, "error", lambda event, **more: told.append(str(more["error"])))
    turns = Turns(store)
    await turns.take([PoolConfigured(at=1.0, replicas=2)], 1.0)

    async def refused(why: str) -> list[str]:
        """Two events are written while no turn can be; what was said meanwhile."""
        told.clear()
        with closing(sqlite3.connect(store.path)) as db, db:
            db.execute(f"CREATE TRIGGER no BEFORE INSERT ON turns BEGIN SELECT RAISE(ABORT, '{why}'); END")
        for _ in range(2):
            await store.append("p", [seen(0)])
        assert store.turns("p").waiting == 1
        with closing(sqlite3.connect(store.path)) as db, db:
            db.execute("DROP TRIGGER no")
        return list(told)

    assert await refused("full") == ["full"]
    assert await refused("broken") == ["broken"]
    await store.append("p", [seen(0)])
    assert store.turns("p").waiting == 0
    await turns.take([], 2.0)
    assert await refused("broken") == ["broken"], "it went well in between"
    await store.append("p", [seen(0)])
    assert [(t.at, t.unreadable) for t in await turns.replayed()] == [(1.0, ""), (2.0, "")]


async def test_what_is_held_is_bounded_and_a_write_takes_only_some_along(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_log, "TURNS_HELD", 6)
    monkeypatch.setattr(turn_log, "ROWS_AT_ONCE", 4)
    turns, before = Turns(store), unrecorded()
    for at in range(9):
        await turns.take([], float(at))
    assert (store.turns("p").waiting, unrecorded() - before) == (6, 3)
    await store.append("p", [seen(0)])
    assert store.turns("p").waiting == 4, "two worlds of two machines"
    turns.memory = reduce(turns.memory, seen(0))
    await turns.take([], 9.0)
    found = await turns.replayed()
    assert [(t.at, t.identical) for t in found] == [(float(at), True) for at in (0, 1, 2, 3, 4, 5, 9)]
    monkeypatch.setattr(turn_log, "ROWS_HELD", 3)
    for at in range(20, 24):
        await turns.take([], float(at))
    assert store.turns("p").waiting == 1, "one is always taken, however large the pool"


async def test_a_decision_that_raised_raises_again_until_it_is_mended(store: SqliteStore) -> None:
    turns = Turns(store)
    await turns.take([PoolConfigured(at=1.0, replicas=2), seen(0)], 1.0)
    turns.recorder.raised(POOL, world(2.0), turns.memory, KeyError("i-0"), behind=0)
    fixed = (await turns.replayed())[-1]
    assert fixed.differences == ("decide raised KeyError: 'i-0'",)

    def broken(fleet: Fleet, world: World, memory: Memory) -> Plan:
        raise KeyError(next(iter(memory.nodes)))

    with JournalFile.open(store.path) as journal:
        first, again = replay(journal, decide=broken)
    assert first.differences == ("decide raises KeyError: 'i-0'",)
    assert again.identical


# -- how long ------------------------------------------------------------------------------------------


async def hours(store: SqliteStore, count: int, pool: str = "p") -> Turns:
    """One recording an hour, two turns each, with an event between them."""
    turns = Turns(store, pool)
    await store.append(pool, [PoolConfigured(at=0.0, replicas=2)])
    turns.memory = reduce(turns.memory, PoolConfigured(at=0.0, replicas=2))
    for hour in range(count):
        start = hour * RECORDING_LASTS
        await turns.take([seen(hour, start)], start)
        await turns.take([NodeReady(at=start + 9.0, node=f"i-{hour}", address="a:1")], start + 9.0)
    await store.flush(pool)
    return turns


async def test_old_recordings_go_whole_and_events_that_the_rest_needs_stay(store: SqliteStore) -> None:
    turns = await hours(store, 5)
    store.keep_turns_for = 2.5 * RECORDING_LASTS
    await store.snapshot("p", turns.memory, keep_after=1e9)
    found = await turns.replayed()
    assert [(t.at // RECORDING_LASTS, t.identical) for t in found] == [
        (hour, True) for hour in (2, 2, 3, 3, 4, 4)
    ]
    assert [e.seq for e in await store.events()] == [7, 8, 9, 10, 11]
    assert await store.load("p") == turns.memory
    with closing(sqlite3.connect(store.path)) as db:
        assert db.execute("SELECT COUNT(DISTINCT recording) FROM turns").fetchone() == (3,)


async def test_too_much_goes_from_the_oldest_and_the_newest_stays(store: SqliteStore) -> None:
    turns = await hours(store, 4)
    store.keep_turns_bytes = 1
    await store.snapshot("p", turns.memory, keep_after=0.0)
    assert [t.at // RECORDING_LASTS for t in await turns.replayed()] == [3, 3]
    assert len(await store.events()) == 9, "events have their own time"


async def test_one_pruning_lets_go_of_few_recordings(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_log, "PRUNED_AT_ONCE", 2)
    turns = await hours(store, 6)
    store.keep_turns_for = 0.0
    left = []
    for _ in range(4):
        await store.snapshot("p", turns.memory, keep_after=1e9)
        left.append(len(await turns.replayed()) // 2)
    assert left == [4, 2, 1, 1]


# -- two pools -----------------------------------------------------------------------------------------


async def test_turns_of_two_pools_in_one_journal_each_find_their_own_events(store: SqliteStore) -> None:
    """One pool cannot be written for a while; what the other writes meanwhile moves nothing of it."""
    one, two = Turns(store), Turns(store, "q")
    await one.take([PoolConfigured(at=1.0, replicas=2)], 1.0)
    await two.take([PoolConfigured(at=1.0, replicas=2)], 1.0)
    for number in range(3):
        await one.take([seen(number), notice(f"i-{number}")], 2.0 + number, fails=True)
        await two.take([seen(10 + number)], 2.0 + number)
    await one.take([NodeReady(at=9.0, node="i-1", address="a:1")], 9.0)
    await two.take([NodeReady(at=9.0, node="i-11", address="a:1")], 9.0)
    for turns in (one, two):
        found = await turns.replayed()
        assert [t.differences or t.unreadable for t in found if not t.identical] == []
        assert len(found) == 5
        assert await store.load(turns.pool.name) == turns.memory
    assert store.turns("p") is not store.turns("q")


async def test_each_pool_keeps_its_share_of_recorded_turns(store: SqliteStore) -> None:
    one, two = await hours(store, 4), await hours(store, 4, "q")
    with JournalFile.open(store.path) as journal:
        sizes = [r.bytes for r in journal.recordings() if r.pool == "p"]
    store.keep_turns_bytes = 2 * (sum(sizes) - 1)
    for turns in (one, two):
        await store.snapshot(turns.pool.name, turns.memory, keep_after=0.0)
        assert [t.at // RECORDING_LASTS for t in await turns.replayed()] == [1, 1, 2, 2, 3, 3]


# -- an older file -------------------------------------------------------------------------------------


async def test_a_journal_of_the_first_version_opens_and_gains_the_tables(store: SqliteStore) -> None:
    await store.append("p", [PoolConfigured(at=0.0, replicas=2), seen(0)])
    store.close()
    with closing(sqlite3.connect(store.path)) as db, db:
        for table in ("recordings", "turns", "parts"):
            db.execute(f"DROP TABLE {table}")
        db.execute("ALTER TABLE events DROP COLUMN epoch")
        db.execute("UPDATE meta SET value='1' WHERE key='schema'")
    with JournalFile.open(store.path) as journal:
        assert journal.contents().events == 2
        assert list(replay(journal)) == []
    again = SqliteStore.open(store.path, now=2.0, inline=True)
    try:
        assert again.set_aside is None
        turns = Turns(again)
        turns.memory = await again.load("p")
        assert list(turns.memory.nodes) == ["i-0"]
        await turns.take([seen(1)], 3.0)
        assert [(t.seq, t.identical) for t in await turns.replayed()] == [(3, True)]
    finally:
        again.close()
