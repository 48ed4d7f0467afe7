"""Money is counted once, also over failing journals and restarts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.journal.store import StoreUnavailable, Superseded, Totals
from orchestrator.loop.ledger import Ledger
from policies.economics import Charge
from policies.events import NodeSeen
from policies.fleet import Fleet
from policies.memory import Memory, reduce
from policies.model import Instance, InstanceState, Market, Observed, Offering, Placement, Pool, World

HOUR = 3600.0


def place(market: Market) -> Placement:
    return Placement("sim", "r", "a", "gpu", market)


@dataclass
class Journal:
    """Adds up what it is charged."""

    fails: Exception | None = None
    usd: float = 0.0
    on_demand_usd: float = 0.0
    until: float | None = None
    nodes: dict[str, float] = field(default_factory=dict)
    writes: int = 0

    async def append(self, pool: str, events: Sequence[Any]) -> None:
        raise AssertionError("the ledger writes no events")

    async def charge(
        self, pool: str, charges: Sequence[Charge], *, on_demand_usd: float, until: float
    ) -> None:
        if self.fails is not None:
            raise self.fails
        self.writes += 1
        self.usd += sum(c.usd for c in charges)
        self.on_demand_usd += on_demand_usd
        self.until = until
        for c in charges:
            self.nodes[c.node] = self.nodes.get(c.node, 0.0) + c.seconds


def seen(
    now: float,
    *,
    durable: bool = True,
    price: float | None = 3.6,
    on_demand: float | None = 7.2,
    launched_at: float = 0.0,
) -> tuple[Fleet, World]:
    """A spot node at 3.6 USD/h, a pool of one, on-demand at 7.2."""
    node = Instance(
        id="s1",
        pool="p",
        token="t",
        placement=place(Market.SPOT),
        state=InstanceState.RUNNING,
        address="s1:1",
        launched_at=launched_at,
        price=price,
    )
    world = World(
        now=now,
        regions={"": Observed(value=(node,), at=now)},
        offerings={
            "r on-demand": Observed(
                value=(Offering(placement=place(Market.ON_DEMAND), price=on_demand),), at=now
            )
        },
        durable=durable,
    )
    event = NodeSeen(
        at=launched_at,
        node="s1",
        token="t",
        placement=node.placement,
        launched_at=launched_at,
        price=price,
        address="s1:1",
        standby=None,
    )
    pool = Pool(name="p", replicas=1)
    return Fleet.of(pool, world, reduce(Memory(), event)), world


async def test_every_second_is_counted_and_every_thirty_are_written() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for tenth in range(901):
        await ledger.count(*seen(1000.0 + tenth / 10))
    assert journal.writes == 3
    assert journal.until == 1090.0
    assert journal.usd == pytest.approx(90.0 * 3.6 / HOUR)
    assert journal.on_demand_usd == pytest.approx(90.0 * 7.2 / HOUR)
    assert journal.nodes == {"s1": pytest.approx(90.0)}
    assert ledger.totals.usd == pytest.approx(journal.usd)


async def test_what_is_not_written_yet_counts() -> None:
    ledger = Ledger("p", Journal(), Totals(usd=5.0, on_demand_usd=9.0, charged_until=1000.0))
    await ledger.count(*seen(1005.0))
    assert ledger.totals.usd == pytest.approx(5.0 + 5.0 * 3.6 / HOUR)
    assert ledger.totals.charged_until == 1005.0


async def test_after_a_restart_counting_goes_on_from_the_last_written_second() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals(usd=1.0, on_demand_usd=2.0, charged_until=1000.0))
    await ledger.count(*seen(1060.0))
    assert journal.usd == pytest.approx(60.0 * 3.6 / HOUR)
    young = Ledger("p", journal, Totals(charged_until=1000.0))
    await young.count(*seen(1060.0, launched_at=1050.0))
    assert young.totals.usd == pytest.approx(10.0 * 3.6 / HOUR)  # from its launch on


async def test_a_clock_that_was_set_back_stops_no_counting() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=90_000.0))
    for second in range(31):
        await ledger.count(*seen(1000.0 + second))
    assert journal.usd == pytest.approx(30.0 * 3.6 / HOUR)
    assert journal.until == 1030.0


async def test_a_daemon_that_another_took_over_from_hears_of_it() -> None:
    """A calm pool writes nothing else, and would look at the cloud for ever."""
    ledger = Ledger("p", Journal(fails=Superseded("another daemon took over")), Totals())
    await ledger.count(*seen(1000.0))
    with pytest.raises(Superseded):
        await ledger.count(*seen(1060.0))


async def test_a_failing_journal_loses_and_doubles_nothing() -> None:
    journal = Journal(fails=StoreUnavailable("full"))
    ledger = Ledger("p", journal, Totals())
    for second in range(60):
        await ledger.count(*seen(1000.0 + second))
    assert journal.usd == 0.0
    assert ledger.totals.usd == pytest.approx(59.0 * 3.6 / HOUR)
    journal.fails = None
    await ledger.count(*seen(1060.0))
    assert journal.usd == pytest.approx(60.0 * 3.6 / HOUR)
    await ledger.write()
    assert journal.usd == pytest.approx(60.0 * 3.6 / HOUR)
    assert ledger.totals.usd == pytest.approx(journal.usd)


async def test_while_the_journal_is_known_to_fail_it_is_left_alone() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(60):
        await ledger.count(*seen(1000.0 + second, durable=False))
    assert journal.writes == 0
    await ledger.write()
    assert journal.usd == pytest.approx(59.0 * 3.6 / HOUR)


async def test_nothing_counted_writes_nothing() -> None:
    journal = Journal()
    await Ledger("p", journal, Totals()).write()
    assert journal.writes == 0


async def test_a_price_that_changes_is_charged_as_it_was() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    await ledger.count(*seen(1000.0, price=3.6))
    await ledger.count(*seen(1030.0, price=3.6))
    await ledger.count(*seen(1060.0, price=7.2))
    assert journal.usd == pytest.approx((30.0 * 3.6 + 30.0 * 7.2) / HOUR)


async def test_time_whose_price_is_not_known_is_charged_once_it_is() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(0, 3601, 60):
        await ledger.count(*seen(float(second), price=None, on_demand=None))
    assert (ledger.totals.usd, ledger.totals.on_demand_usd) == (0.0, 0.0)
    for second in range(3660, 7201, 60):
        await ledger.count(*seen(float(second)))
    assert ledger.totals.usd == pytest.approx(7.2)  # two hours at 3.6
    assert ledger.totals.on_demand_usd == pytest.approx(14.4)
    assert journal.nodes["s1"] == pytest.approx(2 * HOUR)
