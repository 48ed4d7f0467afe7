"""The rows of a report: read from real files as daemons and gateways write them, and what is missing told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestrator.costs import gather
from orchestrator.costs.gather import Machines, Span
from orchestrator.gateway.accounts.usage_file import UsageFile
from orchestrator.gateway.spend_file import Claim, Settled, SpendFile, Ticket
from orchestrator.journal.file import JournalError, JournalFile
from orchestrator.journal.postgres import PostgresDatabase, PostgresStore
from orchestrator.journal.sqlite import SqliteStore
from policies.economics import BaselineHour, Charge
from policies.model import Market, Placement
from policies.spend import PICO, Usage

HOUR = 497_288  # 08:00 of 2026-09-24
NOON = (HOUR + 4) * 3600.0
DAY = 86_400.0
PLACE = Placement("sim", "r", "a", "gpu", Market.SPOT)
SPAN = Span(since=HOUR - 20, until=HOUR + 20, now=NOON)


def paid(
    file: SpendFile,
    at: float,
    usd: float | None,
    *,
    provider: str = "claude",
    settle: bool = True,
    key: str = "",
) -> None:
    claim = Claim(provider=provider, route="chat", model="m", amount=PICO, until=at + 60, key=key)
    [ticket] = file.apply([claim], at)
    assert isinstance(ticket, Ticket)
    if settle:
        amount = None if usd is None else int(usd * PICO)
        file.apply([Settled(ticket=ticket, amount=amount, usage=Usage(10, 5, 1, 2, 7))], at)


async def journal(path: Path) -> Machines:
    """A journal of two pools, as the daemon reads it; it lies there afterwards."""
    with closing(SqliteStore.open(path / "journal.db", now=NOON, inline=True)) as store:
        for pool in ("chat", "embed"):
            bill = Charge(node=f"{pool}-1", placement=PLACE, hour=HOUR, seconds=60.0, usd=0.5)
            base = BaselineHour(pool=pool, hour=HOUR, on_demand_usd=2.0)
            await store.charge(pool, [bill], baseline=[base], until=NOON)
        return await gather.from_store(store, SPAN)


def test_what_is_known_of_one_pool_is_its_own() -> None:
    both = Machines(known_since={"chat": NOON, "embed": NOON - DAY}, missing=("who used what",))
    assert both.of("chat") == Machines(known_since={"chat": NOON}, missing=("who used what",))


async def test_daemon_and_file_tell_the_same(tmp_path: Path) -> None:
    told = await journal(tmp_path)
    assert gather.from_journal(tmp_path, SPAN) == told
    assert [(row.pool, row.usd) for row in told.spent] == [("chat", 0.5), ("embed", 0.5)]
    assert [(row.pool, row.on_demand_usd) for row in told.baseline] == [("chat", 2.0), ("embed", 2.0)]
    assert [row.pool for row in told.of("chat").spent] == ["chat"]
    assert [*told.unknown(0)] == []
    outside = Span(since=HOUR + 1, until=HOUR + 20, now=NOON)
    assert gather.from_journal(tmp_path, outside).spent == ()


def test_a_journal_that_this_user_may_not_see_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(JournalError, match="this user may not read it; ask as its owner, or as root"):
        gather.from_journal(tmp_path, SPAN)
    with pytest.raises(JournalError, match="this user may not read it"):
        JournalFile.open(tmp_path / "journal.db")


async def test_the_database_of_a_pair_tells_the_same(postgres: Any) -> None:
    address = postgres.database()
    with closing(PostgresStore.open(PostgresDatabase(address))) as store:
        bill = Charge(node="chat-1", placement=PLACE, hour=HOUR, seconds=60.0, usd=0.5)
        base = BaselineHour(pool="chat", hour=HOUR, on_demand_usd=2.0)
        await store.charge("chat", [bill], baseline=[base], until=NOON)
        told = await gather.from_store(store, SPAN)
    assert gather.from_database(address, SPAN) == told
    assert [(row.pool, row.usd) for row in told.spent] == [("chat", 0.5)]


def test_a_database_without_a_journal_is_an_error(postgres: Any) -> None:
    with pytest.raises(JournalError, match="spend_hours"):
        gather.from_database(postgres.database(), SPAN)


def test_hours_of_a_journal_of_the_version_before_are_not_known(tmp_path: Path) -> None:
    dump = Path(__file__).parents[1] / "journal" / "journals" / "schema_2.sql"
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db:
        db.executescript(dump.read_text(encoding="utf-8"))
    told = gather.from_journal(tmp_path, Span(since=0, until=10, now=NOON))
    assert told.spent == ()
    [sentence] = told.unknown(0)
    assert sentence.startswith(
        "what the nodes of p cost before 1970-01-01 01:01 UTC is not known by the hour"
    )
    assert [*told.unknown(2)] == [], "what came after is not lacking"
    assert [*told.of("another").unknown(0)] == []


def test_no_journal_is_no_free_month(tmp_path: Path) -> None:
    [sentence] = gather.from_journal(tmp_path, SPAN).unknown(0)
    assert sentence.endswith("there is no journal yet, so nothing is known of nodes")
    (tmp_path / "journal.db").write_bytes(b"rubbish" * 100)
    with pytest.raises(JournalError, match="is not a journal"):
        gather.from_journal(tmp_path, SPAN)


def test_use_and_money_come_from_the_gateways_files(tmp_path: Path) -> None:
    with closing(UsageFile(tmp_path / "usage.db")) as usage:
        names = (HOUR, "team-a", "chat", "pool/chat", "")
        usage.add([(names, [3, 1, 2, 30, 20, 10, 5, 1.5, 9.0])], NOON)
        usage.add([((HOUR - 21, *names[1:]), [1, 0, 0, 1, 1, 1, 1, 1.0, 1.0])], NOON)
        usage.add([((HOUR, "", "", "pool/embed", "lora"), [1, 0, 0, 7, 0, 0, 0, 0.1, 0.2])], NOON)
    with closing(SpendFile(tmp_path / "spend.db")) as spend:
        paid(spend, NOON - 3 * DAY, 9.0)  # before the days of the span
        paid(spend, NOON - DAY, 1.0)
        paid(spend, NOON, 0.25)
        paid(spend, NOON, None)
        paid(spend, NOON, 4.0, provider="pool/chat")  # what a key is charged inside the house
    found = gather.from_gateway(tmp_path / "usage.db", tmp_path / "spend.db", SPAN)
    assert found.missing == ()
    rows = {(row.key, row.backend): row for row in found.usage}
    assert len(found.usage) == 2
    row = rows["team-a", "pool/chat"]
    assert (row.requests, row.failed, row.estimated) == (3, 1, 2)
    assert (row.fresh, row.cached, row.written, row.output) == (30, 20, 10, 5)
    assert (row.first_token_s, row.seconds, row.route) == (1.5, 9.0, "chat")
    assert rows["", "pool/embed"].model == "lora"
    assert [(d.day, d.provider, d.usd, d.requests, d.unpriced) for d in found.providers] == [
        ("2026-09-23", "claude", PICO, 1, 0),
        ("2026-09-24", "claude", PICO // 4, 2, 1),
    ]
    today = found.providers[1]
    assert (today.fresh, today.cached, today.written, today.output) == (20, 10, 16, 4)
    assert [u.backend for u in found.of("embed").usage] == ["pool/embed"]
    assert found.of("embed").providers == ()


def test_each_key_has_its_part_of_what_a_provider_cost_and_the_rest_is_nobodys(tmp_path: Path) -> None:
    with closing(SpendFile(tmp_path / "spend.db")) as spend:
        for usd, key in ((1.0, ""), (2.0, "team-a"), (4.0, "team-a"), (8.0, "team-b")):
            paid(spend, NOON, usd, key=key)
        paid(spend, NOON - 3600, 0.0, settle=False, key="team-b")  # its gateway died
    found = gather.from_gateway(tmp_path / "usage.db", tmp_path / "spend.db", SPAN)
    assert {day.key: (day.usd // PICO, day.requests, day.fresh) for day in found.providers} == {
        "": (1, 1, 10),
        "team-a": (6, 2, 20),
        "team-b": (9, 1, 10),
    }


def test_days_that_are_over_are_told_without_today(tmp_path: Path) -> None:
    with closing(SpendFile(tmp_path / "spend.db")) as spend:
        for back in range(6):
            paid(spend, NOON - back * DAY, back + 1.0)
    days = Span(since=HOUR - 20 - 3 * 24, until=(HOUR - 24) // 24 * 24, now=NOON)
    found = gather.from_gateway(tmp_path / "usage.db", tmp_path / "spend.db", days)
    told = {day.day: day.usd // PICO for day in found.providers}
    assert told == {"2026-09-20": 5, "2026-09-21": 4, "2026-09-22": 3}


def test_a_request_that_nobody_settled_counts_at_its_most_and_is_told(tmp_path: Path) -> None:
    with closing(SpendFile(tmp_path / "spend.db")) as spend:
        paid(spend, NOON - 3600, 0.25)
        paid(spend, NOON - 3600, 0.0, settle=False)  # its gateway died
        paid(spend, NOON, 0.0, settle=False)  # this one is in flight
    found = gather.from_gateway(tmp_path / "usage.db", tmp_path / "spend.db", SPAN)
    [today] = found.providers
    assert today.usd == PICO + PICO // 4
    assert found.missing == (
        "1.00 USD of what providers cost are held for requests whose end nobody saw, and counted in full",
    )


def test_files_that_cannot_be_read_are_not_empty(tmp_path: Path) -> None:
    for name in ("usage.db", "spend.db"):
        (tmp_path / name).write_bytes(b"rubbish" * 300)
    found = gather.from_gateway(tmp_path / "usage.db", tmp_path / "spend.db", SPAN)
    assert (found.usage, found.unread, found.providers) == ((), True, ())
    assert found.of("chat").unread
    assert [text.partition(":")[0] for text in found.missing] == [
        "who used what is not known, nor any tokens",
        "what providers cost is not known",
    ]
    none = gather.from_gateway(tmp_path / "no.db", tmp_path / "none.db", SPAN)
    assert (none.missing, none.unread) == ((), False)
