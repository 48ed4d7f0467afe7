"""Money is counted once, also over failing journals and restarts."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.journal.sqlite import SqliteStore
from orchestrator.journal.store import StoreUnavailable, Superseded, Totals
from orchestrator.loop.ledger import Ledger
from policies.economics import BaselineHour, Charge
from policies.events import NodeReady, NodeSeen
from policies.fleet import Fleet
from policies.memory import Memory, reduce
from policies.model import Instance, InstanceState, Market, Observed, Offering, Placement, Pool, World
from policies.value import replace

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
    hours: dict[int, Charge] = field(default_factory=dict)
    baseline: dict[int, BaselineHour] = field(default_factory=dict)
    writes: int = 0

    async def append(self, pool: str, events: Sequence[Any]) -> None:
        raise AssertionError("the ledger writes no events")

    async def charge(
        self, pool: str, charges: Sequence[Charge], *, baseline: Sequence[BaselineHour], until: float
    ) -> None:
        if self.fails is not None:
            raise self.fails
        self.writes += 1
        self.usd += sum(c.usd for c in charges)
        self.on_demand_usd += sum(b.on_demand_usd for b in baseline)
        self.until = until
        for c in charges:
            self.nodes[c.node] = self.nodes.get(c.node, 0.0) + c.seconds
            known = self.hours.get(c.hour)
            self.hours[c.hour] = c if known is None else c.plus(known)
        for b in baseline:
            before = self.baseline.get(b.hour)
            self.baseline[b.hour] = b if before is None else b.plus(before)


def seen(
    now: float,
    *,
    durable: bool = True,
    price: float | None = 3.6,
    on_demand: float | None = 7.2,
    launched_at: float = 0.0,
    replicas: int = 1,
    ready: bool = False,
    known: bool = True,
    state: InstanceState = InstanceState.RUNNING,
    ended_at: float | None = None,
    token: str = "p/1/1",  # noqa: S107 - no secret
) -> tuple[Fleet, World]:
    """A spot node at 3.6 USD/h, a pool of one, on-demand at 7.2. `known`: the daemon remembers the node."""
    node = Instance(
        id="s1",
        pool="p",
        token=token,
        placement=place(Market.SPOT),
        state=state,
        ended_at=ended_at,
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
        token=token,
        placement=node.placement,
        launched_at=launched_at,
        price=price,
        address="s1:1",
        standby=None,
    )
    pool = Pool(name="p", replicas=replicas)
    news = [event] if known else []
    news += [NodeReady(at=launched_at, node="s1", address="s1:1")] if ready else []
    return Fleet.of(pool, world, reduce(Memory(), *news)), world


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
    assert ledger.totals.on_demand_usd == pytest.approx(9.0 + 5.0 * 7.2 / HOUR)
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


# -- by the hour ---------------------------------------------------------------------------------------


async def test_each_second_belongs_to_its_hour() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(3570, 3631):
        await ledger.count(*seen(second + 0.5))
    await ledger.write()
    assert {hour: c.seconds for hour, c in journal.hours.items()} == {0: 29.5, 1: 30.5}
    assert journal.hours[1].usd == pytest.approx(30.5 * 3.6 / HOUR)
    assert {h: b.wanted_unit_seconds for h, b in journal.baseline.items()} == {0: 29.5, 1: 30.5}
    assert journal.baseline[0].on_demand_usd == pytest.approx(29.5 * 7.2 / HOUR)


async def test_what_a_dead_daemon_left_uncounted_is_split_over_its_hours() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=3500.0))
    await ledger.count(*seen(10_900.0))
    assert {h: c.seconds for h, c in journal.hours.items()} == {0: 100.0, 1: 3600.0, 2: 3600.0, 3: 100.0}
    assert journal.usd == pytest.approx(7400.0 * 3.6 / HOUR)


async def test_ready_time_is_that_in_which_the_engine_answers() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=1000.0))
    await ledger.count(*seen(1010.0))
    await ledger.count(*seen(1015.0, ready=True))
    await ledger.write()
    [hour] = journal.hours.values()
    assert (hour.seconds, hour.unit_seconds, hour.ready_unit_seconds) == (15.0, 15.0, 5.0)


async def test_late_prices_go_to_the_hours_in_which_the_time_passed() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(0, 7201, 60):
        await ledger.count(*seen(float(second), price=None, on_demand=None, replicas=1 + second // 3601))
    assert [(c.usd, c.unpriced) for c in journal.hours.values()] == [(0.0, 3600.0)] * 2
    assert [(b.on_demand_usd, b.unpriced) for b in journal.baseline.values()] == [(0, 3600.0), (0, 7200.0)]
    await ledger.count(*seen(7260.0, replicas=9))
    await ledger.write()
    assert [c.usd for c in journal.hours.values()] == pytest.approx([3.6, 3.6, 0.06])
    assert [c.unpriced for c in journal.hours.values()] == [0.0] * 3
    # As many units as were wanted then.
    assert [b.on_demand_usd for b in journal.baseline.values()] == pytest.approx([7.2, 14.4, 9 * 0.12])
    assert [b.unpriced for b in journal.baseline.values()] == [0.0] * 3
    assert ledger.totals.usd == pytest.approx(journal.usd)


async def test_a_price_that_never_comes_leaves_its_time_unpriced() -> None:
    journal = Journal()
    first = Ledger("p", journal, Totals(charged_until=1000.0))
    await first.count(*seen(1040.0, price=None))
    second = Ledger("p", journal, Totals(charged_until=1040.0))  # a restart knows no more whose time waits
    await second.count(*seen(1080.0))
    assert [(c.usd, c.seconds, c.unpriced) for c in journal.hours.values()] == [
        (pytest.approx(40.0 * 3.6 / HOUR), 80.0, 40.0)
    ]


# -- from the launch to the end, whenever they are seen ---------------------------------------------------

DOWN, OVER = InstanceState.SHUTTING_DOWN, InstanceState.TERMINATED


async def seconds(ledger: Ledger, journal: Journal) -> float:
    await ledger.write()
    assert journal.usd == pytest.approx(sum(journal.nodes.values()) * 3.6 / HOUR)
    return journal.nodes.get("s1", 0.0)


async def test_a_launch_that_lists_show_late_is_counted_from_its_launch() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(1000, 1021):
        await ledger.count(*seen(float(second), launched_at=1003.5, known=second >= 1012))
    assert await seconds(ledger, journal) == 16.5


async def test_a_launch_that_the_daemon_before_may_have_counted_is_counted_from_where_that_ended() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=1000.0))
    for second in range(1000, 1021):
        await ledger.count(*seen(float(second), launched_at=990.0, known=second >= 1012))
    assert await seconds(ledger, journal) == 20.0


async def test_a_node_that_costs_nothing_more_is_counted_to_its_end_though_that_is_seen_late() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(1000, 1010):
        await ledger.count(*seen(float(second)))
    for second in range(1010, 1200):  # it stays in the list, and its node in memory for a while
        state = DOWN if second < 1020 else OVER
        await ledger.count(*seen(float(second), state=state, ended_at=1004.25, known=second < 1030))
    assert await seconds(ledger, journal) == 4.25


async def test_an_end_between_two_looks_is_added() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    await ledger.count(*seen(1000.0))
    await ledger.count(*seen(1008.0))
    await ledger.count(*seen(1016.0, state=OVER, ended_at=1013.5, known=False))
    assert await seconds(ledger, journal) == 13.5


async def test_a_list_that_lacks_a_node_for_a_moment_bills_it_no_second_time() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(1000, 1010):
        await ledger.count(*seen(float(second)))
    for second in range(1010, 3000):
        look = seen(float(second), state=OVER, ended_at=1009.5, known=False)
        if second % 700 < 400:  # now it is in the list, now it is not
            look = look[0], replace(look[1], regions={})
        await ledger.count(*look)
    assert await seconds(ledger, journal) == 9.5


async def test_an_old_list_that_shows_it_alive_again_is_taken_back() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(1000, 1100):
        over = second % 20 >= 10
        end = {"state": OVER, "ended_at": 1009.5} if over else {}
        await ledger.count(*seen(float(second), known=not over, **end))
    assert await seconds(ledger, journal) == 9.5


async def test_what_ended_while_no_daemon_ran_is_counted_to_its_end() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=1000.0))
    for second in range(4000, 4100):
        await ledger.count(*seen(float(second), state=OVER, ended_at=2500.0, known=False))
    assert await seconds(ledger, journal) == 1500.0
    assert {hour: c.seconds for hour, c in journal.hours.items()} == {0: 1500.0}


async def test_after_a_restart_the_first_lists_and_prices_are_waited_for() -> None:
    """Its node ended an hour ago and prices fell, and the daemon remembers neither."""
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=1000.0))
    for second in range(8000, 8005):
        fleet, world = seen(float(second), price=36.0, on_demand=72.0)
        await ledger.count(fleet, replace(world, regions={"r": Observed(value=(), at=None)}))
        assert ledger.totals.usd == 0.0
    for second in range(8005, 8100):
        await ledger.count(*seen(float(second), state=OVER, ended_at=4600.0, known=second < 8010))
    assert await seconds(ledger, journal) == 3600.0
    assert journal.on_demand_usd == pytest.approx(7099.0 * 7.2 / HOUR)


async def test_lists_that_do_not_come_are_not_waited_for_for_long_and_an_end_is_settled_once_they_do() -> (
    None
):
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=1000.0))
    for second in range(8000, 9000):
        fleet, world = seen(float(second))
        await ledger.count(fleet, replace(world, regions={"r": Observed(value=(), at=None)}))
    assert ledger.totals.usd == pytest.approx(7999.0 * 3.6 / HOUR)
    for second in range(9000, 9100):
        await ledger.count(*seen(float(second), state=OVER, ended_at=4600.0, known=False))
    assert await seconds(ledger, journal) == 3600.0


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        (985.0, 5.0),  # the daemon before wrote its seconds up to 985, and it ended at 990
        (995.0, -5.0),  # up to 995: it had yet to hear of the end
        (990.0, 0.0),  # it heard, and settled it
        (100.0, 0.0),  # it was stopped in between: nobody knows
    ],
)
async def test_the_journal_says_until_when_the_daemon_before_counted(counted: float, expected: float) -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=1000.0), {"s1": counted})
    for second in range(1100, 1200):
        await ledger.count(*seen(float(second), state=OVER, ended_at=990.0, known=second < 1120))
    assert await seconds(ledger, journal) == expected


@pytest.mark.parametrize(
    ("counted", "expected"), [({"s1": 985.0}, 215.0), ({"s1": 100.0}, 200.0), ({"s2": 5.0}, 800.0)]
)
async def test_a_node_that_lives_is_counted_from_where_the_journal_ends(
    counted: dict[str, float], expected: float
) -> None:
    """One that it does not know was launched right before the daemon died, or that long at most."""
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=1000.0), counted)
    for second in range(1100, 1201):
        await ledger.count(*seen(float(second)))
    assert await seconds(ledger, journal) == expected


async def test_what_began_and_ended_unseen_is_counted() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=1000.0))
    look = {"state": OVER, "launched_at": 1500.0, "ended_at": 2500.0, "known": False}
    for second in range(4000, 4100):
        await ledger.count(*seen(float(second), **look))
    assert await seconds(ledger, journal) == 1000.0


async def test_a_stranger_with_our_tag_is_not_ours_to_pay() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals(charged_until=1000.0))
    await ledger.count(*seen(4000.0, state=OVER, ended_at=2500.0, known=False, token="by hand"))
    assert await seconds(ledger, journal) == 0.0


async def test_where_nobody_dates_the_end_it_is_when_it_was_seen() -> None:
    """EC2 bills for nothing from shutting-down on."""
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(1000, 1040):
        await ledger.count(*seen(float(second), state=DOWN if second >= 1010 else InstanceState.RUNNING))
    assert await seconds(ledger, journal) == 9.0


async def test_a_providers_clock_that_is_hours_off_takes_nothing_back() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(10_000, 10_010):
        await ledger.count(*seen(float(second)))
    for second in range(10_010, 10_050):
        await ledger.count(*seen(float(second), state=OVER, ended_at=2809.0, known=False))
    assert await seconds(ledger, journal) == 9.0
    ahead = Ledger("p", Journal(), Totals())
    for second in range(10_000, 10_020):
        end = {"state": OVER, "ended_at": 17_000.0} if second >= 10_010 else {}
        await ahead.count(*seen(float(second), known=second < 10_015, **end))
    assert ahead.totals.usd == pytest.approx(10.0 * 3.6 / HOUR), "an end in the future is one just seen"


async def test_a_stopped_machine_costs_nothing_until_it_starts() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(1000, 1100):
        stopped = 1010 <= second < 1090
        await ledger.count(
            *seen(float(second), state=InstanceState.STOPPED if stopped else InstanceState.RUNNING)
        )
    assert await seconds(ledger, journal) == 9.0 + 10.0


async def test_a_clock_that_was_set_back_bills_no_time_twice_and_misses_none() -> None:
    journal = Journal()
    ledger = Ledger("p", journal, Totals())
    for second in range(50):
        await ledger.count(*seen(90_000.0 + second))
    for second in range(50):
        await ledger.count(*seen(1000.0 + second))
    assert await seconds(ledger, journal) == 49.0 + 49.0


# -- to the last bit, over anything that happens ----------------------------------------------------------

EPOCH = 1_790_000_000.0
steps = st.lists(
    st.tuples(
        st.floats(0.1, 4000.0),  # seconds later
        st.one_of(st.none(), st.floats(0.0, 90.0)),  # the node's price
        st.one_of(st.none(), st.floats(0.0, 90.0)),  # on-demand's
        st.integers(0, 5),  # wanted
        st.sampled_from(["", "", "", "", "kill", "stop", "disk full", "back"]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
async def test_hours_ledger_and_totals_are_the_same_to_the_last_bit(steps: list[Any], tmp_path: Path) -> None:
    store = SqliteStore.open(tmp_path / f"{uuid4()}.db", now=EPOCH, inline=True)
    with closing(store):
        now, durable, ledger = EPOCH, True, Ledger("p", store, Totals())
        for later, price, on_demand, replicas, happens in steps:
            now += later
            if happens == "stop":
                await ledger.write()
            if happens in ("kill", "stop"):
                ledger = Ledger("p", store, await store.totals("p"), await store.counted("p"))
                durable = True
            durable = {"disk full": False, "back": True}.get(happens, durable)
            if happens == "back":
                now -= 7200.0
            look = {"price": price, "on_demand": on_demand, "replicas": replicas}
            await ledger.count(*seen(now, launched_at=EPOCH, durable=durable, **look))
        await ledger.write()
        told, hours = await store.totals("p"), await store.spend_hours(0, 10**6)
        assert told == ledger.totals
        assert sum(h.usd for h in hours) == told.usd
        assert sum(h.usd for h in reversed(hours)) == told.usd
        assert sum(b.on_demand_usd for b in await store.baseline_hours(0, 10**6)) == told.on_demand_usd
        with sqlite3.connect(store.path) as db:
            by_node = db.execute("SELECT SUM(usd), SUM(seconds) FROM ledger").fetchone()
        assert by_node == (told.usd, sum(h.seconds for h in hours)) or not hours
        assert all(0.0 <= h.unpriced <= h.seconds <= 3600.0 * 40 for h in hours)
