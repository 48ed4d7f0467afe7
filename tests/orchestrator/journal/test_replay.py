"""A journal on a desk: it is read without a trace, and what is decided otherwise is named."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from orchestrator.journal.codec import encode
from orchestrator.journal.file import JournalError, JournalFile
from orchestrator.journal.replay import Replayed, Selection, differences, replay
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import SCHEMA_VERSION
from orchestrator.journal.turn_codec import canonical
from policies.actions import ActionKind, Alarm, Attach, Cause, Deferred, Drain, Plan
from policies.decide import decide_for
from policies.fleet import Fleet
from policies.memory import Memory
from policies.model import TargetPhase, TargetSpec, World


@pytest.fixture
def journal(recorded: Path, tmp_path: Path) -> Path:
    """A copy of its own."""
    return Path(shutil.copy(recorded / "journal.db", tmp_path))


def turns(path: Path, selection: Selection | None = None) -> list[Replayed]:
    with JournalFile.open(path) as opened:
        return list(replay(opened, selection))


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute(statement, values)


# -- replaying -----------------------------------------------------------------------------------------


def test_every_recorded_turn_is_decided_again_the_same(journal: Path) -> None:
    found = turns(journal)
    assert len(found) > 10
    assert [t.differences or t.unreadable for t in found if not t.identical] == []
    kinds = {action["kind"] for turn in found for action in turn.recorded["actions"]}
    assert {"attach", "detach", "drain", "launch", "terminate"} <= kinds
    assert all(t.scene is not None and canonical(t.scene.plan) == encode(t.recorded) for t in found)
    assert [t.number for t in found] == sorted(t.number for t in found)


def test_nothing_is_put_beside_a_copy_and_nothing_is_written_to_it(journal: Path) -> None:
    before = journal.read_bytes()
    assert turns(journal)
    assert os.listdir(journal.parent) == ["journal.db"]
    assert journal.read_bytes() == before


def test_a_read_only_copy_in_a_directory_that_may_not_be_written(journal: Path) -> None:
    journal.chmod(0o400)
    journal.parent.chmod(0o500)
    try:
        assert turns(journal)
    finally:
        journal.parent.chmod(0o700)


def test_turns_are_selected(journal: Path) -> None:
    every = turns(journal)
    half = every[len(every) // 2]

    def numbers(selection: Selection) -> list[int]:
        return [t.number for t in turns(journal, selection)]

    assert numbers(Selection(turn=half.number)) == [half.number]
    assert numbers(Selection(first_event=half.seq)) == [t.number for t in every if t.seq >= half.seq]
    assert numbers(Selection(last_event=half.seq)) == [t.number for t in every if t.seq <= half.seq]
    assert numbers(Selection(since=half.at)) == [t.number for t in every if t.at >= half.at]
    assert numbers(Selection(until=half.at)) == [t.number for t in every if t.at <= half.at]
    assert numbers(Selection(newest=3)) == [t.number for t in every[-3:]]
    assert numbers(Selection(newest=0)) == []
    assert numbers(Selection(epoch=-1)) == []
    assert numbers(Selection(turn=10**6)) == []


def test_a_change_of_a_policy_shows_where_it_decides_otherwise(journal: Path) -> None:
    def lazy(fleet: Fleet, world: World, memory: Memory) -> Plan:
        plan = decide_for(fleet, world, memory)
        return replace(plan, actions=tuple(a for a in plan.actions if a.kind is not ActionKind.DRAIN))

    with JournalFile.open(journal) as opened:
        found = [t for t in replay(opened, decide=lazy) if not t.identical]
    assert found
    for turn in found:
        assert all(
            text.startswith("action drain i-") and "only recorded" in text for text in turn.differences
        )


def test_a_policy_that_raises_is_a_difference(journal: Path) -> None:
    def broken(fleet: Fleet, world: World, memory: Memory) -> Plan:
        raise ZeroDivisionError("a bug")

    with JournalFile.open(journal) as opened:
        found = list(replay(opened, decide=broken))
    assert {t.differences for t in found} == {("decide raises ZeroDivisionError: a bug",)}


def test_a_lost_event_shows(journal: Path) -> None:
    """The journal is then not what the daemon knew."""
    change(journal, "DELETE FROM events WHERE kind='NoticeSeen'")
    found = [t for t in turns(journal) if not t.identical]
    assert any("action drain" in text for turn in found for text in turn.differences)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE events SET body='{' WHERE kind='NoticeSeen'", "event NoticeSeen cannot be read"),
        (
            "UPDATE events SET kind=CAST(x'4eff' AS TEXT) WHERE kind='NoticeSeen'",
            "event kind 'N\ufffd' is not known",
        ),
        ("UPDATE turns SET body=x'00'", "the recorded turn cannot be read"),
        ("UPDATE recordings SET wanted='{'", "the recorded pool cannot be read"),
        ("UPDATE recordings SET memory=x'789c030000000001'", "the memory snapshot cannot be read"),
    ],
    ids=["event", "text", "turn", "pool", "memory"],
)
def test_what_is_damaged_is_said_turn_by_turn(journal: Path, statement: str, says: str) -> None:
    change(journal, statement)
    found = turns(journal)
    assert found
    assert any(says in t.unreadable for t in found)
    assert all(t.unreadable or t.identical for t in found)


# -- the file ------------------------------------------------------------------------------------------


def test_what_a_journal_holds(journal: Path) -> None:
    with JournalFile.open(journal.parent) as opened:
        contents = opened.contents()
        events = list(opened.events())
    assert contents.schema == SCHEMA_VERSION
    assert contents.pools == ("p",)
    assert (contents.events, contents.first_event, contents.last_event) == (len(events), 1, len(events))
    assert (contents.first_at, contents.last_at) == (events[0].at, max(e.at for e in events))
    assert contents.size == journal.stat().st_size
    (recording,) = contents.recordings
    assert recording.turns == len(turns(journal))
    assert 0 < recording.bytes < contents.size


def test_a_live_journal_is_read_and_copied_while_it_is_written(recorded: Path, tmp_path: Path) -> None:
    """What is in the write-ahead log counts; the copy needs nothing beside it."""
    state = tmp_path / "state"
    state.mkdir()
    shutil.copy(recorded / "journal.db", state)
    store = SqliteStore.open(state / "journal.db", now=1.0, inline=True)
    with JournalFile.open(state) as opened:
        before = opened.contents().events
        first = next(opened.events())
        with closing(sqlite3.connect(store.path)) as db, db:
            db.execute(
                "INSERT INTO events (pool, at, kind, body) VALUES (?,?,?,?)",
                (first.pool, first.at, first.kind, first.body),
            )
        assert opened.contents().events == before + 1
        opened.copy(tmp_path / "copy.db")
        with pytest.raises(JournalError, match=r"copy.db: there is a file already"):
            opened.copy(tmp_path / "copy.db")
        with pytest.raises(JournalError, match=r"nowhere/copy.db: cannot be written"):
            opened.copy(tmp_path / "nowhere" / "copy.db")
    store.close()
    with JournalFile.open(tmp_path / "copy.db") as copied:
        assert copied.contents().events == before + 1
        assert all(t.identical for t in replay(copied))
    assert sorted(os.listdir(tmp_path)) == ["copy.db", "state"]


def newer(path: Path) -> None:
    change(path, "UPDATE meta SET value='999' WHERE key='schema'")


def nonsense(path: Path) -> None:
    change(path, "UPDATE meta SET value='x' WHERE key='schema'")


def another(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE t (x)")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, r"no such file; give the path of a journal, or --config FILE"),
        (lambda path: path.write_bytes(b"no database" * 1000), "is not a journal"),
        (another, "is not a journal; a daemon's is journal.db in its daemon.state_dir"),
        (newer, "written by a newer version .schema 999, this one knows"),
        (nonsense, "is corrupt: its schema version is 'x'"),
    ],
    ids=["missing", "garbage", "another-database", "newer", "no-version"],
)
def test_a_file_that_is_no_journal_says_so(
    journal: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(journal)
    with pytest.raises(JournalError, match=f"journal.db: {says}"):
        JournalFile.open(journal)


def test_a_torn_file_says_so(journal: Path) -> None:
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size - 9000)
    with pytest.raises(JournalError, match=r"journal.db: is corrupt \(.*journal copy"):
        turns(journal)


# -- differences ---------------------------------------------------------------------------------------

DRAIN = Drain(node="i-1", deadline=5.0, cause=Cause.NOTICE, reason="notice")
TARGET = TargetSpec(id="i-1", address="a:1")
HELD = Deferred(kind=ActionKind.LAUNCH, reason="paused")


def test_what_another_version_has_is_named() -> None:
    now = orjson.loads(canonical(Plan(actions=(DRAIN,))))
    older = orjson.loads(canonical(Plan(actions=(DRAIN,))))
    del older["actions"][0]["cause"]
    assert differences(older, now) == ("action drain i-1: cause was null, is notice",)
    del older["notes"]
    older["actions"] = now["actions"]
    assert differences(older, now) == ("notes: only now",)


@pytest.mark.parametrize(
    ("recorded", "now", "says"),
    [
        (Plan(actions=(DRAIN,)), Plan(), ["action drain i-1: only recorded (notice)"]),
        (Plan(), Plan(actions=(DRAIN,)), ["action drain i-1: only now (notice)"]),
        (
            Plan(actions=(DRAIN,)),
            Plan(actions=(replace(DRAIN, deadline=6.0, reason="sick"),)),
            ["action drain i-1: deadline was 5.0, is 6.0, reason was notice, is sick"],
        ),
        (
            Plan(targets=(TARGET,)),
            Plan(targets=(replace(TARGET, phase=TargetPhase.DRAINING),)),
            ["target i-1: phase was active, is draining"],
        ),
        (Plan(deferred=(HELD,)), Plan(), ["held back launch: only recorded (paused)"]),
        (Plan(write=("gw",)), Plan(notes=("n",)), ["writes to gw: only recorded", "note n: only now"]),
        (
            Plan(actions=(DRAIN, replace(DRAIN, deadline=1.0))),
            Plan(actions=(DRAIN,)),
            ["action drain i-1: only recorded (notice)"],
        ),
        (
            Plan(actions=(Alarm(name="A", reason="a"), Attach(node="i-1", reason="r"))),
            Plan(actions=(Attach(node="i-1", reason="r"), Alarm(name="A", reason="a"))),
            ["the same actions in another order"],
        ),
    ],
    ids=["lost", "new", "changed", "target", "held", "words", "twice", "order"],
)
def test_differences_are_named(recorded: Plan, now: Plan, says: list[str]) -> None:
    found = differences(orjson.loads(canonical(recorded)), orjson.loads(canonical(now)))
    assert list(found) == says
