"""The journal of a pair, fetched from its database: the same events, the same turns, the same plans."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal.fetch import fetch
from orchestrator.journal.file import JournalError, JournalFile
from orchestrator.journal.postgres import PostgresDatabase, PostgresStore
from orchestrator.journal.replay import replay
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import Totals, decoded
from orchestrator.loop.recorder import Recorder
from policies.decide import decide
from policies.economics import BaselineHour, Charge
from policies.events import NodeSeen, PoolConfigured
from policies.memory import Memory, reduce
from policies.model import Market, Observed, Placement, Pool, World

POOL = Pool(name="p", replicas=2)
PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)


def seen(number: int, at: float) -> NodeSeen:
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


async def filled(address: str) -> None:
    """A journal with some turns."""
    store = PostgresStore.open(PostgresDatabase(address))
    try:
        store.keep_turns_for, store.keep_turns_bytes = 1e9, 10**9
        await store.next_epoch(10.0)
        recorder, memory = Recorder(store.turns("p"), quiet=0.0), Memory()
        for number in range(5):
            at = float(number)
            news = [PoolConfigured(at=at, replicas=2), seen(number, at)]
            memory = reduce(memory, *news)
            await store.append("p", news)
            world = World(now=at, regions={"": Observed(value=(), at=at)}, engines={})
            recorder.decided(POOL, world, memory, decide(POOL, world, memory), behind=0)
        await store.flush("p")
        await store.snapshot("p", memory, keep_after=2.0)
        charge = Charge(node="i-1", placement=PLACE, hour=0, seconds=60.0, usd=0.5)
        await store.charge(
            "p", [charge], baseline=[BaselineHour(pool="p", hour=0, on_demand_usd=2.0)], until=60.0
        )
    finally:
        store.close()


async def test_what_was_fetched_is_the_same(postgres: Any, tmp_path: Path) -> None:
    address, file = postgres.database(), tmp_path / "journal.db"
    await filled(address)
    fetch(address, file)
    with JournalFile.open(file) as journal:
        turns = list(replay(journal))
        assert len(turns) == 5
        assert all(turn.identical for turn in turns)
    theirs = PostgresStore.open(PostgresDatabase(address))
    ours = SqliteStore.open(file, now=1.0, inline=True)
    try:
        assert ours.set_aside is None
        assert await ours.events() == await theirs.events()
        assert len(decoded(await ours.events())) == 8
        assert await ours.load("p") == await theirs.load("p")
        assert await ours.totals("p") == Totals(usd=0.5, on_demand_usd=2.0, charged_until=60.0)
        assert await ours.spend_hours(0, 1) == await theirs.spend_hours(0, 1) != []
        assert await ours.baseline_hours(0, 1) == await theirs.baseline_hours(0, 1) != []
        assert await ours.next_epoch(0.0) == 11
    finally:
        theirs.close()
        ours.close()


async def test_the_commands_read_the_journal_of_a_pair(postgres: Any, tmp_path: Path) -> None:
    address, config = postgres.database(), tmp_path / "pool.toml"
    await filled(address)
    config.write_text(f'[daemon]\nstore = "{address}"\n[pool.p]\nreplicas = 2\n')

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "orchestrator", "journal", *words, "--config", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert json.loads(run("show", "-o", "json"))["events"] == 8
    assert json.loads(run("replay", "-o", "json"))["identical"] == 5
    run("copy", "--to", str(tmp_path / "copy.db"))
    with JournalFile.open(tmp_path / "copy.db") as journal:
        assert journal.contents().events == 8


def test_a_database_that_cannot_be_read_is_named(postgres: Any, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be reached"):
        fetch("postgresql://orchestrator@/p?host=/nowhere", tmp_path / "a.db")
    with pytest.raises(JournalError, match="cannot be written"):
        fetch(postgres.database(), tmp_path / "missing" / "a.db")
