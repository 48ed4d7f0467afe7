"""What each hour cost, in every database: the same sums as the account of nodes, no word of old times."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator.journal.file import JournalFile
from orchestrator.journal.hours import KEPT_HOURS
from orchestrator.journal.postgres import PostgresDatabase, PostgresStore
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import MIGRATIONS, SCHEMA_VERSION, Store, StoreUnavailable, put_meta
from policies.economics import BaselineHour, Charge
from policies.model import Market, Placement

HERE = Placement("sim", "r", "a", "gpu", Market.SPOT)
THERE = Placement("sim", "r", "b", "gpu", Market.ON_DEMAND)


def charge(node: str = "i-1", hour: int = 7, at: Placement = HERE, **sums: float) -> Charge:
    return Charge(node=node, placement=at, hour=hour, **{"seconds": 60.0, "usd": 0.1, **sums})


def baseline(hour: int = 7, **sums: float) -> BaselineHour:
    return BaselineHour(pool="p", hour=hour, **{"on_demand_usd": 0.3, "wanted_unit_seconds": 60.0, **sums})


async def test_charges_of_a_placement_and_an_hour_are_one_row(store: Store) -> None:
    batch = [charge(unit_seconds=120.0), charge("i-2", ready_unit_seconds=60.0), charge(hour=8)]
    await store.charge("p", [*batch, charge("i-3", at=THERE)], baseline=[baseline()], until=8 * 3600.0 + 60)
    await store.charge("q", [charge("i-4")], baseline=[], until=8 * 3600.0)
    first, dear, second = await store.spend_hours(7, 9, pool="p")
    assert (first.hour, first.zone, first.instance_type, first.market) == (7, "a", "gpu", Market.SPOT)
    assert (first.seconds, first.unit_seconds, first.ready_unit_seconds) == (120.0, 120.0, 60.0)
    assert first.usd == pytest.approx(0.2)
    assert (dear.zone, dear.market, second.hour) == ("b", Market.ON_DEMAND, 8)
    assert [row.pool for row in await store.spend_hours(7, 8)] == ["p", "p", "q"]
    assert await store.spend_hours(9, 99) == []


async def test_what_is_paid_late_is_unpriced_no_more(store: Store) -> None:
    waits = charge(usd=0.0, unpriced=60.0)
    await store.charge("p", [waits], baseline=[baseline(on_demand_usd=0.0, unpriced=60.0)], until=25_300.0)
    assert [(row.usd, row.unpriced) for row in await store.spend_hours(0, 99)] == [(0.0, 60.0)]
    paid = charge(seconds=0.0, usd=0.5, unpriced=-60.0)
    late = baseline(on_demand_usd=1.0, wanted_unit_seconds=0.0, unpriced=-60.0)
    await store.charge("p", [paid], baseline=[late], until=25_400.0)
    [row] = await store.spend_hours(0, 99)
    assert (row.seconds, row.usd, row.unpriced) == (60.0, 0.5, 0.0)
    assert await store.baseline_hours(0, 99) == [
        BaselineHour(pool="p", hour=7, on_demand_usd=1.0, wanted_unit_seconds=60.0)
    ]


async def test_hours_that_are_long_over_are_dropped(store: Store, journal: Any) -> None:
    await store.charge("p", [charge(hour=7)], baseline=[baseline(7)], until=8 * 3600.0)
    await store.charge("q", [charge(hour=7)], baseline=[baseline(7)], until=8 * 3600.0)
    last = 7 + KEPT_HOURS
    await store.charge("p", [charge(hour=last)], baseline=[baseline(last)], until=last * 3600.0)
    assert len(await store.spend_hours(0, 99_999, pool="p")) == 2, "400 days are kept"
    await store.charge("p", [], baseline=[], until=(last + 1) * 3600.0)
    assert [(r.pool, r.hour) for r in await store.spend_hours(0, 99_999)] == [("p", last), ("q", 7)]
    assert [r.hour for r in await store.baseline_hours(0, 99_999, pool="p")] == [last]
    assert journal.sql("SELECT usd FROM ledger WHERE pool='p'")[0][0] == pytest.approx(0.2), "the sums stay"


async def test_a_charge_is_in_all_tables_or_in_none(store: Store, journal: Any) -> None:
    journal.sql("DROP TABLE totals")
    with pytest.raises(StoreUnavailable):
        await store.charge("p", [charge()], baseline=[baseline()], until=25_300.0)
    assert await store.spend_hours(0, 99) == []
    assert await store.baseline_hours(0, 99) == []
    assert journal.sql("SELECT * FROM ledger") == []


async def test_a_new_journal_knows_all_its_hours(store: Store) -> None:
    await store.charge("p", [charge()], baseline=[], until=25_300.0)
    assert await store.hours_since() == {}


async def test_the_file_of_a_running_daemon_is_read_beside_it(tmp_path: Path) -> None:
    with closing(SqliteStore.open(tmp_path / "journal.db", now=1.0)) as store:
        await store.charge("p", [charge()], baseline=[baseline()], until=25_300.0)
        told = await store.spend_hours(0, 99)
        with JournalFile.open(tmp_path) as file:
            assert file.spend_hours(0, 99) == told != []
            assert file.baseline_hours(0, 99) == await store.baseline_hours(0, 99) != []
            assert file.hours_since() == {}


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
async def test_an_older_journal_on_a_server_goes_on(postgres: Any, version: int) -> None:
    database = PostgresDatabase(postgres.database())
    with closing(database.connect()) as db, db.raw.transaction():
        for statement in (statement for step in MIGRATIONS[:version] for statement in step):
            db.execute(statement)
        put_meta(db, "schema", str(version))
        db.execute("INSERT INTO totals VALUES (?, ?, ?, ?)", ("p", 1.5, 4.0, 3700.25))
    store = PostgresStore.open(database)
    with closing(store):
        assert await store.spend_hours(0, 99) == []
        assert await store.hours_since() == {"p": 3700.25}
        await store.charge("p", [charge()], baseline=[baseline()], until=25_300.0)
        assert len(await store.spend_hours(0, 99)) == 1
        assert (await store.totals("p")).usd == pytest.approx(1.6)
