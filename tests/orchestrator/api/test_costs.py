"""Reports of what was spent: the same as from the files, whole hours of the period, and refusals in words."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.costs import Costs, NoSuchCost
from orchestrator.config.load import Config, build_config
from orchestrator.costs.books import read_books
from orchestrator.costs.view import view_of
from orchestrator.gateway.accounts.usage_file import UsageFile
from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import StoreUnavailable
from policies.economics import BaselineHour, Charge
from policies.model import Market, Placement

HOUR = 497_288  # 08:00 of 2026-09-24
NOW = (HOUR + 4) * 3600.0 + 600.0
PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)


class Clock:
    def now(self) -> float:
        return NOW

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits")


def config(directory: Path) -> Config:
    pools = {name: {"replicas": 1, "engine": {"served_name": name}} for name in ("chat", "embed")}
    return build_config({"daemon": {"state_dir": str(directory)}, "pool": pools})


@pytest.fixture
async def costs(tmp_path: Path) -> Any:
    """Two pools of the file and one that left it, each for a dollar an hour in the last eight days."""
    with closing(SqliteStore.open(tmp_path / "journal.db", now=NOW)) as store:
        for pool in ("chat", "embed", "left"):
            hours = range(HOUR - 8 * 24, HOUR + 5)
            bills = [
                Charge(node=pool, placement=PLACE, hour=hour, seconds=3600.0, usd=1.0, unit_seconds=3600.0)
                for hour in hours
            ]
            base = [BaselineHour(pool=pool, hour=hour, on_demand_usd=3.0) for hour in hours]
            await store.charge(pool, bills, baseline=base, until=NOW)
        with closing(UsageFile(tmp_path / "usage.db")) as usage:
            usage.add([((HOUR, "team-a", "", "pool/chat", ""), [1, 0, 0, 900, 0, 0, 100, 0.1, 1.0])], NOW)
        found = config(tmp_path)
        yield Costs(store=store, config=lambda: found, clock=Clock())


async def test_it_tells_what_the_files_tell(costs: Costs, tmp_path: Path) -> None:
    told = await costs.report({"since": str((HOUR - 10) * 3600), "until": str(NOW), "by": "pool,key"})
    books, missing = read_books(config(tmp_path), since=HOUR - 10, until=HOUR + 5, now=NOW)
    assert told == view_of(books, ["pool", "key"], missing)
    assert told["total"]["spent_usd"] == 45.0
    assert {tuple(row["group"].values()) for row in told["rows"]} >= {("chat", "team-a"), ("left", None)}


async def test_without_a_period_it_is_the_last_week_by_pool(costs: Costs) -> None:
    told = await costs.report({})
    assert (told["since"], told["until"]) == ((HOUR + 4 - 7 * 24) * 3600, (HOUR + 5) * 3600)
    assert [row["group"] for row in told["rows"]] == [{"pool": name} for name in ("chat", "embed", "left")]
    assert told["rows"][0]["spent_usd"] == 7 * 24 + 1


async def test_one_pool_is_told_alone_also_one_that_left(costs: Costs) -> None:
    for pool in ("embed", "left"):
        told = await costs.report({"pool": pool, "by": ""})
        assert told["total"]["spent_usd"] == 7 * 24 + 1
        assert told["total"]["requests"] == 0


async def test_reports_that_are_asked_for_together_come_all(costs: Costs) -> None:
    told = await asyncio.gather(
        *(costs.report({"by": by}) for by in ("pool", "day", "zone", "market", "key"))
    )
    assert {one["total"]["spent_usd"] for one in told} == {3.0 * (7 * 24 + 1)}


@pytest.mark.parametrize(
    ("query", "status", "why"),
    [
        ({"since": "yesterday"}, 400, "since must be a time in seconds since the epoch, not 'yesterday'"),
        ({"until": "nan"}, 400, "until must be a time"),
        ({"until": "1e300"}, 400, "until must be a time"),
        ({"since": "-5"}, 400, "since must be a time"),
        ({"since": str(NOW + 9000)}, 400, "since must be before until, and not in the future"),
        ({"since": "7200", "until": "3600"}, 400, "since must be before until"),
        ({"by": "pool,flavour"}, 400, "by: "),
        ({"by": "pool,pool"}, 400, "by: "),
        ({"pool": "nobody"}, 404, "no pool 'nobody' is known, nor that it cost anything"),
    ],
)
async def test_what_cannot_be_told_is_refused_in_words(
    costs: Costs, query: dict[str, str], status: int, why: str
) -> None:
    with pytest.raises(NoSuchCost, match=why) as refused:
        await costs.report(query)
    assert refused.value.status == status


async def test_a_period_is_no_longer_than_what_is_kept(costs: Costs) -> None:
    told = await costs.report({"since": "0"})
    assert told["until"] - told["since"] == 400 * 24 * 3600
    assert told["total"]["spent_usd"] == 3.0 * (8 * 24 + 5)


async def test_a_journal_that_cannot_be_read_is_no_free_week(costs: Costs) -> None:
    costs._store.close()
    with pytest.raises(StoreUnavailable):
        await costs.report({})
