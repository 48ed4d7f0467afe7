"""What the tests of the daemon's parts share: virtual time, so that waiting costs nothing, and quiet logs."""

from __future__ import annotations

import logging
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from cloud.sim.world import Pace, Sale
from orchestrator.config.load import build_config
from orchestrator.journal.database import LEASE
from orchestrator.journal.postgres import PostgresDatabase
from orchestrator.journal.sqlite import SqliteFile
from orchestrator.journal.store import Store
from orchestrator.simulation.simulate import Simulation
from orchestrator.simulation.virtual_time import VirtualClock, virtual_time
from policies.model import Market, Placement


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a short path: a unix socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="orch-") as directory:
        yield Path(directory)


class Journal:
    """One journal in one kind of database, opened as often as a test likes."""

    def __init__(self, kind: str, path: Path, postgres: Any) -> None:
        self.inline, self._path, self._postgres = kind == "file-inline", path, postgres
        self._address = postgres.database() if postgres is not None else ""
        self._opened: list[Store] = []

    def backend(self) -> SqliteFile | PostgresDatabase:
        """The database, with its tables."""
        database = SqliteFile(self._path) if self._postgres is None else PostgresDatabase(self._address)
        database.prepare()
        if self._postgres is None:
            for statement in LEASE:
                self.sql(statement)
        return database

    def open(self) -> Store:
        """One daemon's view of the journal."""
        store = Store(self.backend(), inline=self.inline)
        self._opened.append(store)
        return store

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """One statement, past the store."""
        if self._postgres is not None:
            found: list[tuple[Any, ...]] = self._postgres.execute(self._address, statement, *values)
            return found
        with closing(sqlite3.connect(self._path)) as db, db:
            return db.execute(statement, values).fetchall()

    def close(self) -> None:
        for store in self._opened:
            store.close()


@pytest.fixture
def new_journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Journal]]:
    """Makes a new journal in one kind of database."""
    made: list[Journal] = []

    def make(kind: str) -> Journal:
        server = request.getfixturevalue("postgres") if kind == "postgres" else None
        made.append(Journal(kind, tmp_path / "journal.db", server))
        return made[-1]

    yield make
    for journal in made:
        journal.close()


@pytest.fixture(params=["file", "file-inline", "postgres"])
def journal(request: pytest.FixtureRequest, new_journal: Callable[[str], Journal]) -> Journal:
    """A new journal in each kind of database."""
    return new_journal(request.param)


@pytest.fixture
def store(journal: Journal) -> Store:
    """A store on it."""
    return journal.open()


Play = Callable[[Callable[[VirtualClock], Awaitable[Any]]], Any]


@pytest.fixture
def play() -> Play:
    """Runs a coroutine function on virtual time; it is given the clock."""

    def run(work: Callable[[VirtualClock], Awaitable[Any]]) -> Any:
        with virtual_time() as loop:

            async def whole() -> Any:
                return await work(VirtualClock(loop))

            return loop.run_until_complete(whole())

    return run


@pytest.fixture
def quiet() -> Iterator[None]:
    """No log lines: for tests that provoke faults by the dozen."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a daemon that lost a spot node and replaced it, stopped in good order.

    For reading only: tests that change the journal copy it first.
    """
    folder = tmp_path_factory.mktemp("recorded")
    daemon = {"state_dir": "state", "listen": "off", "record_turns": 10.0}
    config = build_config({"daemon": daemon, "pool": {"p": {"replicas": 4}}}, base=folder)
    sales = [
        Sale(placement=Placement("sim", "r", zone, "gpu", market), price=1.0 + number, capacity=9)
        for number, market in enumerate(Market)
        for zone in "ab"
    ]
    sim = Simulation(config, sales=sales, pace=Pace(boot=(1.0, 2.0), load=(1.0, 2.0), list_lag=(0.1, 0.2)))

    async def script(sim: Simulation) -> None:
        sim.furnish()
        process = sim.boot()
        await sim.settle()
        sim.board.reclaim(sim.live(Market.SPOT)[0].id, after=30.0, notice=30.0)
        await sim.settle()
        await sim.stop(process)

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        outcome = sim.run(script)
    finally:
        structlog.configure(**before)
    assert outcome.broken == ()
    return folder / "state"
