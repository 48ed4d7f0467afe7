"""What a million tokens cost, and where an API is cheaper: on both sides of every threshold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.unit_cost import HOURS_OF_MONTH, blended, break_even, break_even_tokens, usd_per_mtok

PRICES = st.floats(0.05, 500)
RATES = st.floats(1, 1e6)
PEOPLE = st.floats(0, 1)


@given(price=PRICES, rate=RATES, api=st.floats(0.001, 1000), people=PEOPLE)
def test_below_break_even_the_api_is_cheaper_and_above_it_the_machines(
    price: float, rate: float, api: float, people: float
) -> None:
    at = break_even(price=price, rate=rate, api=api, people=people)
    below = usd_per_mtok(price=price, rate=rate, utilisation=at * 0.999, people=people)
    above = usd_per_mtok(price=price, rate=rate, utilisation=at * 1.001, people=people)
    assert above < api < below
    assert usd_per_mtok(price=price, rate=rate, utilisation=at, people=people) == pytest.approx(api)


@given(price=PRICES, rate=RATES, api=st.floats(0.001, 1000), people=PEOPLE)
def test_both_forms_of_the_break_even_are_the_same_number_of_tokens(
    price: float, rate: float, api: float, people: float
) -> None:
    share = break_even(price=price, rate=rate, api=api, people=people)
    tokens = break_even_tokens(price=price, api=api, people=people)
    assert tokens == pytest.approx(share * rate * 3600 * HOURS_OF_MONTH)


@given(price=PRICES, rate=RATES, people=PEOPLE)
def test_people_are_a_share_on_top(price: float, rate: float, people: float) -> None:
    bare, whole = (usd_per_mtok(price=price, rate=rate, people=share) for share in (0.0, people))
    assert whole == pytest.approx(bare * (1 + people))


def test_a_machine_that_is_dearer_than_the_api_when_full_never_breaks_even() -> None:
    assert break_even(price=4, rate=300, api=3) > 1
    assert usd_per_mtok(price=4, rate=300) > 3


@pytest.mark.parametrize(("rate", "utilisation"), [(0, 1.0), (100, 0.0)])
def test_nothing_served_costs_without_bound(rate: float, utilisation: float) -> None:
    assert usd_per_mtok(price=1, rate=rate, utilisation=utilisation) == math.inf


def test_an_api_that_costs_nothing_is_never_undercut() -> None:
    assert break_even(price=1, rate=100, api=0) == math.inf
    assert break_even_tokens(price=1, api=0) == math.inf


def test_blending_goes_by_the_tokens_of_each_kind() -> None:
    prices = {"fresh": 3.0, "cached": 0.3, "output": 15.0}
    assert blended(prices, {"fresh": 1, "cached": 8, "output": 1}) == pytest.approx(2.04)
    assert blended({"fresh": 3.0}, {"fresh": 5, "output": 0}) == pytest.approx(3.0)
    assert blended(prices, {"fresh": 0, "output": 0}) is None
    with pytest.raises(KeyError):
        blended({"fresh": 3.0}, {"fresh": 1, "output": 1})
