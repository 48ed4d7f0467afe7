"""What nodes cost where prices are missing, old or wrong; and that a missing one holds back no launch."""

from __future__ import annotations

import math
from typing import Any

import pytest

from policies.actions import Launch
from policies.economics import rate
from policies.events import DaemonStarted, PricesRead
from policies.memory import Memory, reduce
from policies.model import AdaptiveRules, Limits, Market, Observed, Offering, Placement, Pool, World
from policies.observations import changes
from policies.prices import FIRST_LOOK, NOTED_EVERY, PriceView, failing
from policies.records import LastPrice
from policies.value import replace
from tests.support.scene import Scene


def place(zone: str = "a", market: Market = Market.SPOT) -> Placement:
    return Placement("toy", "r", zone, "gpu", market)


SPOT, ON_DEMAND = place("a"), place("a", Market.ON_DEMAND)
NOW = 1_000_000.0
DOWN = "AccessDenied"


def offer(at: Any, price: float | None) -> Offering:
    return Offering(placement=at, price=price)


def world(now: float = NOW, **parts: Observed[tuple[Offering, ...]]) -> World:
    return World(now=now, regions={"": Observed(value=(), at=now)}, offerings=parts)


def read(*sold: Offering, at: float | None = NOW, error: str = "") -> Observed[tuple[Offering, ...]]:
    return Observed(value=sold, at=at, error=error)


def remembered(price: float, at: float = NOW - 600.0, part: str = "spot") -> LastPrice:
    return LastPrice(at=at, price=price, part=part)


@pytest.mark.parametrize(
    ("said", "last", "goes_by"),
    [
        (2.0, None, 2.0),
        (2.0, 1.9, 2.0),
        (None, 1.9, 1.9),
        (None, None, None),
        (0.0, 1.9, 1.9),
        (0.0, None, None),
        (-1.0, 1.9, 1.9),
        (math.nan, 1.9, 1.9),
        (math.nan, None, None),
        (math.inf, None, None),
        (1900.0, 1.9, 1.9),
        (0.0019, 1.9, 1.9),
        (9.5, 1.9, 9.5),
        (1900.0, None, 1900.0),
    ],
)
def test_the_price_to_go_by(said: float | None, last: float | None, goes_by: float | None) -> None:
    memory = Memory(prices={} if last is None else {SPOT: remembered(last)})
    view = PriceView(world(spot=read(offer(SPOT, said))), memory)
    assert [o.price for o in view.on_sale] == [goes_by]
    assert view.of(SPOT) == goes_by


def test_a_price_that_is_ten_times_another_is_believed_when_it_was_said_for_a_day() -> None:
    day = 86_400.0
    lie = world(spot=read(offer(SPOT, 50.0)))
    for age, goes_by in ((day - 1.0, 2.0), (day, 50.0)):
        assert PriceView(lie, Memory(prices={SPOT: remembered(2.0, at=NOW - age)})).of(SPOT) == goes_by


def test_nothing_is_sold_before_every_part_was_looked_at() -> None:
    """Else what answers first is bought in the place of the rest."""
    waits = read(offer(ON_DEMAND, None), at=None)
    assert PriceView(world(spot=read(offer(SPOT, 1.0)), od=waits), Memory()).on_sale == ()
    failed = replace(waits, error=DOWN)
    assert len(PriceView(world(spot=read(offer(SPOT, 1.0)), od=failed), Memory()).on_sale) == 2


def test_what_is_remembered_is_sold_at_once_after_a_restart() -> None:
    """A region whose prices hang holds up no launch for as long as that takes."""
    waits = read(offer(ON_DEMAND, None), at=None)
    memory = Memory(prices={ON_DEMAND: remembered(3.0)})
    view = PriceView(world(spot=read(offer(SPOT, 1.0)), od=waits), memory)
    assert view.on_sale == (offer(SPOT, 1.0), offer(ON_DEMAND, 3.0))


@pytest.mark.parametrize(
    ("noted_ago", "awake_for", "sold"),
    [(600.0, FIRST_LOOK, 2), (600.0, FIRST_LOOK - 0.1, 0), (1.0, FIRST_LOOK, 0)],
    ids=["waited", "just started", "the first start"],
)
def test_a_part_that_was_never_known_is_waited_for_briefly_after_a_restart(
    noted_ago: float, awake_for: float, sold: int
) -> None:
    """An earlier daemon knew other prices and not these: no launch waits until a look at them is given up."""
    waits = read(offer(ON_DEMAND, None), at=None)
    memory = Memory(prices={SPOT: remembered(1.0, at=NOW - noted_ago)})
    seen = replace(world(spot=read(offer(SPOT, 1.0)), od=waits), awake_since=NOW - awake_for)
    assert len(PriceView(seen, memory).on_sale) == sold


def test_what_was_not_sold_when_it_was_read_last_is_not_sold_before_it_is_read_again() -> None:
    failed = read(offer(SPOT, None), offer(place("b"), None), at=None, error=DOWN)
    memory = Memory(prices={SPOT: remembered(1.0)})
    assert PriceView(world(spot=failed), memory).on_sale == (offer(SPOT, 1.0),)
    assert failing(world(spot=failed), memory)[0].unknown == ()
    # Another instance type is configured meanwhile: of that nothing is known.
    memory = Memory(prices={place("elsewhere"): remembered(1.0)})
    assert len(PriceView(world(spot=failed), memory).on_sale) == 2


@pytest.mark.parametrize(("failing_since", "sold"), [(None, False), (NOW - 90.0, True), (NOW - 150.0, False)])
def test_what_was_sold_out_when_it_was_read_last_is_tried_once_it_cannot_be_read(
    failing_since: float | None, sold: bool
) -> None:
    """Whether there is room is not known then, but where a reading that is not whole said so since."""
    error = DOWN if failing_since is not None else ""
    out = Observed(
        value=(replace(offer(SPOT, 1.0), available=False),),
        at=NOW - 120.0,
        error=error,
        failing_since=failing_since,
    )
    view = PriceView(world(spot=out), Memory(prices={SPOT: remembered(1.0)}))
    assert [(o.price, o.available) for o in view.on_sale] == [(1.0, sold)]


def test_a_part_of_which_only_a_reading_tells_sells_what_is_remembered_of_it() -> None:
    memory = Memory(
        prices={SPOT: remembered(1.5, part="local"), ON_DEMAND: remembered(3.0, part="elsewhere")}
    )
    view = PriceView(world(local=read(at=None, error=DOWN)), memory)
    assert view.on_sale == (offer(SPOT, 1.5),)


def test_what_may_no_longer_be_bought_is_not_sold_although_it_is_remembered() -> None:
    """A zone that was taken out of the configuration while its prices cannot be read."""
    memory = Memory(prices={SPOT: remembered(1.5), place("gone"): remembered(0.1)})
    view = PriceView(world(spot=read(offer(SPOT, None), at=None, error=DOWN)), memory)
    assert [o.placement for o in view.on_sale] == [SPOT]


# -- what is noted ---------------------------------------------------------------------------------


def noted(seen: World, memory: Memory) -> list[PricesRead]:
    return [e for e in changes(Pool(name="p", replicas=1), seen, memory) if isinstance(e, PricesRead)]


def test_prices_are_noted_once_and_again_when_they_change_noticeably() -> None:
    memory = Memory()
    sizes = []
    for minute, price in enumerate([2.0, 2.0, 2.05, 1.98, 2.5, 2.5]):
        now = NOW + 60.0 * minute
        found = noted(world(now, spot=read(offer(SPOT, price), at=now)), memory)
        memory = reduce(memory, *found)
        sizes.append(len(found))
    assert sizes == [1, 0, 0, 0, 1, 0]
    assert memory.prices[SPOT] == LastPrice(at=NOW + 240.0, price=2.5, part="spot")


def test_a_part_that_was_never_read_keeps_no_other_ones_prices_from_being_noted() -> None:
    (event,) = noted(world(east=read(at=None), west=read(offer(SPOT, 2.0))), Memory())
    assert (event.part, event.prices) == ("west", ((SPOT, 2.0),))


def test_prices_that_stay_are_noted_again_after_hours_as_long_as_they_are_read() -> None:
    memory = Memory(prices={SPOT: remembered(2.0, at=NOW - NOTED_EVERY)})
    (event,) = noted(world(spot=read(offer(SPOT, 2.0))), memory)
    assert event.prices == ((SPOT, 2.0),)
    # Of a look before the outage nothing new is known, however long it lasts.
    old = read(offer(SPOT, 2.0), at=memory.prices[SPOT].at, error=DOWN)
    assert noted(world(NOW + 1e6, spot=old), memory) == []


@pytest.mark.parametrize("price", [None, 0.0, -1.0, math.nan, math.inf, 2000.0])
def test_what_is_not_believed_is_not_noted(price: float | None) -> None:
    assert noted(world(spot=read(offer(SPOT, price))), Memory(prices={SPOT: remembered(2.0)})) == []


def test_what_a_whole_reading_lacks_is_forgotten_and_what_a_partial_one_lacks_is_not() -> None:
    memory = Memory(prices={SPOT: remembered(2.0), place("b"): remembered(2.0)})
    (event,) = noted(world(spot=read(offer(SPOT, 2.0))), memory)
    assert event.gone == (place("b"),)
    assert list(reduce(memory, event).prices) == [SPOT]
    assert noted(world(spot=read(offer(SPOT, 2.0), error=DOWN)), memory) == []


def test_prices_of_the_future_are_of_now_after_the_clock_was_set_back() -> None:
    memory = reduce(Memory(prices={SPOT: remembered(2.0, at=NOW + 1e6)}), DaemonStarted(at=NOW, epoch=2))
    assert memory.prices[SPOT].at == NOW


# -- what fails ------------------------------------------------------------------------------------


def test_what_fails_is_told_with_its_age_over_restarts() -> None:
    memory = Memory(prices={SPOT: remembered(2.0, at=NOW - 7200.0)})
    (failed,) = failing(world(spot=read(offer(SPOT, None), at=None, error=DOWN)), memory)
    assert (failed.part, failed.error, failed.read_at) == ("spot", DOWN, NOW - 7200.0)
    assert failed.unknown == ()


def test_a_part_that_was_read_is_as_old_as_the_oldest_price_that_it_goes_by() -> None:
    memory = Memory(prices={SPOT: remembered(2.0, at=NOW - 7200.0)})
    sold = read(offer(SPOT, None), offer(place("b"), 1.0), offer(place("c"), None), error="half")
    (failed,) = failing(world(spot=sold), memory)
    assert failed.read_at == NOW - 7200.0
    assert failed.unknown == (place("c"),)


def test_a_price_that_is_not_believed_is_told() -> None:
    memory = Memory(prices={SPOT: remembered(2.0)})
    (failed,) = failing(world(spot=read(offer(SPOT, 2000.0))), memory)
    assert "2000.0" in failed.error
    assert failed.read_at == memory.prices[SPOT].at
    assert failing(world(spot=read(offer(SPOT, 2.0))), memory) == ()


# -- what is decided -------------------------------------------------------------------------------


def unpriced(here: Scene, node: str) -> Any:
    """A node of which neither a list nor the journal tells the price."""
    here.node(node)
    here.records[node] = replace(here.records[node], price=None)
    here.instances[node] = replace(here.instances[node], price=None)
    return here


def planned(here: Scene) -> list[Launch]:
    return [a for a in here.plan().actions if isinstance(a, Launch)]


def launches(here: Scene) -> list[Market]:
    return sorted(a.placement.market for a in planned(here))


def blind(here: Scene, *, known: tuple[Market, ...] = ()) -> Any:
    """No price can be read; those of the `known` markets are remembered, and a month old."""
    here.settings["offerings"] = {
        str(market): Observed(
            value=tuple(replace(o, price=None) for o in here.offerings if o.placement.market is market),
            error=DOWN,
        )
        for market in Market
    }
    here.fields["prices"] = {
        o.placement: LastPrice(at=here.now - 30 * 86_400.0, price=o.price, part=str(o.placement.market))
        for o in here.offerings
        if o.placement.market in known
    }
    return here


@pytest.mark.parametrize("known", [(), (Market.SPOT,), (Market.ON_DEMAND,), tuple(Market)])
def test_prices_that_cannot_be_read_hold_back_no_launch(known: tuple[Market, ...]) -> None:
    here = blind(Scene(Pool(name="p", replicas=4)), known=known)
    here.fields["whole_at"] = None
    assert launches(here) == [Market.ON_DEMAND] * 2 + [Market.SPOT] * 2


def test_a_known_price_is_launched_before_an_unknown_one() -> None:
    here = Scene(Pool(name="p", replicas=1, spot_share=1.0))
    sold = read(offer(place("a"), None), offer(place("c"), 1.0), at=here.now, error="half")
    here.settings["offerings"] = {"spot": sold}
    here.fields |= {"whole_at": None, "prices": {}}
    (launch,) = planned(here)
    assert (launch.placement, launch.price) == (place("c"), 1.0)


def test_under_a_spend_cap_only_what_has_a_price_is_launched() -> None:
    """Spot stands in for the floor where no on-demand price is known: the cap holds."""
    pool = Pool(name="p", replicas=4, spot_share=0.5, limits=Limits(spend_per_hour=5.0))
    here = blind(Scene(pool), known=(Market.SPOT,))
    here.fields["whole_at"] = None
    assert launches(here) == [Market.SPOT] * 4
    assert "no on-demand price is known, and the spend cap needs one" in here.plan().notes


def test_under_a_spend_cap_old_prices_count() -> None:
    pool = Pool(name="p", replicas=4, spot_share=0.5, limits=Limits(spend_per_hour=5.0))
    here = blind(Scene(pool), known=tuple(Market))
    here.fields["whole_at"] = None
    assert launches(here) == [Market.ON_DEMAND, Market.SPOT, Market.SPOT]


def test_under_a_spend_cap_nothing_is_launched_beside_nodes_of_unknown_price() -> None:
    pool = Pool(name="p", replicas=4, spot_share=0.5, limits=Limits(spend_per_hour=50.0))
    here = unpriced(Scene(pool), "s1")
    here.offerings = [o for o in here.offerings if o.placement != here.records["s1"].placement]
    here.fields["whole_at"] = None
    plan = here.plan()
    assert planned(here) == []
    assert any("needs the prices of 1 more node" in d.reason for d in plan.deferred)


@pytest.mark.parametrize("known", [(), tuple(Market)])
def test_the_adaptive_mix_launches_without_prices(known: tuple[Market, ...]) -> None:
    here = blind(Scene(Pool(name="p", replicas=3, spot_share=1.0, adaptive=AdaptiveRules())), known=known)
    here.fields["whole_at"] = None
    assert len(launches(here)) >= (1 if known else 3)  # with prices a scout goes first


def test_a_node_whose_list_names_no_price_costs_what_its_offering_does() -> None:
    here = unpriced(Scene(), "s1")
    assert here.fleet.by_id["s1"].price == 1.0
    blind(here, known=tuple(Market))
    assert here.fleet.by_id["s1"].price == 1.0
    blind(here)
    assert here.fleet.by_id["s1"].price is None
    here.records["s1"] = replace(here.records["s1"], price=0.9)  # at its launch
    assert here.fleet.by_id["s1"].price == 0.9
    here.records["s1"] = replace(here.records["s1"], price=0.0)  # by an older journal
    assert here.fleet.by_id["s1"].price is None


def test_what_is_not_known_makes_no_money_zero() -> None:
    here = blind(unpriced(Scene(), "s1").node("s2", price=1.0))
    found = rate(here.fleet)
    assert (found.cost, found.on_demand, found.saved_share, found.unpriced) == (None, None, None, 1)
    blind(here, known=tuple(Market))
    found = rate(here.fleet)
    assert (found.cost, found.on_demand, found.unpriced) == (2.0, 12.0, 0)
