"""Machines for a traffic that an API serves so far: enough of them, and cheaper only where they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.estimate import Machine, Traffic, weigh

TOKENS = st.floats(1e3, 1e12)


@given(
    tokens=TOKENS, peak=st.floats(1, 20), price=st.floats(0.05, 100), rate=st.floats(1, 1e5),
    people=st.floats(0, 1), api=st.floats(0.001, 100),
)  # fmt: skip
def test_the_units_take_the_busiest_hour_and_the_verdict_follows_the_money(
    tokens: float, peak: float, price: float, rate: float, people: float, api: float
) -> None:
    traffic = Traffic(tokens=tokens, peak=peak)
    found = weigh(traffic, Machine(name="m", price=price, rate=rate, people=people), api=api)
    assert found.units is not None
    assert found.utilisation is not None
    assert found.usd_per_month is not None
    assert found.api_per_month is not None
    assert found.units * rate >= traffic.busiest * (1 - 1e-6)
    assert found.units == 1 or (found.units - 1) * rate < traffic.busiest
    assert found.utilisation * peak <= 1 + 1e-6
    assert found.usd_per_month == pytest.approx(found.units * price * (1 + people) * 730)
    assert found.cheaper == ("pool" if found.usd_per_month <= found.api_per_month else "api")
    if found.cheaper == "pool":
        assert found.pays_from is not None
        assert tokens >= found.pays_from * (1 - 1e-9)


@given(
    tokens=TOKENS, peak=st.floats(1, 20), price=st.floats(0.05, 100), people=st.floats(0, 1),
    api=st.floats(0.001, 100),
)  # fmt: skip
def test_the_rate_that_is_asked_for_is_where_the_verdict_turns(
    tokens: float, peak: float, price: float, people: float, api: float
) -> None:
    traffic, machine = Traffic(tokens=tokens, peak=peak), Machine(name="m", price=price, people=people)
    needed = weigh(traffic, machine, api=api).needs_rate
    if needed is None:
        fastest = Machine(name="m", price=price, rate=1e12, people=people)
        assert weigh(traffic, machine, api=api).cheaper == "api"
        assert weigh(traffic, fastest, api=api * (1 - 1e-6)).cheaper == "api"
        return
    for factor, cheaper in ((1.001, "pool"), (0.99, "api")):
        one = Machine(name="m", price=price, rate=needed * factor, people=people)
        nudge = 1 + 1e-6 if cheaper == "pool" else 1 - 1e-6
        assert weigh(traffic, one, api=api * nudge).cheaper == cheaper


def test_what_is_not_known_gets_no_verdict() -> None:
    traffic = Traffic(tokens=1e9)
    for machine, api in (
        (Machine(name="m"), 3.0),
        (Machine(name="m", price=1.0), None),
        (Machine(name="m", price=1.0, rate=100.0), None),
    ):
        found = weigh(traffic, machine, api=api)
        assert (found.cheaper, found.pays_from, found.needs_rate) == ("unknown", None, None)
        assert "not known" in found.advice or "nor how many" in found.advice


def test_units_cost_what_they_cost_although_the_api_is_not_known() -> None:
    found = weigh(Traffic(tokens=1e9), Machine(name="m", price=1.0, rate=100.0), api=None)
    assert (found.units, found.usd_per_month) == (4, 2920.0)
    assert found.advice == "What the API asks for this traffic is not known; m would cost $2,920.00 a month."
