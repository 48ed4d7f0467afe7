"""Whether a pool or an API is cheaper: the advice turns where the money does, and says what is not known."""

from __future__ import annotations

from typing import Any

import pytest
from cost_books import API, DAY0, PRICE, books, machine, pool, provider_day, used
from hypothesis import given
from hypothesis import strategies as st

from policies.cost_rows import Books, RouteSettings
from policies.model import Market
from policies.self_or_api import PoolStanding, RouteStanding, Unit, offer_advice, pools, routes, span
from policies.spend import Price, Rates
from policies.unit_cost import HOURS_OF_MONTH

FLAT = Price(Rates.of(input="3", output="3"))
"""An API that asks $3 a million for every token."""
EMBEDDINGS = Price(Rates.of(input="0.02"))


def standing(found: Books) -> PoolStanding:
    (one,) = pools(found)
    return one


def busy(share: float, *, price: float = 3.0, people: float = 0.0, **changes: Any) -> Books:
    """A unit of 500 tokens/s at so many dollars an hour, busy to such a share of a day, against $3."""
    tokens = round(500 * 3600 * 24 * share)
    values: dict[str, Any] = {
        "machines": [machine(DAY0 + n, price) for n in range(24)],
        "usage": [used(fresh=tokens - tokens // 4, output=tokens // 4)],
        "pools": (pool(people=people),),
        "prices": {API: FLAT},
    }
    return books(**(values | changes))


@pytest.mark.parametrize(
    ("price", "people", "at"),
    [(3.0, 0.3, 0.72), (3.0, 0.5, 0.83), (1.5, 0.3, 0.36), (1.5, 0.5, 0.42)],
    ids=["on demand, 30 %", "on demand, 50 %", "spot, 30 %", "spot, 50 %"],
)
def test_a_70b_on_an_h100_turns_at_its_break_even(price: float, people: float, at: float) -> None:
    below, above = (standing(busy(at + d, price=price, people=people)) for d in (-0.01, 0.01))
    assert (below.cheaper, above.cheaper) == ("api", "pool")
    was = f"{at:.0%} utilisation; in these 24 hours it was"
    assert f"The API ({API}) would be cheaper below {was} {at - 0.01:.0%}" in below.advice
    assert f"The pool is cheaper above {was}" in above.advice


@given(
    price=st.floats(0.1, 50), people=st.floats(0, 1), share=st.floats(0.01, 1.0),
    rate=st.floats(1, 50_000) | st.none(),
)  # fmt: skip
def test_the_advice_follows_the_money_whatever_the_rate_is_taken_for(
    price: float, people: float, share: float, rate: float | None
) -> None:
    one = standing(busy(share, price=price, people=people, pools=(pool(people=people, rate=rate),)))
    sums = one.sums
    assert sums.api is not None
    assert sums.machines is not None
    assert sums.people is not None
    assert sums.utilisation is not None
    assert sums.break_even is not None
    assert one.cheaper == ("api" if sums.api < sums.machines + sums.people else "pool")
    if abs(sums.api / (sums.machines + sums.people) - 1) > 1e-6:
        assert (sums.utilisation < sums.break_even) == (one.cheaper == "api")


def test_the_figures_stand_in_the_sentence() -> None:
    assert standing(busy(0.12, price=1.5, people=0.3)).advice == (
        f"The API ({API}) would be cheaper below 36% utilisation; in these 24 hours it was 12%: $15.55 there "
        "against $46.80 for machines and people."
    )
    assert standing(busy(0.5, price=1.5, people=0.0)).advice == (
        "The pool is cheaper above 28% utilisation; in these 24 hours it was 50%: $36.00 for machines "
        f"against $64.80 at {API}."
    )


def test_shares_that_look_alike_get_a_digit_more() -> None:
    assert (
        "below 72.2% utilisation; in these 24 hours it was 71.8%" in standing(busy(0.718, people=0.3)).advice
    )


def test_a_pool_that_is_dearer_when_full_is_told_so() -> None:
    one = standing(busy(0.5, price=9.0))
    assert one.cheaper == "api"
    assert "would be cheaper even when the pool is full; in these 24 hours it was 50%" in one.advice
    usage = [used(DAY0 + n, fresh=900_000, output=0) for n in range(24)]
    measured = standing(busy(0, price=9.0, usage=usage, pools=(pool(rate=None),)))
    assert "even at the pace of its best hour" in measured.advice


def test_the_cached_share_and_the_ratio_of_prompts_to_answers_decide() -> None:
    """The same tokens: mostly out of the cache the API is cheap, mostly written by the model it is dear."""
    tokens = 20_000_000
    kinds = {
        "cached": {"fresh": 0, "cached": tokens, "output": 0},
        "fresh": {"fresh": tokens, "cached": 0, "output": 0},
        "output": {"fresh": 0, "cached": 0, "output": tokens},
    }
    found = {kind: standing(busy(0, usage=[used(**mix)], prices={API: PRICE})) for kind, mix in kinds.items()}
    assert {kind: one.sums.api for kind, one in found.items()} == {
        "cached": 6.0,
        "fresh": 60.0,
        "output": 300.0,
    }
    assert {kind: one.cheaper for kind, one in found.items()} == {
        "cached": "api", "fresh": "api", "output": "pool",
    }  # fmt: skip


def test_embeddings_have_their_own_break_even() -> None:
    """A million tokens cost two cents there, and a unit serves far more of them than of a chat."""
    tokens = 24 * 3600 * 20_000
    embed = pool(name="embed", task="embed", rate=20_000.0, compare="openai/small")
    found = busy(
        0.9,
        machines=[machine(DAY0 + n, 1.0, pool=name) for n in range(24) for name in ("chat", "embed")],
        usage=[
            used(fresh=38_000_000, output=1_000_000),
            used(backend="pool/embed", fresh=tokens // 2, output=0),
        ],
        pools=(pool(), embed),
        prices={API: FLAT, "openai/small": EMBEDDINGS},
    )
    chat, vectors = pools(found)
    assert (chat.cheaper, vectors.cheaper) == ("pool", "api")
    assert chat.sums.break_even == pytest.approx(0.185, abs=0.001)
    assert vectors.sums.break_even == pytest.approx(0.694, abs=0.001)
    busier = busy(
        0, machines=[machine(DAY0 + n, 1.0, pool="embed") for n in range(24)], pools=(embed,),
        usage=[used(backend="pool/embed", fresh=tokens * 7 // 10, output=0)],
        prices={"openai/small": EMBEDDINGS},
    )  # fmt: skip
    assert standing(busier).cheaper == "pool"


def test_an_api_that_costs_nothing_is_never_undercut() -> None:
    one = standing(busy(1.0, prices={API: Price(Rates.of(input="0"))}))
    assert (one.cheaper, one.sums.break_even) == ("api", None)
    assert one.advice == (
        f"The API ({API}) would be cheaper, in these 24 hours: $0.00 there against $72.00 for machines."
    )
    free = route(10**6, providers=[provider_day(usd=0.0, fresh=10**6)])
    assert (free.pays_from, free.break_even) == (None, None)
    assert "would never pay" in free.advice


# -- what is not known -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pools": (pool(compare=""),)}, "There is no API to hold it against"),
        ({"prices": {}}, 'a million tokens is not known: write it as [provider.claude.price."sonnet"].'),
        ({"machines": [machine(unpriced=1.0)]}, "in these 24 hours is not known: nodes had no known price."),
        ({"machines": []}, "in these 24 hours is not known: no machine was counted."),
        (
            {"usage": [used(), used(DAY0 + 25)], "until": DAY0 + 48, "now": (DAY0 + 48) * 3600.0},
            "in these 2 days is not known: no machine was counted in some of the hours in which it served.",
        ),
    ],
    ids=["no API", "no price of it", "no price of a node", "tokens without machines", "an hour without"],
)  # fmt: skip
def test_what_is_not_known_gets_no_verdict(changes: dict[str, Any], said: str) -> None:
    one = standing(busy(0.5, **changes))
    assert one.cheaper == "unknown"
    assert said in one.advice


def test_a_pool_that_nobody_asks_costs_what_an_api_would_not() -> None:
    one = standing(busy(0, usage=[]))
    assert (one.cheaper, one.advice) == (
        "api",
        "Nobody asked the pool in these 24 hours; its machines cost $72.00, an API nothing.",
    )
    alone = standing(busy(0, usage=[], pools=(pool(compare=""),)))
    assert (alone.cheaper, alone.advice[-7:]) == ("unknown", "$72.00.")


def test_requests_that_all_failed_are_not_told_as_none() -> None:
    failed = used(requests=7, failed=7, fresh=0, output=0)
    one = standing(busy(0, usage=[failed]))
    assert one.advice.startswith(
        "Nobody got an answer from the pool in these 24 hours; its machines cost $72"
    )
    alone = provider_day(usd=0.0, requests=7, fresh=0, output=0)
    assert route(0, providers=[alone]).advice == "Nobody got an answer from it in these 24 hours."


def test_use_that_could_not_be_read_is_not_told_as_none() -> None:
    one = standing(busy(0, usage=[], unread=True))
    assert (one.cheaper, one.advice.partition(",")[0]) == (
        "unknown", "Who used the pool in these 24 hours is not known"
    )  # fmt: skip


def test_a_pool_that_is_configured_and_never_ran_says_so() -> None:
    one = standing(books())
    assert (one.cheaper, one.advice) == (
        "unknown",
        "Nothing was counted in these 24 hours: neither machines nor tokens.",
    )


def test_without_a_ready_second_the_money_alone_decides() -> None:
    one = standing(busy(0.5, machines=[machine(ready_unit_seconds=0.0)], pools=(pool(rate=None),)))
    assert one.cheaper == "pool"
    assert (
        one.advice == f"The pool is cheaper, in these 24 hours: $3.00 for machines against $64.80 at {API}."
    )


def test_a_pool_that_left_the_file_is_still_told() -> None:
    found = busy(0.5, pools=())
    assert [one.pool.name for one in pools(found)] == ["chat"]


# -- routes of providers alone -----------------------------------------------------------------------

ALONE = RouteSettings(name="assistant", providers=(API,))


def route(tokens: int, **changes: Any) -> RouteStanding:
    """A route that a provider alone serves at $3 a million for a day, beside an idle pool at $3 an hour."""
    values: dict[str, Any] = {
        "machines": [machine(DAY0 + n, 3.0) for n in range(24)],
        "providers": [provider_day(usd=tokens * 3 / 1e6, fresh=tokens, output=0)],
        "routes": (ALONE,),
        "prices": {API: FLAT},
    }
    (one,) = routes(books(**(values | changes)))
    return one


def test_a_route_is_told_from_which_traffic_a_pool_would_pay() -> None:
    pays = 3.0 / 3.0 * HOURS_OF_MONTH * 1e6  # tokens a month for which the API asks as much as the unit
    low, high = (route(round(pays / HOURS_OF_MONTH * 24 * share)) for share in (0.98, 1.02))
    for one in (low, high):
        assert one.offer == "chat"
        assert one.pays_from == pytest.approx(pays)
        assert one.break_even == pytest.approx(3 / (500 * 3.6e-3 * 3))
        assert "A pool like chat would pay from 730M tokens a month (56% of one unit)" in one.advice
    assert low.tokens < pays < high.tokens
    assert "this pace is 715M: $2,146.20 a month here against $2,190.00 a month for 1 unit." in low.advice
    assert "this pace is 745M: $2,233.80 a month here against $2,190.00 a month for 1 unit." in high.advice


def test_people_are_on_the_pools_side() -> None:
    bare, staffed = route(10**6), route(10**6, pools=(pool(people=0.5),))
    assert bare.pays_from is not None
    assert staffed.pays_from == pytest.approx(bare.pays_from * 1.5)


def test_a_pool_that_is_dearer_when_full_never_pays() -> None:
    one = route(10**6, machines=[machine(usd=9.0)])
    assert one.pays_from is None
    assert one.advice == (
        "A pool like chat would never pay: even when full it costs $5.00 against $3.00 a million tokens here."
    )


def test_a_peak_that_keeps_the_pool_idle_else_never_pays() -> None:
    """All tokens come in one hour of 24: the units that it takes are idle in the others."""
    hours = [used(DAY0 + 3, backend="provider/claude", model="sonnet", fresh=10**6, output=0)]
    one = route(10**6, usage=hours)
    assert one.pays_from is None
    assert "sized for the busiest hour it costs $40.00 against $3.00" in one.advice
    even = [
        used(DAY0 + n, backend="provider/claude", model="sonnet", fresh=10**6, output=0) for n in range(24)
    ]
    assert route(10**6, usage=even).pays_from is not None


def test_the_pool_that_pays_soonest_is_offered() -> None:
    both = (pool(), pool(name="big", rate=4000.0, price=8.0))
    assert route(10**6, pools=both).offer == "big"
    assert route(10**6, pools=(pool(), pool(name="big", rate=4000.0))).offer == "chat"  # big has no price
    assert (
        route(10**6, pools=(pool(), pool(name="big", rate=4000.0, price=8.0, task="embed"))).offer == "chat"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pools": (pool(rate=None),)}, "has both a price and tokens_per_second"),
        ({"machines": []}, "has both a price and tokens_per_second"),
        ({"providers": [provider_day(unpriced=1)]}, "What it cost is not known"),
        ({"providers": []}, "Nobody asked it in these 24 hours."),
    ],
    ids=["no rate", "no price of a machine", "no price of a request", "nobody asked"],
)
def test_a_route_of_which_too_little_is_known(changes: dict[str, Any], said: str) -> None:
    one = route(10**6, **changes)
    assert (one.offer, one.pays_from) == ("", None)
    assert said in one.advice


def test_the_price_of_the_file_stands_in_where_nothing_ran() -> None:
    one = route(10**6, machines=[], pools=(pool(price=3.0),))
    assert one.pays_from == pytest.approx(730e6)


def test_routes_with_a_pool_are_not_routes_of_providers() -> None:
    assert routes(busy(0.5)) == []


@given(
    price=st.floats(0.1, 50), rate=st.floats(10, 1e5), people=st.floats(0, 1), api=st.floats(0.01, 100),
    peak=st.floats(1, 10), factor=st.floats(0.1, 50),
)  # fmt: skip
def test_no_traffic_below_the_threshold_pays_and_one_above_it_does(
    price: float, rate: float, people: float, api: float, peak: float, factor: float
) -> None:
    unit = Unit(price=price, rate=rate, people=people)
    pays = unit.pays_from(api, peak=peak)
    if pays is None:  # then no traffic does
        full = unit.rate * 3600 * HOURS_OF_MONTH / peak
        assert unit.cost(tokens=full * factor, peak=peak) > api * full * factor / 1e6 * (1 - 1e-9)
        return
    assert unit.cost(tokens=pays * 0.99, peak=peak) > api * pays * 0.99 / 1e6
    assert unit.units_for(tokens=pays, peak=peak) == 1
    assert unit.cost(tokens=pays, peak=peak) <= api * pays / 1e6 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        (0.02, "in this hour"),
        (1.4, "in this hour"),
        (1.6, "in these 2 hours"),
        (47, "in these 47 hours"),
        (48, "in these 2 days"),
        (168, "in these 7 days"),
    ],
)
def test_periods_in_words(hours: float, text: str) -> None:
    assert span(hours) == text


def test_on_demand_nodes_that_stand_in_raise_the_threshold() -> None:
    """The same day and traffic: half of the hours on demand at twice the price turn the advice."""
    spot = [machine(DAY0 + n, 1.5) for n in range(24)]
    mixed = [machine(DAY0 + n, 3.0, market=Market.ON_DEMAND) for n in range(12)] + spot[12:]
    assert standing(busy(0.35, machines=spot)).cheaper == "pool"
    assert standing(busy(0.35, machines=mixed)).cheaper == "api"


@pytest.mark.parametrize(
    ("price", "says"),
    [
        (3.6, "sized for the busiest hour it costs $2.00"),
        (3.7, "even when full it costs $1.03"),
        (1.8, "would pay from"),
    ],
)
def test_a_unit_that_is_as_dear_as_the_api_when_full_is_too_dear_for_its_peaks(
    price: float, says: str
) -> None:
    unit = Unit(price=price, rate=1000.0)
    assert says in offer_advice("It", unit, api=1.0, tokens=1e9, peak=2.0)
