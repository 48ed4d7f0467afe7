"""Journals of older versions: opened by this one with all that they hold, or left exactly as they were.

`journals/schema_N.sql` is a dump of a journal that version N wrote. When the schema changes, add one of the
version before.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.journal import store as store_module
from orchestrator.journal.file import JournalFile
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import SCHEMA_VERSION, StoreUnavailable, Totals, decoded
from policies.events import DaemonStarted, NodeReady, NodeSeen, NoticeSeen, PoolConfigured
from policies.model import Market

DUMPS = Path(__file__).parent / "journals"
OLDER = range(1, SCHEMA_VERSION)


def restored(version: int, directory: Path) -> Path:
    """A journal as that version left it."""
    path = directory / "journal.db"
    with sqlite3.connect(path) as db:
        db.executescript((DUMPS / f"schema_{version}.sql").read_text(encoding="utf-8"))
    return path


def dumped(path: Path) -> list[str]:
    with sqlite3.connect(path) as db:
        return list(db.iterdump())


def test_there_is_a_journal_of_every_older_version() -> None:
    assert sorted(DUMPS.iterdir()) == [DUMPS / f"schema_{version}.sql" for version in OLDER]


@pytest.mark.parametrize("version", OLDER)
async def test_an_older_journal_keeps_all_that_it_holds(version: int, tmp_path: Path) -> None:
    path = restored(version, tmp_path)
    opened = SqliteStore.open(path, now=1000.0, inline=True)
    try:
        assert opened.set_aside is None
        kinds = [type(event) for event in decoded(await opened.events(limit=100))]
        assert kinds == [DaemonStarted, PoolConfigured, NodeSeen, NodeReady, NoticeSeen]
        memory = await opened.load("p")
        assert memory.replicas == 2
        assert memory.nodes["i-1"].placement.market is Market.SPOT
        assert [notice.id for notice in memory.nodes["i-1"].notices] == ["n-1"]
        assert await opened.totals("p") == Totals(usd=1.5, on_demand_usd=4.0, charged_until=3700.0)
        assert await opened.spend_hours(0, 10**9) == [], "hours of the time before are not known"
        assert await opened.baseline_hours(0, 10**9) == []
        assert await opened.hours_since() == {"p": 3700.0}
        assert await opened.next_epoch(0.0) == 101, "epochs go on from there"
        await opened.append("p", [PoolConfigured(at=1000.0, replicas=3)])
        assert (await opened.load("p")).replicas == 3
    finally:
        opened.close()
    again = SqliteStore.open(path, now=1001.0, inline=True)
    assert (await again.load("p")).replicas == 3
    again.close()


class Failing:
    """A migration that does something and then fails."""

    def __init__(self, end: str) -> None:
        self._end = end

    def __iter__(self) -> Iterator[str]:
        yield "ALTER TABLE events ADD COLUMN half_done INTEGER"
        yield "DELETE FROM events"
        yield self._end


@pytest.mark.parametrize("version", OLDER)
def test_a_migration_that_fails_changes_nothing(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = restored(version, tmp_path)
    before = dumped(path)
    steps = (*store_module.MIGRATIONS[:version], Failing("this is no SQL"))
    monkeypatch.setattr(store_module, "MIGRATIONS", steps)
    with pytest.raises(StoreUnavailable, match="syntax error"):
        SqliteStore.open(path, now=1000.0)
    assert dumped(path) == before
    monkeypatch.undo()
    SqliteStore.open(path, now=1000.0, inline=True).close()


KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.journal import store
from orchestrator.journal.sqlite import SqliteStore

def step():
    yield "ALTER TABLE events ADD COLUMN half_done INTEGER"
    yield "DELETE FROM events"
    os.kill(os.getpid(), signal.SIGKILL)

store.MIGRATIONS = (*store.MIGRATIONS[: int(sys.argv[2])], step())
SqliteStore.open(Path(sys.argv[1]), now=1000.0)
"""


@pytest.mark.parametrize("version", OLDER)
def test_a_migration_that_is_killed_changes_nothing(version: int, tmp_path: Path) -> None:
    path = restored(version, tmp_path)
    before = dumped(path)
    command = [sys.executable, "-c", KILLED, str(path), str(version)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert dumped(path) == before
    SqliteStore.open(path, now=1000.0, inline=True).close()


@pytest.mark.parametrize("version", OLDER)
def test_a_reader_of_an_older_file_says_that_it_knows_no_hours(version: int, tmp_path: Path) -> None:
    path = restored(version, tmp_path)
    with JournalFile.open(path) as file:
        assert file.spend_hours(0, 10**9) == file.baseline_hours(0, 10**9) == []
        assert file.hours_since() == {"p": 3700.0}
