"""The cost report: sums of every grouping are the whole, and nothing that is unknown is told as nothing."""

from __future__ import annotations

from itertools import combinations

import pytest
from cost_books import API, DAY0, PRICE, baseline, books, machine, pool, provider_day, used
from hypothesis import given
from hypothesis import strategies as st

from policies.attribution import USUAL, split, weights_of
from policies.cost_report import DIMENSIONS, rate_of, report
from policies.cost_rows import Books, ProviderDay, UsageHour
from policies.cost_sums import NAMES, Sums
from policies.economics import BaselineHour, SpendHour
from policies.model import Market
from policies.spend import PICO, Price, Rates, Usage, cost

TOKENS = st.integers(0, 10**9)
AMOUNTS = st.floats(0, 1e6, allow_nan=False)
HOURS = st.integers(DAY0 - 30, DAY0 + 60)
PLACES = st.sampled_from("ab")
MARKETS = st.sampled_from(list(Market))
POOLS = st.sampled_from(["chat", "embed"])
KEYS = st.sampled_from(["", "team-a", "team-b"])

MACHINES = st.builds(
    SpendHour, pool=POOLS, hour=HOURS, region=st.just("r"), zone=PLACES, instance_type=PLACES, market=MARKETS,
    seconds=st.floats(0, 1e5), usd=AMOUNTS, unit_seconds=st.floats(0, 1e5),
    ready_unit_seconds=st.floats(0, 1e5), unpriced=st.sampled_from([0.0, 0.0, 12.5]),
)  # fmt: skip
BASELINES = st.builds(
    BaselineHour, pool=POOLS, hour=HOURS, on_demand_usd=AMOUNTS, wanted_unit_seconds=st.floats(0, 1e5),
    unpriced=st.sampled_from([0.0, 0.0, 7.0]),
)  # fmt: skip
USAGES = st.builds(
    UsageHour, hour=HOURS, key=KEYS, route=PLACES, model=st.sampled_from(["", "adapter"]),
    backend=st.sampled_from(["pool/chat", "pool/embed", "provider/claude"]), requests=st.integers(0, 1000),
    fresh=TOKENS, cached=TOKENS, written=TOKENS, output=TOKENS,
)  # fmt: skip
DAYS = st.builds(
    ProviderDay, day=st.sampled_from(["2024-10-03", "2024-10-04", "2024-10-05"]), provider=st.just("claude"),
    route=PLACES, model=PLACES, key=KEYS, usd=st.integers(0, 10**18), requests=st.integers(0, 1000),
    unpriced=st.integers(0, 2), fresh=TOKENS, cached=TOKENS, output=TOKENS,
)  # fmt: skip
BOOKS = st.builds(
    Books, since=st.integers(DAY0 - 5, DAY0 + 20), until=st.integers(DAY0 + 21, DAY0 + 50), now=st.just(0.0),
    machines=st.lists(MACHINES, max_size=12).map(tuple), baseline=st.lists(BASELINES, max_size=6).map(tuple),
    usage=st.lists(USAGES, max_size=12).map(tuple), providers=st.lists(DAYS, max_size=6).map(tuple),
    pools=st.sampled_from([(), (pool(people=0.37),), (pool(rate=None),)]),
    prices=st.sampled_from([{}, {API: PRICE}]),
)  # fmt: skip
GROUPINGS = st.lists(st.sampled_from(DIMENSIONS), unique=True, max_size=4)


def added(rows: list[Sums]) -> Sums:
    whole = Sums()
    for sums in rows:
        whole.add(sums)
    return whole


@given(found=BOOKS, by=GROUPINGS)
def test_the_rows_of_any_grouping_are_the_whole_to_the_picodollar_and_the_token(
    found: Books, by: list[str]
) -> None:
    made = report(found, by)
    assert added([row.sums for row in made.rows]) == made.total == report(found, ()).total
    assert len({row.group for row in made.rows}) == len(made.rows)


@given(found=BOOKS)
def test_the_whole_is_what_the_rows_within_the_period_say(found: Books) -> None:
    total = report(found, ()).total
    hours = range(found.since, found.until)
    nodes = [row for row in found.machines if row.hour in hours]
    pools = [row for row in found.usage if row.hour in hours and row.backend.startswith("pool/")]
    assert total.machines_usd == pytest.approx(sum(row.usd for row in nodes) * PICO, rel=1e-9, abs=20)
    assert total.served == sum(row.fresh + row.cached + row.written + row.output for row in pools)
    assert total.on_demand_usd == pytest.approx(
        sum(row.on_demand_usd for row in found.baseline if row.hour in hours) * PICO, rel=1e-9, abs=20
    )
    assert (total.machines is None) >= any(row.unpriced for row in nodes)
    assert (total.on_demand is None) == any(row.unpriced for row in found.baseline if row.hour in hours)


@given(whole=st.integers(-(10**20), 10**20), weights=st.lists(st.integers(-9, 10**12), min_size=1))
def test_a_split_loses_nothing_and_goes_by_weight(whole: int, weights: list[int]) -> None:
    parts = split(whole, weights)
    assert sum(parts) == whole
    weights = [max(0, weight) for weight in weights]
    if total := sum(weights):
        assert all(
            abs(part - whole * w / total) <= 1 + 1e-9 * abs(whole)
            for part, w in zip(parts, weights, strict=True)
        )


def test_a_key_bears_what_its_tokens_weigh_at_the_apis_prices() -> None:
    # At $3, $0.30 and $15 a million: 10 fresh weigh as 2 of an answer and as 100 of the cache.
    usage = [
        used(key="asks", fresh=1000, output=0),
        used(key="writes", fresh=0, output=200),
        used(key="repeats", fresh=0, cached=10_000, output=0),
    ]
    made = report(books(machines=[machine(usd=9.0)], usage=usage), ("key",))
    assert {row.group[0]: row.sums.spent for row in made.rows} == {"asks": 3.0, "writes": 3.0, "repeats": 3.0}


def test_without_an_apis_prices_usual_ones_are_taken() -> None:
    assert weights_of(None) is USUAL
    assert weights_of(Price(Rates.of(input="0"))) is USUAL
    asked = weights_of(Price(Rates.of(input="3", output="15", cached="0.3", cache_write="3.75")))
    assert (asked.fresh, asked.written) == (3_000_000, 3_000_000), "an engine keeps what it reads unasked"
    usage = [used(key="asks", fresh=400, output=0), used(key="writes", fresh=0, output=100)]
    made = report(books(machines=[machine(usd=2.0)], usage=usage, prices={}), ("key",))
    assert [row.sums.spent for row in made.rows] == [1.0, 1.0]


def test_a_day_is_the_least_that_is_shared() -> None:
    machines = [machine(DAY0 + n, 1.0) for n in range(24)]
    usage = [used(DAY0, key="day", fresh=9000, output=0), used(DAY0 + 20, key="night", fresh=1000, output=0)]
    made = report(books(machines=machines, usage=usage), ("key",))
    assert {row.group[0]: row.sums.spent for row in made.rows} == {
        "day": pytest.approx(21.6),
        "night": pytest.approx(2.4),
    }


def test_a_day_on_which_nobody_asked_is_borne_by_nobody() -> None:
    machines = [machine(DAY0, 3.0), machine(DAY0 + 24, 5.0)]
    made = report(books(until=DAY0 + 48, machines=machines, usage=[used(DAY0)]), ("key", "model", "adapter"))
    assert [(row.group, row.sums.spent) for row in made.rows] == [
        (("team", "llama", ""), 3.0),
        ((None, "llama", None), 5.0),
    ]


def test_requests_that_failed_without_a_token_bear_nothing() -> None:
    made = report(books(machines=[machine()], usage=[used(fresh=0, output=0)]), ("key",))
    assert [(row.group, row.sums.spent, row.sums.requests) for row in made.rows] == [
        (("team",), 0.0, 1),
        ((None,), 3.0, 0),
    ]


def test_zones_and_markets_have_their_own_price_of_a_token() -> None:
    machines = [
        machine(usd=1.0, zone="a"),
        machine(usd=4.0, zone="b", market=Market.ON_DEMAND),
        machine(usd=0.5, zone="b", ready_unit_seconds=0.0),
    ]
    usage = [used(fresh=1_500_000, output=500_000)]
    made = report(books(machines=machines, usage=usage, baseline=[baseline(usd=12.0)]), ("zone", "market"))
    found = {row.group: row.sums for row in made.rows}
    assert {group: sums.usd_per_mtok for group, sums in found.items()} == {
        ("a", "spot"): 1.0,
        ("b", "on-demand"): 4.0,
        ("b", "spot"): None,  # it was never ready, so it served nothing
    }
    assert found["b", "on-demand"].saved == 0.0
    assert found["a", "spot"].saved_share == 0.75


def test_a_period_ends_before_the_hour_that_it_names() -> None:
    hours = [machine(DAY0 - 1, 1.0), machine(DAY0, 2.0), machine(DAY0 + 23, 4.0), machine(DAY0 + 24, 8.0)]
    assert report(books(machines=hours), ("zone",)).total.spent == 6.0


def test_providers_are_beside_pools_and_save_nothing() -> None:
    made = report(
        books(machines=[machine()], usage=[used()], baseline=[baseline()], providers=[provider_day(usd=2.5)]),
        ("pool", "market"),
    )
    assert [(row.group, row.sums.spent, row.sums.saved) for row in made.rows] == [
        (("chat", "spot"), 3.0, 5.0),
        (("provider/claude", "api"), 2.5, 0.0),
    ]
    assert (made.total.spent, made.total.saved, made.total.tokens) == (5.5, 5.0, 2300)


@pytest.mark.parametrize(
    ("since", "until", "usd"), [(0, 24, 4.0), (0, 12, 1.0), (12, 24, 3.0), (12, 13, 3.0), (13, 24, 0.0)]
)
def test_of_a_providers_day_counts_what_the_hours_in_the_period_weigh(
    since: int, until: int, usd: float
) -> None:
    hours = [used(DAY0 + 1, backend="provider/claude", model="sonnet", fresh=100, output=0)]
    hours += [used(DAY0 + 12, backend="provider/claude", model="sonnet", fresh=300, output=0)]
    others = [used(DAY0 + 1, backend="provider/claude", model="opus", fresh=10**6)]
    found = books(
        since=DAY0 + since, until=DAY0 + until, usage=hours + others, providers=[provider_day(usd=4.0)]
    )
    assert report(found, ()).total.spent == usd


def test_a_providers_day_without_metered_hours_counts_whole() -> None:
    found = books(since=DAY0 + 5, until=DAY0 + 6, providers=[provider_day(usd=4.0)])
    assert report(found, ()).total.spent == 4.0
    assert report(books(since=DAY0 + 24, until=DAY0 + 30, providers=[provider_day()]), ()).rows == ()


# -- what is not known -------------------------------------------------------------------------------


def test_an_unknown_price_of_a_node_makes_all_that_depends_on_it_unknown() -> None:
    machines = [machine(), machine(zone="b", usd=0.0, unpriced=60.0)]
    made = report(books(machines=machines, usage=[used()], baseline=[baseline()]), ("zone",))
    total = made.total
    assert (total.spent, total.saved, total.usd_per_mtok, total.break_even, total.people) == (None,) * 5
    assert (total.known, total.on_demand) == (3.0, 8.0)
    assert [(row.group[0], row.sums.spent) for row in made.rows] == [("a", 3.0), ("b", None)]


def test_an_unknown_price_of_on_demand_hides_the_saving_alone() -> None:
    total = report(books(machines=[machine()], usage=[used()], baseline=[baseline(unpriced=1.0)]), ()).total
    assert (total.spent, total.on_demand, total.saved, total.saved_share) == (3.0, None, None, None)


def test_an_unknown_price_of_a_request_hides_what_the_provider_cost() -> None:
    made = report(books(machines=[machine()], providers=[provider_day(unpriced=1)]), ("pool",))
    assert [row.sums.spent for row in made.rows] == [3.0, None]
    assert made.total.spent is None
    assert made.total.known == 4.0


def test_an_unknown_price_of_the_api_hides_the_comparison_alone() -> None:
    total = report(books(machines=[machine()], usage=[used()], prices={}), ()).total
    assert (total.api, total.api_per_mtok, total.break_even) == (None, None, None)
    assert total.spent == 3.0


def test_one_pool_without_a_price_to_compare_with_hides_it_for_the_sum_of_both() -> None:
    found = books(
        machines=[machine(), machine(pool="embed")],
        usage=[used(), used(backend="pool/embed")],
    )
    made = report(found, ("pool",))
    assert [row.sums.api is None for row in made.rows] == [False, True]
    assert made.total.api is None


def test_tokens_of_hours_without_counted_machines_have_no_known_cost() -> None:
    total = report(books(usage=[used()]), ()).total
    assert (total.spent, total.usd_per_mtok, total.tokens) == (None, None, 1200)


@pytest.mark.parametrize("later", [2, 23, 24, 47])
def test_tokens_of_hours_without_counted_machines_make_nobody_busy(later: int) -> None:
    counted = report(books(machines=[machine()], usage=[used()]), ()).total
    days = {"usage": [used(), used(DAY0 + later)], "until": DAY0 + 48, "now": (DAY0 + 48) * 3600.0}
    made = report(books(machines=[machine()], **days), ("key",))
    assert (made.total.tokens, made.total.uncounted) == (2400, 1200)
    assert (made.total.utilisation, made.total.spent) == (counted.utilisation, None)


def test_a_request_that_ended_in_the_hour_after_its_machine_is_paid_for() -> None:
    total = report(books(machines=[machine()], usage=[used(DAY0 + 1)]), ()).total
    assert (total.uncounted, total.spent) == (0, 3.0)


def test_nothing_at_all() -> None:
    made = report(books(), ("pool", "day"))
    assert made.rows == ()
    assert (made.total.spent, made.total.usd_per_mtok, made.total.utilisation) == (0.0, None, None)


@pytest.mark.parametrize("by", [("pools",), ("day", "day")])
def test_an_unknown_or_double_dimension_is_refused(by: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="any of pool, day"):
        report(books(), by)


def test_each_row_says_how_many_pools_it_is_made_of() -> None:
    found = books(
        machines=[machine(), machine(pool="embed", zone="b")], providers=[provider_day()],
        usage=[used(), used(backend="pool/embed", key="other")],
    )  # fmt: skip
    assert report(found, ()).whole.pools == 2
    assert [(row.group, row.pools) for row in report(found, ("day", "key")).rows] == [
        (("2024-10-04", "other"), 1),
        (("2024-10-04", "team"), 1),
    ]
    assert [(row.group, row.pools) for row in report(found, ("market",)).rows] == [
        (("api",), 0),
        (("spot",), 2),
    ]


def test_every_pair_of_dimensions_can_be_asked_for() -> None:
    found = books(machines=[machine()], usage=[used()], providers=[provider_day()])
    for by in combinations(DIMENSIONS, 2):
        assert all(len(row.group) == 2 for row in report(found, by).rows)


# -- rates -------------------------------------------------------------------------------------------


def test_the_rate_that_is_written_holds() -> None:
    rate = rate_of(books(usage=[used(fresh=10**9)], machines=[machine()]), pool(rate=500.0))
    assert rate is not None
    assert (rate.tokens, rate.measured) == (500.0, False)
    total = report(books(machines=[machine()], usage=[used(fresh=800_000, output=100_000)]), ()).total
    assert total.utilisation == pytest.approx(0.5)


def test_without_one_the_best_hour_of_the_books_holds_also_from_before_the_period() -> None:
    found = books(
        since=DAY0 + 24, until=DAY0 + 25, pools=(pool(rate=None),),
        machines=[machine(DAY0), machine(DAY0 + 24), machine(DAY0 + 2, ready_unit_seconds=59.0)],
        usage=[
            used(DAY0, fresh=3_600_000, output=0),
            used(DAY0 + 24, fresh=900_000, output=0),
            used(DAY0 + 2, fresh=3_600_000),  # a unit that was ready for less than a minute tells nothing
        ],
    )  # fmt: skip
    rate = rate_of(found, pool(rate=None))
    assert rate is not None
    assert (rate.tokens, rate.measured) == (1000.0, True)
    assert report(found, ()).total.utilisation == pytest.approx(0.25)


def test_without_any_rate_there_is_no_utilisation() -> None:
    total = report(books(machines=[machine()], pools=(pool(rate=None),)), ()).total
    assert (total.utilisation, total.break_even) == (None, None)


@given(fresh=st.integers(0, 10**7), cached=st.integers(0, 10**7), output=st.integers(0, 10**7))
def test_what_the_api_would_have_cost_is_what_it_bills_for_these_tokens(
    fresh: int, cached: int, output: int
) -> None:
    total = report(
        books(machines=[machine()], usage=[used(fresh=fresh, cached=cached, output=output)]), ()
    ).total
    assert total.api_usd == cost(PRICE, Usage(fresh=fresh, cached=cached, cache_write=0, output=output))


def test_every_sum_is_split_by_one_of_both() -> None:
    from policies.attribution import MACHINE, USAGE

    assert sorted((*MACHINE, *USAGE, "providers_usd", "unpriced_requests")) == sorted(NAMES)


def test_a_pool_that_is_configured_no_more_had_people_too() -> None:
    whole = report(books(machines=[machine(usd=10.0)], pools=(), people=0.4), ("pool",)).total
    assert whole.people == pytest.approx(4.0)


def test_what_a_provider_served_of_which_nothing_was_booked_is_not_known_to_be_free() -> None:
    lost = books(usage=[used(backend="provider/claude", model="sonnet", requests=7)], prices={})
    (row,) = report(lost, ("pool", "model", "key")).rows
    assert row.group == ("provider/claude", "sonnet", "team")
    assert (row.sums.spent, row.sums.unpriced_requests, row.sums.tokens) == (None, 7, 1200)


@pytest.mark.parametrize("day", ["2024-10-04", "2024-10-03"])
def test_a_request_that_ended_after_midnight_was_booked_the_day_before(day: str) -> None:
    found = books(usage=[used(backend="provider/claude")], providers=[provider_day(day)], since=DAY0 - 24)
    assert report(found, ()).total.spent == 1.0


def test_a_request_of_which_nothing_came_leaves_nothing_unknown() -> None:
    failed = used(backend="provider/claude", requests=7, failed=7, fresh=0, output=0)
    assert report(books(usage=[failed]), ()).total.spent == 0.0
