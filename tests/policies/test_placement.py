"""Where the next node goes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.evidence import Evidence
from policies.memory import Memory
from policies.model import HealthRules, Market, Observed, Offering, Placement, PlacementRules, Pool, World
from policies.placement import Scorer
from policies.records import Refusal, decayed
from policies.regions import Sight

POOL = Pool(
    name="p",
    replicas=10,
    placement=PlacementRules(spread=0.5, refusal_half_life=180.0, reclaim_half_life=1800.0),
    health=HealthRules(boot_failures=3),
)


def offer(zone: str, price: float = 1.0, market: Market = Market.SPOT, **more: Any) -> Offering:
    return Offering(placement=Placement("toy", "r", zone, "gpu", market), price=price, **more)


def scorer(offers: list[Offering], *, now: float = 10_000.0, held: Any = None, **memory: Any) -> Scorer:
    known = Memory(**memory)
    world = World(now=now, regions={"": Observed(value=(), at=now)})
    sight = Sight(Evidence(POOL, world, known), world)
    return Scorer(POOL, known, now=now, offerings=offers, held=held or {}, sight=sight)


def zones(found: Scorer, count: int, **more: Any) -> str:
    taken = [found.take(Market.SPOT, **more) for _ in range(count)]
    return "".join(o.placement.zone if o is not None else "-" for o in taken)


def test_equal_zones_are_filled_evenly_and_by_name() -> None:
    assert zones(scorer([offer("c"), offer("a"), offer("b")]), 7) == "abcabca"


def test_a_cheaper_zone_gets_more_and_not_all() -> None:
    assert zones(scorer([offer("a", 1.0), offer("b", 1.4)]), 6) == "abaaba"


def test_nodes_that_are_there_count() -> None:
    held = {offer("a").placement: 2, offer("a", market=Market.ON_DEMAND).placement: 5}
    assert zones(scorer([offer("a"), offer("b")], held=held), 3) == "bba"


@pytest.mark.parametrize(("age", "open_"), [(0.0, False), (179.0, False), (180.0, True), (500.0, True)])
def test_a_refusal_blocks_until_it_has_decayed_to_half(age: float, open_: bool) -> None:
    found = scorer([offer("a")], refusals={offer("a").placement: Refusal(at=10_000.0 - age)})
    assert (zones(found, 1) == "a") is open_
    assert bool(found.blocked(offer("a").placement)) is not open_


def test_repeated_refusals_block_longer() -> None:
    heavy = Refusal(at=9_800.0, weight=1.9)
    assert zones(scorer([offer("a")], refusals={offer("a").placement: heavy}), 1) == "-"
    assert decayed(heavy, 9_800.0 + 180.0, 180.0) == pytest.approx(0.95)


@pytest.mark.parametrize(("age", "open_"), [(0.0, False), (1799.0, False), (1800.0, True)])
def test_a_quota_blocks_for_ten_half_lives(age: float, open_: bool) -> None:
    found = scorer([offer("a")], quota_at={offer("a").placement: 10_000.0 - age})
    assert (zones(found, 1) == "a") is open_


@pytest.mark.parametrize(
    ("failures", "age", "open_"), [(2, 0.0, True), (3, 0.0, False), (3, 1799.0, False), (3, 1800.0, True)]
)
def test_boots_that_fail_one_after_another_block(failures: int, age: float, open_: bool) -> None:
    bad = Refusal(at=10_000.0 - age, weight=float(failures))
    assert (zones(scorer([offer("a")], boot_failures={offer("a").placement: bad}), 1) == "a") is open_


@pytest.mark.parametrize(
    ("memory", "after"),
    [
        ({}, 0.0),
        ({"refusals": Refusal(at=9_900.0)}, 80.0),
        ({"refusals": Refusal(at=9_900.0, weight=2.0)}, 260.0),
        ({"refusals": Refusal(at=9_900.0, weight=0.4)}, 0.0),
        ({"reclaims": Refusal(at=9_900.0)}, 0.0),
        ({"quota_at": 9_900.0}, 1_700.0),
        ({"boot_failures": Refusal(at=9_900.0, weight=2.0)}, 0.0),
        ({"boot_failures": Refusal(at=9_900.0, weight=3.0)}, 1_700.0),
        ({"refusals": Refusal(at=9_900.0, weight=2.0), "quota_at": 9_900.0}, 1_700.0),
    ],
)
@pytest.mark.parametrize("hold", [0.0, 300.0])
def test_when_a_placement_opens_is_when_it_is_taken(
    memory: dict[str, Any], after: float, hold: float
) -> None:
    place = offer("a").placement
    known: dict[str, Any] = {name: {place: news} for name, news in memory.items()}
    if hold and memory.keys() & {"refusals", "reclaims"}:
        after = max(after, 200.0)
    assert scorer([offer("a")], **known).opens_at(place, quiet_for=hold) == pytest.approx(10_000.0 + after)
    assert scorer([offer("a")], **known).next_try(Market.SPOT, quiet_for=hold) == pytest.approx(
        10_000.0 + after
    )
    assert zones(scorer([offer("a")], now=10_000.0 + after + 0.1, **known), 1, quiet_for=hold) == "a"
    if after:
        assert zones(scorer([offer("a")], now=10_000.0 + after - 0.1, **known), 1, quiet_for=hold) == "-"


def test_nothing_for_sale_has_no_next_try() -> None:
    assert scorer([offer("a", available=False)]).next_try(Market.SPOT) is None
    assert scorer([offer("a")]).next_try(Market.ON_DEMAND) is None


def test_a_recent_reclaim_makes_a_zone_look_dearer() -> None:
    risky = {offer("a").placement: Refusal(at=9_990.0)}
    assert zones(scorer([offer("a", 1.0), offer("b", 1.8)], reclaims=risky), 1) == "b"
    assert zones(scorer([offer("a", 1.0), offer("b", 2.2)], reclaims=risky), 1) == "a"


def test_markets_do_not_mix() -> None:
    found = scorer([offer("a", market=Market.ON_DEMAND)])
    assert found.take(Market.SPOT) is None
    assert found.take(Market.ON_DEMAND) is not None


def test_reasons_are_said_in_words() -> None:
    on_demand = [offer(z, market=Market.ON_DEMAND) for z in "ab"]
    found = scorer(
        [offer("a"), *on_demand],
        quota_at={o.placement: 9_990.0 for o in on_demand},
        reclaims={offer("a").placement: Refusal(at=9_990.0)},
    )
    assert found.why_none(Market.ON_DEMAND) == (
        "no on-demand offering may be tried now: on-demand gpu in a is over quota and 1 more"
    )
    assert found.take(Market.SPOT, quiet_for=60.0) is None
    assert found.why_none(Market.SPOT) == "no spot offering has been quiet for long enough"
    assert scorer([]).why_none(Market.SPOT) == "no spot offering is for sale"


@settings(max_examples=60, deadline=None)
@given(
    prices=st.lists(st.floats(0.1, 9.0), min_size=1, max_size=12),
    takes=st.integers(1, 40),
    order=st.randoms(use_true_random=False),
)
def test_the_queue_gives_what_scoring_all_of_them_each_time_gives(
    prices: list[float], takes: int, order: Any
) -> None:
    """The lazy queue against the plain rule, whatever the order of the offerings."""
    offers = [offer("abcd"[i % 4] + str(i % 3), price) for i, price in enumerate(prices)]
    offers = list({o.placement: o for o in offers}.values())
    shuffled = list(offers)
    order.shuffle(shuffled)
    found, plain = scorer(shuffled), scorer(offers)
    for _ in range(takes):
        best = min(offers, key=lambda o: (plain.score(o), o.placement))
        plain._zone[Market.SPOT, best.placement.zone] = (
            plain._zone.get((Market.SPOT, best.placement.zone), 0) + 1
        )
        taken = found.take(Market.SPOT)
        assert taken is not None
        assert taken.placement == best.placement
