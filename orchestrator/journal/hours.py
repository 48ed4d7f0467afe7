"""The cost ledger in the journal: what each node cost, what each hour cost, and the sums of all.

Every charge goes into three tables at once: `ledger` by node, `spend_hours` by hour and placement, `totals`
by pool. Their sums are the same to the last bit: money is written as `policies.economics.exact` has it, so
that it adds up to the same in whichever order. A journal that is older than `spend_hours` holds no hours of
the time before, which is not to say that they cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from orchestrator.journal.database import Database
from policies.economics import HOUR, BaselineHour, Charge, SpendHour, exact
from policies.model import Market

SINCE: Final = "hours since/"
"""Keys in `meta` of the instants since which hours are known begin so: of pools with an older account."""

NOTE_SINCE: Final = f"INSERT INTO meta SELECT '{SINCE}' || pool, CAST(charged_until AS TEXT) FROM totals"  # noqa: S608

KEPT_HOURS: Final = 400 * 24
"""Hours that stay in the journal."""

_LEDGER: Final = (
    "INSERT INTO ledger VALUES (?,?,?,?,?) ON CONFLICT (pool, node) DO UPDATE SET "
    "seconds=ledger.seconds+excluded.seconds, usd=ledger.usd+excluded.usd"
)
_TOTALS: Final = (
    "INSERT INTO totals VALUES (?,?,?,?) ON CONFLICT (pool) DO UPDATE SET "
    "usd=totals.usd+excluded.usd, on_demand_usd=totals.on_demand_usd+excluded.on_demand_usd, "
    "charged_until=excluded.charged_until"
)
_PLACE: Final = ("pool", "hour", "region", "zone", "instance", "market")
_SPEND: Final = ("seconds", "usd", "unit_seconds", "ready_unit_seconds", "unpriced")
_BASELINE: Final = ("on_demand_usd", "wanted_unit_seconds", "unpriced")


def add(
    db: Database, pool: str, charges: Sequence[Charge], *, baseline: Sequence[BaselineHour], until: float
) -> None:
    """Add to all tables, and drop the hours that are older than `KEPT_HOURS`."""
    usd = [exact(c.usd) for c in charges]
    on_demand = [exact(b.on_demand_usd) for b in baseline]
    nodes, places, hours = [], [], []
    for c, u in zip(charges, usd, strict=True):
        at, market = c.placement, str(c.placement.market)
        nodes.append((pool, c.node, market, c.seconds, u))
        sums = (c.seconds, u, c.unit_seconds, c.ready_unit_seconds, c.unpriced)
        places.append((pool, c.hour, at.region, at.zone, at.instance_type, market, *sums))
    for b, u in zip(baseline, on_demand, strict=True):
        hours.append((pool, b.hour, u, b.wanted_unit_seconds, b.unpriced))
    db.executemany(_LEDGER, nodes)
    db.executemany(_adding("spend_hours", _PLACE, _SPEND), places)
    db.executemany(_adding("baseline_hours", ("pool", "hour"), _BASELINE), hours)
    db.execute(_TOTALS, (pool, sum(usd), sum(on_demand), until))
    oldest = int(until // HOUR) - KEPT_HOURS
    db.execute("DELETE FROM spend_hours WHERE pool=? AND hour<?", (pool, oldest))
    db.execute("DELETE FROM baseline_hours WHERE pool=? AND hour<?", (pool, oldest))


def spend(db: Database, *, since: int, until: int, pool: str = "") -> list[SpendHour]:
    """What nodes cost in the hours from `since` up to `until`, of one pool or all, by hour and placement."""
    columns = ", ".join((*_PLACE, *_SPEND))
    return [
        SpendHour(
            pool=of,
            hour=hour,
            region=region,
            zone=zone,
            instance_type=instance,
            market=Market(market),
            **dict(zip(_SPEND, sums, strict=True)),
        )
        for of, hour, region, zone, instance, market, *sums in _rows(
            db, "spend_hours", columns, since=since, until=until, pool=pool
        )
    ]


def baseline(db: Database, *, since: int, until: int, pool: str = "") -> list[BaselineHour]:
    """What the wanted units would have cost on-demand in these hours."""
    columns = f"pool, hour, {', '.join(_BASELINE)}"
    found = _rows(db, "baseline_hours", columns, since=since, until=until, pool=pool)
    return [
        BaselineHour(pool=of, hour=hour, **dict(zip(_BASELINE, sums, strict=True)))
        for of, hour, *sums in found
    ]


def since(db: Database) -> dict[str, float]:
    """Since when the hours are known, of the pools whose account is older than that."""
    rows = db.execute("SELECT key, value FROM meta").fetchall()
    return {key.removeprefix(SINCE): float(value) for key, value in rows if key.startswith(SINCE)}


def charged(db: Database) -> dict[str, float]:
    """Until when each pool was charged: in a journal without hours, none is known before that."""
    return dict(db.execute("SELECT pool, charged_until FROM totals").fetchall())


def _rows(
    db: Database, table: str, columns: str, *, since: int, until: int, pool: str
) -> list[tuple[Any, ...]]:
    where, values = ("pool=? AND ", (pool,)) if pool else ("", ())
    return db.execute(
        f"SELECT {columns} FROM {table} WHERE {where}hour>=? AND hour<? ORDER BY {columns}",  # noqa: S608
        (*values, since, until),
    ).fetchall()


def _adding(table: str, keys: Sequence[str], sums: Sequence[str]) -> str:
    """The statement that adds sums to the row of these keys."""
    marks = ", ".join("?" * (len(keys) + len(sums)))
    added = ", ".join(f"{name}={table}.{name}+excluded.{name}" for name in sums)
    return (
        f"INSERT INTO {table} ({', '.join((*keys, *sums))}) VALUES ({marks}) "  # noqa: S608 - our own names
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {added}"
    )
